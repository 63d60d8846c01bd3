"""Whether samples are good."""

from __future__ import annotations

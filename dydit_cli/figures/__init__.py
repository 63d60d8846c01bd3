"""Pictures, drawn from profiles alone: no figure runs a model."""

from __future__ import annotations

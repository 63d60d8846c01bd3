"""The trade-off study: every method at every amount of work, several seeds each, measured alike."""

from __future__ import annotations

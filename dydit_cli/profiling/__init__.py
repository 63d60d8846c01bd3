"""What a model does over a sampling run: recorded, counted, tabulated."""

from __future__ import annotations

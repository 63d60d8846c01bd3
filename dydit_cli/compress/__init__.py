"""What DyDiT is compared with: static models that are narrower for good, by structural pruning."""

from __future__ import annotations

"""Counting: a closed form over `Routing`, and fvcore over what ran. 1 MAC is fvcore's and the papers' "1 FLOP"."""

from __future__ import annotations

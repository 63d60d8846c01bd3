"""Timing: static against masked, sparse and compiled, interleaved, and where the time goes."""

from __future__ import annotations

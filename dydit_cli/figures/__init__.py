"""Figures, drawn from what runs left: none of them runs a model."""

from __future__ import annotations

"""Recipes, data and the loop that pre-trains, fine-tunes and runs the static control."""

from __future__ import annotations

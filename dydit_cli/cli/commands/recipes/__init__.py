"""Recipes: the TOML files of trainings and studies that ship with dydit, and your own."""

from __future__ import annotations

PANELS = {"Commands": ("ls", "show", "copy", "check")}

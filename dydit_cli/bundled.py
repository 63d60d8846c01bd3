"""What comes with the package: trained models that every command takes by name, and networks that compare samples."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # a folder for each, with its card

MODELS = ("digits-dit", "digits-sit", "fashion-dit")

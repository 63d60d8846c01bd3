"""What goes to other people: a checkpoint with its card on the Hugging Face hub."""

from __future__ import annotations

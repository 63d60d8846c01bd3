"""Labelled images to train on, by name: the bundled digits and glyphs, folders of pictures, and latents encoded once."""

from __future__ import annotations

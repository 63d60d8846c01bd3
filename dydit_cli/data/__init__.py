"""Labelled images to train on, by name: digits, Fashion-MNIST, IDX files, folders of pictures, and latents encoded once."""

from __future__ import annotations

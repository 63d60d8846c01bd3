"""Checkpoints on disk, and the conversion of a static one into a dynamic one."""

from __future__ import annotations

"""What commands leave on disk, one file a kind: its names, its format version, reading and writing."""

from __future__ import annotations

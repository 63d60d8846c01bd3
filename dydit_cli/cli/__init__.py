"""The commands: each parses its options, makes one library call and renders what came back."""

from __future__ import annotations

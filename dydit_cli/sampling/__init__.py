"""`dydit sample`: images of a checkpoint, as pictures or as one array for evaluation suites."""

from __future__ import annotations

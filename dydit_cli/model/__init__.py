"""The static DiT, the routers on top of it, and the record of what they switched on."""

from __future__ import annotations

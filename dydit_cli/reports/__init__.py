"""One self-contained page of what dydit's commands wrote: folders become sections, sections become HTML."""

from __future__ import annotations

"""What a command will take before it runs: memory, time and disk, for `dydit plan`."""

from __future__ import annotations

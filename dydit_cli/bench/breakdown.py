"""Where the time goes, region by region, in two executions of one model.

Every region takes its own time where it is run, with a synchronisation around it on a GPU, so the regions add up to slightly
more than an undisturbed run takes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dydit_cli.devices import synchronize
from dydit_cli.diffusion.process import times
from dydit_cli.model.execution import Executable
from dydit_cli.model.regions import ATTENTION, FORECAST, GATHER, MATCHING, MLP, MODULATION, SLICING, TOKEN_ROUTERS, listen

REST = "rest"
PARTS = (ATTENTION, MLP, MODULATION, TOKEN_ROUTERS, GATHER, SLICING, REST)
CACHED_PARTS = (*PARTS[:-1], FORECAST, REST)
TOME_PARTS = (ATTENTION, MLP, MODULATION, MATCHING, GATHER, REST)


class Stopwatch:
    """Adds up the seconds of named regions; a region inside another is taken off the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def breakdown(
    variants: Mapping[str, Executable], parts: tuple[str, ...], x: Tensor, y: Tensor, timesteps: Sequence[float], steps: int
) -> dict[str, dict[str, float]]:
    """Seconds by part and variant over a sampling run of `steps`, from one evaluation at each of `timesteps`."""
    watches = {name: Stopwatch(x.device) for name in variants}
    for timestep in timesteps:
        t = times(y, timestep)
        for name, model in variants.items():
            with listen(watches[name]), watches[name].region(REST):
                model(x, t, y)
    scale = steps / len(timesteps)
    return {part: {name: watch.seconds[part] * scale for name, watch in watches.items()} for part in parts}

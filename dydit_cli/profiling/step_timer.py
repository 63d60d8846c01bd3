"""Seconds beside MACs: every step of a profile timed sparse (or with ToMe) and static, on the same inputs, in turn."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from dydit_cli.devices import synchronize
from dydit_cli.model.execution import Executable
from dydit_cli.profiling.record import Recorder


class StepTimer:
    """A denoiser that passes every call on to `recorder` and times it twice more: as `model` runs it, and by the `static`
    model of the same weights. `model` is another than the recorder's, which counts what it precomputes. What the recorder
    itself costs is in neither, nor is the plan, made once before the run."""

    def __init__(self, model: Executable, static: Executable, recorder: Recorder, timesteps: Sequence[float]) -> None:
        self._recorder, self._dynamic, self._static = recorder, model, static
        self._dynamic.plan(timesteps)
        self._seconds: dict[str, dict[int, float]] = {"static": defaultdict(float), "dynamic": defaultdict(float)}
        self._samples: dict[int, int] = defaultdict(int)
        self._warm = False

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out = self._recorder(x, t, y)
        if not self._warm:  # the first call of a process is slower, whosever it is
            self._static(x, t, y)
            self._dynamic(x, t, y)
            self._dynamic.clear()
            self._warm = True
        call = self._recorder.call
        order: list[tuple[str, Callable[..., Any]]] = [("static", self._static), ("dynamic", self._dynamic)]
        for kind, model in order if self._samples[call] % 2 else reversed(order):
            self._seconds[kind][call] += _seconds(model, x, t, y)
        self._samples[call] += len(x)
        return out

    def add_to(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with seconds per forward and image, the speed-up, and the share of the saved MACs that it realises."""
        samples = table["step"].map(self._samples)
        static, dynamic = (table["step"].map(self._seconds[kind]) / samples for kind in ("static", "dynamic"))
        return table.assign(
            static_seconds=static,
            dynamic_seconds=dynamic,
            speedup=static / dynamic,
            realised_efficiency=static / dynamic * table["ratio"],
        )

    def summary(self, ratio: float) -> dict[str, float]:
        """The same of the whole run: seconds of all steps, per forward and image."""
        samples = sum(self._samples.values())
        static, dynamic = (sum(self._seconds[kind].values()) / samples for kind in ("static", "dynamic"))
        return {
            "static_seconds": static,
            "dynamic_seconds": dynamic,
            "speedup": static / dynamic,
            "realised_efficiency": static / dynamic * ratio,
        }


def _seconds(model: Callable[..., Any], *inputs: Tensor) -> float:
    synchronize(inputs[0].device)
    start = time.perf_counter()
    model(*inputs)
    synchronize(inputs[0].device)
    return time.perf_counter() - start

"""`dydit bench --trace`: one sampling run of each execution, operation by operation, for ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor
from torch.profiler import profile, record_function

from dydit_cli.diffusion.process import times
from dydit_cli.files import atomic_file
from dydit_cli.model.execution import Executable
from dydit_cli.model.regions import listen


class Spans:
    """Makes every region of a forward pass a span of the trace."""

    def region(self, name: str) -> AbstractContextManager[None]:
        return record_function(name)


def write_trace(variants: Mapping[str, Executable], x: Tensor, y: Tensor, timesteps: Sequence[float], path: str | Path) -> None:
    """Runs the variants one after the other and writes what ran as Chrome's JSON, gzipped where `path` ends in .gz.

    A variant, its planning, its timesteps and their regions are spans, one inside the other.
    """
    with profile() as profiler, listen(Spans()):
        for name, model in variants.items():
            model.clear()  # a sampling run finds no copies of weights
            with record_function(name):
                with record_function("plan"):
                    model.plan(timesteps)
                for timestep in timesteps:
                    with record_function(f"t = {timestep:g}"):
                        model(x, times(y, timestep), y)
    with atomic_file(path) as temporary:
        profiler.export_chrome_trace(str(temporary))

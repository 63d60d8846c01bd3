"""Where the time goes, part by part, in the static model and in the sparse one.

Every part is timed where it is called, with a synchronisation around it on a GPU, so the parts add up to slightly more
than an undisturbed run takes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dydit_cli.model import sparse as sparse_module
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DynamicBlock
from dydit_cli.model.layers import modulate
from dydit_cli.model.sparse import SparseDyDiT
from dydit_cli.model.weight_cache import WeightSlices

PARTS = ("attention", "mlp", "modulation and norms", "token routers", "gather and scatter", "slicing", "rest")


class Stopwatch:
    """Adds up the seconds of named parts; a part inside another is taken off the outer one."""

    def __init__(self, place: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._place = place
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        if self._place.type == "cuda":
            torch.cuda.synchronize(self._place)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as the part `name`."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed


def breakdown(
    static: DiT, sparse: SparseDyDiT, x: Tensor, y: Tensor, timesteps: list[int], steps: int, place: torch.device
) -> dict[str, dict[str, float]]:
    """Seconds by part over a sampling run of `steps`, from one evaluation at each of `timesteps`: part: static, sparse."""
    watches = {"static": Stopwatch(place), "sparse": Stopwatch(place)}
    for timestep in timesteps:
        t = torch.full_like(y, timestep)
        with static_parts(static, watches["static"]), watches["static"].part("rest"):
            static(x, t, y)
        with _sparse_parts(sparse, watches["sparse"]), watches["sparse"].part("rest"):
            sparse(x, t, y)
    scale = steps / len(timesteps)
    return {part: {kind: watch.seconds[part] * scale for kind, watch in watches.items()} for part in PARTS}


@contextmanager
def static_parts(model: DiT, watch: Stopwatch, modulated_in: str = "dydit_cli.model.dit") -> Iterator[None]:
    """Times the parts of `model`'s blocks while they are called; `modulated_in` is the module that modulates."""
    with ExitStack() as stack:
        stack.enter_context(patch(f"{modulated_in}.modulate", watch.wrap("modulation and norms", modulate)))
        for block in model.blocks:
            for name in ("attn", "mlp", "norm1", "norm2", "adaLN_modulation"):
                part = {"attn": "attention", "mlp": "mlp"}.get(name, "modulation and norms")
                stack.enter_context(_timed_module(block.get_submodule(name), part, watch))
        yield


@contextmanager
def _sparse_parts(model: SparseDyDiT, watch: Stopwatch) -> Iterator[None]:
    functions = {
        "sparse_attention": "attention",
        "sparse_mlp": "mlp",
        "select_tokens": "token routers",
        "gather": "gather and scatter",
        "scatter_add": "gather and scatter",
    }
    with ExitStack() as stack:
        for name, part in functions.items():
            stack.enter_context(patch.object(sparse_module, name, watch.wrap(part, getattr(sparse_module, name))))
        for name in ("attention", "mlp"):
            stack.enter_context(patch.object(WeightSlices, name, watch.wrap("slicing", getattr(WeightSlices, name))))
        for block in model.model.blocks:
            assert isinstance(block, DynamicBlock)
            stack.enter_context(_timed_module(block.adaLN_modulation, "modulation and norms", watch))
        modulated = watch.wrap("modulation and norms", model.pointwise.modulated)
        stack.enter_context(patch.object(model, "pointwise", replace(model.pointwise, modulated=modulated)))
        yield


@contextmanager
def _timed_module(module: nn.Module, part: str, watch: Stopwatch) -> Iterator[None]:
    with patch.object(module, "forward", watch.wrap(part, module.forward)):
        yield

"""Sparse execution in shapes that are known before a step, so that nothing waits for the device: `padded`.

Heads and channel groups depend on the timestep alone, so a step's products are known. How many tokens are on is not: an MLP
has a number of places for them, its capacity, and places that stay empty are masked. The step counts what was on. Afterwards,
one reading of these counts says whether all had room; where not, the step is run again with room for every token. So a result
is always that of the masks, and a capacity that is too small costs time alone. Counts that were seen decide the capacities to
come, in buckets, so that neighbouring steps share shapes.

Legend: B batch, N tokens, C width, L depth, H heads.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dydit_cli.devices import free_memory
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone, RoutedBlock
from dydit_cli.model.cuda_graphs import GraphedSteps
from dydit_cli.model.execution import FREE_SHARE, SparseModel
from dydit_cli.model.options import PaddedOptions, RunOptions
from dydit_cli.model.routing import Routing
from dydit_cli.model.sparse import EAGER, Pointwise
from dydit_cli.model.weight_cache import Parts

RECOMPILE_LIMIT = 64  # a model's blocks take about four graphs, some families' more
BUCKETS = 64  # capacities are multiples of this part of the tokens
SPARE = 1 / 16  # of the tokens of one image, and less of more images, whose mean varies less

Capacities = tuple[int, ...]  # of every block, in tokens a sample: the batch shares B times as many places
RunBlock = Callable[[RoutedBlock, Tensor, Tensor, Parts, int], Tensor]


def capacity_for(active: int, batch: int, tokens: int, spare: float = 1.0) -> int:
    """Tokens a sample that `active` ones of a whole batch take, with `spare` times the usual room for more."""
    bucket = max(1, tokens // BUCKETS)
    wanted = active / batch + spare * SPARE * tokens / batch**0.5
    return min(tokens, bucket * math.ceil(wanted / bucket))


def run_block(
    block: RoutedBlock, h: Tensor, modulation: Tensor, parts: Parts, room: int, pointwise: Pointwise = EAGER
) -> Tensor:
    """Adds the block's work to h (B N C) in place, and returns the token mask, B N."""
    return block.forward_sparse(h, modulation, parts, pointwise, room)


def triton_kernels(device: torch.device) -> Pointwise:
    """Raises `DyditError` where Triton is not installed, or cannot run on the device."""
    if importlib.util.find_spec("triton") is None:
        raise DyditError("triton: is not installed; pip install 'dydit[triton]', or leave it out")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise DyditError(f"triton: the model is on {device.type}; use --device cuda or leave it out")
    from dydit_cli.model.triton_kernels import KERNELS

    return KERNELS


@cache
def compiled_block(backend: str = "inductor") -> RunBlock:
    """`run_block` compiled for all blocks of a kind and all numbers of heads, channels and places: a few graphs."""
    return torch.compile(run_block, dynamic=True, backend=backend, **graphs_limit())


def graphs_limit() -> dict[str, Any]:
    """For torch.compile: how many graphs of a function there may be before it is run eager. Older ones have 8 and no choice."""
    return {"recompile_limit": RECOMPILE_LIMIT} if "recompile_limit" in signature(torch.compile).parameters else {}


class StepOutput(NamedTuple):
    """The model's output, the token masks L B N, and how many of each block's are on, (L,)."""

    out: Tensor
    tokens: Tensor
    active: Tensor


@dataclass(frozen=True)
class Step:
    """One timestep's program: from x and labels y to a `StepOutput`, without waiting and in shapes that x's alone decides.

    `e` is the timestep's embedding, 1 C; `parts` are the weights of what is on, by block; `shifts` what a FLOPs ratio adds to
    each token router's logits.
    """

    model: DynamicBackbone
    e: Tensor
    parts: Sequence[Parts]
    capacities: Capacities
    shifts: Sequence[Tensor | None]
    run_block: RunBlock = run_block

    def __call__(self, x: Tensor, y: Tensor) -> StepOutput:
        model = self.model
        for router, shift in zip(model.token_routers, self.shifts, strict=True):
            if router.budget is not None:
                router.budget.shift = shift
        h = model.embed(x)  # B N C
        c = model.condition(self.e, y)  # B C
        masks = []
        for i, block in enumerate(model.routed_blocks):
            h = model.enter_block(i, h)
            masks.append(self.run_block(block, h, block.modulation(c), self.parts[i], self.capacities[i] * len(x)))
        tokens = torch.stack(masks)
        return StepOutput(model.head(h, c), tokens, (tokens > 0).sum(dim=(1, 2)))

    @property
    def reads(self) -> list[Tensor]:
        """What it reads beside its inputs and the model."""
        return [tensor for block in self.parts for parts in block.values() for part in parts for tensor in part.tensors()]


class PaddedModel(SparseModel):
    """Runs a dynamic `model` (evaluation only) as `SparseModel` does, each step in shapes that are known before.

    `options.capacity` is the share of the tokens for which there is room at first; None begins with room for all, and then for
    what the call before had on. `counts` and `again` say what came of it: the most active tokens of every block that were seen,
    by timestep and batch, and how many calls ran twice. With room for all from the beginning no counts are read at all. A t on
    the cpu is read without waiting.

    `compile` fuses each block with torch.compile, `options.triton` what surrounds its MLP with kernels of its own.
    `options.cuda_graphs` records a step as a CUDA graph when its timestep comes for the second time; graphs and the copies of
    weights that they read take half of `plan_memory` bytes (by default a quarter of what is free), and other copies the other
    half. Raises `DyditError` for what the device does not have, or is not installed.
    """

    def __init__(
        self,
        model: DynamicBackbone,
        *,
        plan_memory: int | None = None,
        compile: bool = False,
        options: PaddedOptions = PaddedOptions(),
    ) -> None:
        if compile and options.triton:
            raise DyditError("triton: a compiled block is fused already; leave --triton or --compile out")
        memory = free_memory(model.device) // FREE_SHARE if plan_memory is None else plan_memory
        self.options = options
        self.graphs = GraphedSteps.on(model.device, memory // 2) if options.cuda_graphs else None
        super().__init__(model, access="copies", plan_memory=memory // 2 if options.cuda_graphs else memory)
        self.run_block: RunBlock = compiled_block() if compile else run_block
        if options.triton:
            self.run_block = partial(run_block, pointwise=triton_kernels(model.device))
        self.counts: dict[tuple[float, int], list[int]] = {}
        self.again = 0
        self._embedded: dict[float, Tensor] = {}  # 1 C
        self._last: tuple[float, int] | None = None
        self._seen: set[tuple[float, int]] = set()

    @classmethod
    def of(cls, model: DynamicBackbone, run: RunOptions) -> PaddedModel:
        return cls(model, plan_memory=run.plan_memory, compile=run.compile, options=run.padded)

    def clear(self) -> None:
        """Drops copies of weights and graphs; the plan and what was measured stay."""
        super().clear()
        self._embedded.clear()
        if self.graphs is not None:
            self.graphs.clear()

    def set_flops_ratio(self, ratio: float) -> None:
        super().set_flops_ratio(ratio)
        self.clear()
        self.counts.clear()
        self._last = None

    @torch.no_grad()
    def plan(self, timesteps: Sequence[float]) -> int:
        """Decides heads and groups, and embeds the timesteps, for all these at once."""
        macs = super().plan(timesteps)
        missing = [t for t in dict.fromkeys(timesteps) if t not in self._embedded]
        if missing:
            e = self.model.embed_timestep(torch.tensor(missing, device=self.device))  # T C
            self._embedded |= dict(zip(missing, e.split(1), strict=True))
        return macs + len(missing) * self.config.timestep_macs()

    def prepare(self, timestep: float, y: Tensor) -> int:
        """Nothing: a call computes its own adaLN."""
        return 0

    def macs(self, routing: Routing) -> Tensor:
        """Of what was on, and not of places that stayed empty."""
        return super().macs(routing) + self.config.depth * self.config.modulation_macs()

    def capacities(self, timestep: float, batch: int) -> Capacities:
        """For the next call at this timestep with a batch of so many."""
        N, L = self.config.num_tokens, self.config.depth
        known = self.counts.get((timestep, batch))
        least = 0 if self.options.capacity is None else math.ceil(self.options.capacity * N)
        if known is not None:
            return tuple(max(least, capacity_for(count, batch, N)) for count in known)
        if least:
            return (least,) * L
        if self._last is not None and self._last[1] == batch:  # neighbouring timesteps differ little
            return tuple(capacity_for(count, batch, N, spare=2) for count in self.counts[self._last])
        return (N,) * L

    def step(self, timestep: float, capacities: Capacities) -> Step:
        """The program of a timestep."""
        self.plan([timestep])
        model = self.model
        if model.allocation is not None:
            model.at_timesteps(torch.tensor([timestep]))
        return Step(
            model,
            self._embedded[timestep],
            [self._parts(i, width) for i, width in enumerate(self._plan[timestep])],
            capacities,
            [None if router.budget is None else router.budget.shift for router in model.token_routers],
            self.run_block,
        )

    def _run(self, x: Tensor, y: Tensor, timestep: float) -> tuple[Tensor, Routing]:
        B, N = len(x), self.config.num_tokens
        capacities, (result, outputs) = self._launch(x, y, timestep)
        if self.options.capacity != 1:
            active = result.active.tolist()  # the one reading, when the whole step is on its way
            if any(count > capacity * B for count, capacity in zip(active, capacities, strict=True)):
                self.again += 1
                if self.graphs is not None:
                    self.graphs.drop(self._key(x, timestep))
                result, outputs = self._call(self.step(timestep, (N,) * self.config.depth), x, y)
                active = result.active.tolist()
            self._last = timestep, B
            self.counts[self._last] = list(map(max, active, self.counts.get(self._last, active)))
        if self._kept is not None:
            self._kept.extend(outputs)
        heads, groups = (
            torch.stack([getattr(width, name) for width in self._plan[timestep]]).expand(-1, B, -1)  # L B H
            for name in ("head_mask", "group_mask")
        )
        return result.out, Routing(heads, groups, result.tokens)

    def _launch(self, x: Tensor, y: Tensor, timestep: float) -> tuple[Capacities, tuple[StepOutput, list[Tensor]]]:
        """The capacities of a call, its result, and where a cache wants them its blocks' outputs."""
        capacities, before = self.capacities(timestep, len(x)), (timestep, len(x)) in self._seen
        self._seen.add((timestep, len(x)))
        if self.graphs is None or not before:  # what never comes back is not worth a graph
            return capacities, self._call(self.step(timestep, capacities), x, y)
        key = self._key(x, timestep)
        recording = self.graphs.get(key)
        if recording is None:
            step = self.step(timestep, capacities)

            def program(x: Tensor, y: Tensor) -> list[Tensor]:
                result, outputs = self._call(step, x, y)
                return [*result, *outputs]

            recording = self.graphs.record(key, capacities, program, step.reads, x, y)
            if recording is None:
                return capacities, self._call(step, x, y)
        # it goes on as it is while its own capacities do
        results = recording.program(x, y)
        return recording.capacities, (StepOutput(*results[:3]), results[3:])

    def _key(self, x: Tensor, timestep: float) -> Hashable:
        """What a recording is one of."""
        return timestep, tuple(x.shape), self._kept is not None

    @property
    def _kept(self) -> list[Tensor] | None:
        """Where blocks leave their outputs, while a cache wants them."""
        return cast(list[Tensor] | None, self.model.blocks[0].kept)

    def _call(self, step: Step, x: Tensor, y: Tensor) -> tuple[StepOutput, list[Tensor]]:
        """A step's result, and what its blocks left where a cache wants that."""
        outer = self._kept
        if outer is None:
            return step(x, y), []
        own: list[list[Tensor]] = [[] for _ in self.model.blocks]  # a compiler sees each block begin with an empty one
        try:
            self._leave_in(own)
            return step(x, y), [output for outputs in own for output in outputs]
        finally:
            self._leave_in([outer] * len(own))

    def _leave_in(self, lists: Sequence[list[Tensor]]) -> None:
        for block, outputs in zip(self.model.blocks, lists, strict=True):
            block.kept = outputs  # type: ignore[assignment]

"""How a model is run: masked, sparse, complete, with merged tokens, or with outputs that are kept between steps; `padded` is
beside this.

Each is an `Executable`, and may wrap another.

Legend: B batch, N tokens, C width, L depth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, overload

import torch
from torch import Tensor, nn

from dydit_cli.devices import free_memory
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.caching import CacheOptions, CacheSchedule, Forecast
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import build_shapes
from dydit_cli.model.macs import ahead_macs, plan_macs, sparse_step_macs, total_macs
from dydit_cli.model.merging import Merging, TokenMerging
from dydit_cli.model.options import EXECUTIONS, Execution, PaddedOptions, RunOptions, WeightAccess
from dydit_cli.model.planning import BlockWidth, Modulations, StepModulation, plan_width
from dydit_cli.model.regions import FORECAST, SLICING, region
from dydit_cli.model.routing import BlockRouting, Routing
from dydit_cli.model.sparse import EAGER, compiled
from dydit_cli.model.weight_cache import Parts, SliceStats, WeightSlices

REUSED = CacheOptions(reuse_skipped=True)
FREE_SHARE = 4  # copies of weights may take a quarter of the memory that is free


class Executable(Protocol):
    """A model as it is run: called as the model is, it says beforehand and afterwards what the work costs.

    `plan`, `prepare` and `macs` return multiply-accumulates in closed form: of deciding a sampling run's widths at all its
    timesteps, of what a call at `timestep` for labels y shares with the next ones, and of a call itself, per sample, given
    what it switched on. `merging` is what is done to tokens before attention. `set_flops_ratio` sets a model of a range to one
    ratio. `clear` drops what was kept, as at the start of a sampling run. `backbone` is the model itself.
    """

    @property
    def backbone(self) -> Backbone: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def merging(self) -> Merging | None: ...

    def plan(self, timesteps: Sequence[float]) -> int: ...

    def prepare(self, timestep: float, y: Tensor) -> int: ...

    def macs(self, routing: Routing) -> Tensor: ...

    def set_flops_ratio(self, ratio: float) -> None: ...

    def clear(self) -> None: ...

    @overload
    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def __call__(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: Literal[True]
    ) -> tuple[Tensor, Routing]: ...


class Wrapper(nn.Module, ABC):
    """An executable around a `model`: what it does not do otherwise is the model's own."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model.eval()

    @property
    def backbone(self) -> Backbone:
        return self.model

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def merging(self) -> Merging | None:
        return None

    def plan(self, timesteps: Sequence[float]) -> int:
        return self.model.plan(timesteps)

    def prepare(self, timestep: float, y: Tensor) -> int:
        return self.model.prepare(timestep, y)

    def macs(self, routing: Routing) -> Tensor:
        return self.model.macs(routing)

    def set_flops_ratio(self, ratio: float) -> None:
        self.model.set_flops_ratio(ratio)

    def clear(self) -> None:
        self.model.clear()

    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: Literal[True]
    ) -> tuple[Tensor, Routing]: ...

    @torch.no_grad()
    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: bool = False
    ) -> Tensor | tuple[Tensor, Routing]:
        """As the model's, for evaluation."""
        out, routing = self.run(x, t, self.model.labels(x, y))
        return (out, routing) if return_routing else out

    @abstractmethod
    def run(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        """The output and what was switched on."""


class SparseModel(Wrapper):
    """Runs a dynamic `model` (evaluation only) without what its routers switch off; call it as you would call the model.

    A batch of mixed timesteps is run in groups of equal t. `access` is how the weights of active heads and groups are taken:
    `views` of the model's own (the default on cpu) or contiguous `copies` (on a GPU), which are kept up to `plan_memory` bytes
    (by default a quarter of what is free). Weights that change under it take effect after `clear`. `compile` fuses the
    elementwise work with torch.compile.
    """

    model: DynamicBackbone

    def __init__(
        self,
        model: DynamicBackbone,
        *,
        access: WeightAccess | None = None,
        plan_memory: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(model)
        plan_memory = free_memory(model.device) // FREE_SHARE if plan_memory is None else plan_memory
        access = access or ("views" if model.device.type == "cpu" else "copies")
        self._slices = WeightSlices(access, plan_memory)
        self._plan: dict[float, list[BlockWidth]] = {}
        self._sites = [self.config.sites(i) for i in range(self.config.depth)]
        self.modulations = Modulations(model)
        self.pointwise = compiled() if compile else EAGER

    @classmethod
    def of(cls, model: DynamicBackbone, run: RunOptions) -> SparseModel:
        """As `EXECUTIONS` makes it."""
        return cls(model, compile=run.compile, plan_memory=run.plan_memory)

    @property
    def stats(self) -> SliceStats:
        """How the weights of active sets were come by."""
        return self._slices.stats

    def clear(self) -> None:
        """Drops copies of weights and what was precomputed; the plan stays."""
        self._slices.clear()
        self.modulations.clear()

    def set_flops_ratio(self, ratio: float) -> None:
        """As the model's; heads and groups are decided anew."""
        super().set_flops_ratio(ratio)
        self._plan.clear()

    def plan(self, timesteps: Sequence[float]) -> int:
        """Decides heads and groups for all these timesteps at once; without it each is decided when it first comes.

        Give them in the order in which they will be run: adaLN of small batches is computed some steps ahead.
        """
        missing = [t for t in dict.fromkeys(timesteps) if t not in self._plan]
        if missing:
            self._plan |= plan_width(self.model, missing)
        return plan_macs(self.model.config, len(missing))

    def prepare(self, timestep: float, y: Tensor) -> int:
        done = self.modulations
        timesteps, rows = done.timesteps, done.rows
        self._modulation(timestep, y)
        return ahead_macs(self.config, done.timesteps - timesteps, done.rows - rows)

    def macs(self, routing: Routing) -> Tensor:
        return sparse_step_macs(routing, self.config)

    @torch.no_grad()
    def _modulation(self, timestep: float, y: Tensor) -> StepModulation:
        self.plan([timestep])
        order = list(self._plan)
        return self.modulations.at(timestep, y, order[order.index(timestep) + 1 :])

    def run(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        timesteps = sorted(set(t.tolist()))
        self.plan(timesteps)
        if len(timesteps) == 1:
            return self._run(x, y, timesteps[0])
        parts = [(t == timestep).nonzero().squeeze(1) for timestep in timesteps]
        results = [self._run(x[part], y[part], timestep) for part, timestep in zip(parts, timesteps, strict=True)]
        back = torch.cat(parts).argsort()
        return torch.cat([out for out, _ in results])[back], Routing.cat([routing for _, routing in results]).select(back)

    def _run(self, x: Tensor, y: Tensor, timestep: float) -> tuple[Tensor, Routing]:
        model, B = self.model, len(x)
        modulation = self._modulation(timestep, y)
        model.at_timesteps(torch.tensor([timestep]))  # for the token routers
        blocks, routed = model.routed_blocks, BlockRouting.none_of(self.config, B, x.device)

        def step(i: int, h: Tensor) -> Tensor:
            width = self._plan[timestep][i]
            parts = self._parts(i, width)
            tokens = blocks[i].forward_sparse(h := model.enter_block(i, h), modulation.blocks[i], parts, self.pointwise)
            routed[i] = BlockRouting(width.head_mask.expand(B, -1), width.group_mask.expand(B, -1), tokens)
            return h

        return model.head(model.run_blocks(model.embed(x), step), modulation.c), Routing.stack(routed)

    def _parts(self, i: int, width: BlockWidth) -> Parts:
        """The weights of what is on in block number `i`."""
        with region(SLICING):
            block = self.model.blocks[i]
            return {
                site.structure: self._slices.parts(i, block, site, getattr(width, site.structure)) for site in self._sites[i]
            }


class MaskedModel:
    """A dynamic model as it is: differentiable."""

    @staticmethod
    def of(model: DynamicBackbone, run: RunOptions) -> DynamicBackbone:
        """As `EXECUTIONS` makes it."""
        return model


class CompleteModel(Wrapper):
    """A dynamic model with every router on (the complete model)."""

    model: DynamicBackbone

    @classmethod
    def of(cls, model: DynamicBackbone, run: RunOptions) -> CompleteModel:
        """As `EXECUTIONS` makes it."""
        return cls(model)

    def run(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        return self.model(x, t, y, return_routing=True, complete=True)


class MergedModel(Wrapper):
    """Runs a static `model` (evaluation only) with the share `ratio` of the tokens merged in every attention (ToMe).

    Which tokens are merged is decided anew in every block. The mean of a token's keys over the heads is one Linear, C -> D, of
    the averaged weights, so that queries, keys and values are made of merged tokens alone. On cuda the mean of three and more
    tokens may differ in its last digit from run to run. Raises `DyditError` for a dynamic model, and a ratio that the tokens
    do not allow.
    """

    order: Tensor
    key_weight: Tensor
    key_bias: Tensor

    def __init__(self, model: Backbone, ratio: float) -> None:
        super().__init__(model)
        self.ratio, self._merging = ratio, Merging.of(model.config, ratio)
        keys = [block.attn.mean_key() for block in model.blocks]  # type: ignore[union-attr, operator]
        self.register_buffer("order", self.merging.order().to(model.device), persistent=False)  # N
        self.register_buffer("key_weight", torch.stack([weight for weight, _ in keys]), persistent=False)  # L D C
        self.register_buffer("key_bias", torch.stack([bias for _, bias in keys]), persistent=False)  # L D

    @property
    def merging(self) -> Merging:
        return self._merging

    def run(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        """The `Routing` is all ones: no head, group or token of an MLP is left out."""
        model = self.model
        c = model.condition(model.embed_timestep(t), y)  # B C

        def step(i: int, h: Tensor) -> Tensor:
            merging = TokenMerging(self.merging, self.order, self.key_weight[i], self.key_bias[i])
            merged: Tensor = model.blocks[i](model.enter_block(i, h), c, merging)
            return merged

        return model.head(model.run_blocks(model.embed(x), step), c), Routing.all_on(self.config, len(x), x.device)

    def macs(self, routing: Routing) -> Tensor:
        return total_macs(routing, self.config, self.merging)


class CachedModel(Wrapper):
    """Runs `inner` (evaluation only) at some steps of a sampling run, and forecasts the other steps' outputs from those.

    `plan` is told the run's timesteps; at one that it was not, and in a batch of several, everything is computed and nothing
    kept. What is kept is of one batch: other labels, as where guidance begins or ends and halves the batch, empty it, and the
    step is computed. It takes at most `plan_memory` bytes (by default what is free), else `DyditError` is raised before.
    """

    def __init__(self, inner: Backbone | Wrapper, options: CacheOptions, *, plan_memory: int | None = None) -> None:
        super().__init__(inner.backbone)
        self.inner, self.options = inner, options
        self._capacity = plan_memory
        self._schedule: CacheSchedule | None = None
        self._labels: Tensor | None = None
        self._kept: list[tuple[int, list[Tensor]]] = []  # the newest first: the step and its outputs

    @property
    def merging(self) -> Merging | None:
        return self.inner.merging

    @property
    def bytes(self) -> int:
        """What is kept now."""
        return sum(h.numel() * h.element_size() for _, outputs in self._kept for h in outputs)

    def clear(self) -> None:
        """Drops what is kept, and what `inner` keeps; the schedule stays."""
        self._labels, self._kept = None, []
        self.inner.clear()

    def set_flops_ratio(self, ratio: float) -> None:
        self.clear()
        if isinstance(self.inner, Wrapper):
            self.inner.set_flops_ratio(ratio)
        else:
            super().set_flops_ratio(ratio)

    def plan(self, timesteps: Sequence[float]) -> int:
        """As `inner`'s, of the steps that are computed. Timesteps that are new are those of a whole run, in its order."""
        if not self._schedule or not self._schedule.steps.keys() >= set(timesteps):
            self._schedule, self._labels, self._kept = self.options.schedule(timesteps), None, []
        schedule = self._schedule
        if schedule is None:
            return self.inner.plan(timesteps)
        return self.inner.plan([t for t in timesteps if schedule.computed[schedule.steps[t]]])

    def prepare(self, timestep: float, y: Tensor) -> int:
        return 0 if self._forecasts(self._step(timestep, y)) else self.inner.prepare(timestep, y)

    def macs(self, routing: Routing) -> Tensor:
        return self.inner.macs(routing) if routing.forecast is None else total_macs(routing, self.config)

    def run(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        timesteps = list(set(t.tolist()))
        step = self._step(timesteps[0], y) if len(timesteps) == 1 else None
        if step is None:
            return self.inner(x, t, y, return_routing=True)
        return self._forecast(x, t, y, step) if self._forecasts(step) else self._compute(x, t, y, step)

    def _step(self, timestep: float, y: Tensor) -> int | None:
        """The step that begins; what is kept of another batch or run is dropped."""
        step = None if self._schedule is None else self._schedule.steps.get(timestep)
        if step is None:
            return None
        same = self._labels is not None and self._labels.shape == y.shape and torch.equal(self._labels, y)
        if not same or step == 0 or (self._kept and step < self._kept[0][0]):
            self._labels, self._kept = y.clone(), []
        return step

    def _forecasts(self, step: int | None) -> bool:
        return bool(self._schedule and step is not None and self._kept and not self._schedule.computed[step])

    def _compute(self, x: Tensor, t: Tensor, y: Tensor, step: int) -> tuple[Tensor, Routing]:
        schedule = self._schedule
        assert schedule is not None
        room = free_memory(self.device) if self._capacity is None else self._capacity
        if not self._kept and (room or self._capacity is not None):  # 0 is also what cannot be told
            schedule.check_room(self.config, len(x), x.element_size(), room)
        # what goes makes room first; a second call at a step takes the place of its first
        del self._kept[schedule.keeps - (not self._kept or self._kept[0][0] != step) :]
        outputs: list[Tensor] = []
        blocks = self.model.blocks if schedule.at == "sublayers" else ()
        try:
            for block in blocks:
                block.kept = outputs  # type: ignore[assignment]
            out, routing = self.inner(x, t, y, return_routing=True)
        finally:
            for block in blocks:
                block.kept = None  # type: ignore[assignment]
        if self._kept and self._kept[0][0] == step:
            del self._kept[0]
        self._kept.insert(0, (step, outputs if schedule.at == "sublayers" else [out.contiguous()]))
        return out, routing

    def _forecast(self, x: Tensor, t: Tensor, y: Tensor, step: int) -> tuple[Tensor, Routing]:
        model, schedule = self.model, self._schedule
        assert schedule is not None
        weights = schedule.weights([computed for computed, _ in self._kept], step)
        values = list(zip(*(outputs for _, outputs in self._kept), strict=True))  # of each output, the newest first

        def forecast(i: int) -> Tensor:
            with region(FORECAST):
                return weighted_sum(values[i], weights)

        routing = Routing.forecast_from(Forecast(schedule.at, len(weights)), self.config, len(x), x.device)
        if schedule.at == "model":
            return forecast(0), routing
        h = model.embed(x)  # B N C
        c = model.condition(model.embed_timestep(t), y)  # B C
        for i, block in enumerate(model.blocks):
            h = block.forward_forecast(model.enter_block(i, h), c, forecast(2 * i), forecast(2 * i + 1))  # type: ignore[operator]
        return model.head(h, c), routing


class ReusingModel(Wrapper):
    """Runs `inner`, a dynamic model masked or sparse (evaluation only), with the MLP's last output for a token that skips it.

    `plan` is told the run's timesteps. At its first step, at a timestep that it was not told, and in a batch of several, tokens
    that skip get nothing, as without. What is kept is of one batch: other labels, as where guidance begins or ends and halves
    the batch, begin anew. It takes at most `plan_memory` bytes (by default what is free), else `DyditError` is raised before.
    Raises `DyditError` for a static model, and one with everything on.
    """

    model: DynamicBackbone

    def __init__(self, inner: Backbone | Wrapper, *, plan_memory: int | None = None) -> None:
        super().__init__(inner.backbone)
        REUSED.check(self.config)
        if isinstance(inner, CompleteModel):
            raise DyditError("reuse-skipped: with everything on no token skips an MLP; leave it out")
        self.inner = inner
        self._capacity = plan_memory
        self._steps: dict[float, int] = {}
        self._step = -1
        self._labels: Tensor | None = None
        self._last: Tensor | None = None  # L B N C

    @property
    def bytes(self) -> int:
        """What is kept now."""
        return 0 if self._last is None else self._last.numel() * self._last.element_size()

    def clear(self) -> None:
        """Drops what is kept, and what `inner` keeps."""
        self._labels = self._last = None
        self.inner.clear()

    def set_flops_ratio(self, ratio: float) -> None:
        self.clear()
        self.inner.set_flops_ratio(ratio)

    def plan(self, timesteps: Sequence[float]) -> int:
        """As `inner`'s. Timesteps that are new are those of a whole run, in its order."""
        if not self._steps.keys() >= set(timesteps):
            self._steps = {timestep: i for i, timestep in enumerate(dict.fromkeys(timesteps))}
            self._labels = self._last = None
        return self.inner.plan(timesteps)

    def prepare(self, timestep: float, y: Tensor) -> int:
        return self.inner.prepare(timestep, y)

    def macs(self, routing: Routing) -> Tensor:
        return self.inner.macs(routing)

    def run(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        timesteps = t.unique().tolist()
        step = self._steps.get(timesteps[0]) if len(timesteps) == 1 else None
        if step is None:
            return self.inner(x, t, y, return_routing=True)
        same = self._labels is not None and self._labels.shape == y.shape and torch.equal(self._labels, y)
        if self._last is None or not same or step == 0 or step < self._step:
            self._labels, self._last = y.clone(), self._nothing(x)
        self._step = step
        blocks = self.model.blocks
        try:
            for block, last in zip(blocks, self._last, strict=True):
                block.last = last
            return self.inner(x, t, y, return_routing=True)
        finally:
            for block in blocks:
                block.last = None  # type: ignore[assignment]

    def _nothing(self, x: Tensor) -> Tensor:
        config, self._last = self.config, None  # what goes makes room first
        room = free_memory(self.device) if self._capacity is None else self._capacity
        if room or self._capacity is not None:  # 0 is also what cannot be told
            REUSED.check_room(config, None, len(x), x.element_size(), room)
        return x.new_zeros(config.depth, len(x), config.num_tokens, config.hidden_size)


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Of tensors of one shape, in float32 at least; one with the weight 1 is itself."""
    if list(weights) == [1.0]:
        return values[0]
    total = values[0].to(torch.promote_types(values[0].dtype, torch.float32)) * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total.add_(value, alpha=weight)
    return total.to(values[0].dtype)


def static_twin(dynamic: DynamicBackbone) -> Backbone:
    """The static model with the same weights, shared."""
    static = build_shapes(dynamic.config.static())
    weights = dynamic.state_dict()
    static.load_state_dict({name: weights[name] for name in static.state_dict()}, assign=True)
    return static.eval()


def executor(
    model: Backbone,
    execution: Execution,
    *,
    compile: bool = False,
    plan_memory: int | None = None,
    tome: float | None = None,
    cache: CacheOptions = CacheOptions(),
    padded: PaddedOptions = PaddedOptions(),
) -> Executable:
    """`model` as it is to be run: `EXECUTIONS` says how a dynamic one can be.

    A static model is returned as it is, or with `tome` as a `MergedModel` that merges this share of its tokens (0 is none).
    `compile` takes torch.compile's help: for the elementwise work of the sparse path, the blocks of the padded one, else for
    the whole model. `plan_memory` is `SparseModel`'s, and that of the `CachedModel` and the `ReusingModel` which wrap any of
    these where the `cache` says so; `padded` is `PaddedModel`'s. Raises `DyditError` for another word, and as `MergedModel`,
    `PaddedModel` and `ReusingModel` do.
    """
    if execution not in EXECUTIONS:
        raise DyditError(f"no execution {execution!r}; choose one of {', '.join(EXECUTIONS)}")
    if padded.given and (execution != "padded" or not isinstance(model, DynamicBackbone)):
        raise DyditError(f"{padded.given} is for a DyDiT in padded execution; add --execution padded, or leave it out")
    runner: Backbone | Wrapper = model
    if tome:
        runner = MergedModel(model, tome)
    elif isinstance(model, DynamicBackbone):
        runner = EXECUTIONS[execution].make(model, RunOptions(compile, plan_memory, padded))
    if compile and not isinstance(runner, SparseModel):
        runner.compile()
    if cache.reuse_skipped:
        if execution == "padded":  # a step that runs again would find outputs of its first try
            raise DyditError("reuse-skipped: is not for padded execution; use --execution sparse, or leave it out")
        runner = ReusingModel(runner, plan_memory=plan_memory)
    return CachedModel(runner, cache, plan_memory=plan_memory) if cache.active else runner

"""What models of every family share: a stack of blocks under one conditioning vector, static or with routers.

A family gives `embed`, `embed_timestep`, `condition`, `head` and its blocks; a block with routers computes itself dense
under masks (`forward_routed`) and with the skipped work left out (`forward_sparse`).

Legend: B batch, N tokens, C width, L depth, H heads (and channel groups).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, cast, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.macs import total_macs
from dydit_cli.model.merging import Merging
from dydit_cli.model.routers import (
    HEAD_AND_GROUP_BIAS,
    TOKEN_BIAS,
    GateNoise,
    TokenRouter,
    WidthRouter,
    budget_mix,
)
from dydit_cli.model.routing import BlockRouting, Routing
from dydit_cli.model.sparse import Pointwise
from dydit_cli.model.weight_cache import Parts

Through = Callable[[Tensor, Callable[[int, Tensor], Tensor]], Tensor]


class RoutedBlock(Protocol):
    """A block with routers, as masks, plans, counters and sparse execution see it, whatever its family."""

    @property
    def head_router(self) -> WidthRouter: ...

    @property
    def group_router(self) -> WidthRouter: ...

    @property
    def token_router(self) -> TokenRouter: ...

    def modulation(self, c: Tensor) -> Tensor:
        """adaLN for conditioning c (M C): M K, the block's shifts, scales and gates side by side, 1 added to the scales."""

    def forward_routed(
        self, x: Tensor, c: Tensor, e: Tensor, noise: float | tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, BlockRouting]:
        """Dense under masks. x: B N C; c: B C; e: B C, the timestep embedding alone; noise: a scale, or that of heads,
        groups and tokens."""

    def forward_sparse(
        self, x: Tensor, modulation: Tensor, parts: Parts, pointwise: Pointwise, room: int | None = None
    ) -> Tensor:
        """Adds the block's work to x (B N C) in place, `parts` being the weights of what is on. Returns the token mask, B N.

        The MLP sees the active tokens of the batch, or `room` places for them, in which more do not fit.
        """


class Backbone(nn.Module, ABC):
    """A static model. It predicts what its process says (noise, a velocity, ...) from a noisy input, a timestep and a class."""

    config: ModelConfig
    blocks: nn.ModuleList

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.outputs: list[Tensor] | None = None  # a list, while it is there, is given what every block returns
        self.through: Through | None = None  # what calls the blocks, where it is not the model itself

    # what a family gives

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """B C S S (a video: B F C S S) -> B N C, positions added."""

    @abstractmethod
    def embed_timestep(self, t: Tensor) -> Tensor:
        """(B,), on the cpu or on the model's device -> B C: what width routers see."""

    @abstractmethod
    def condition(self, e: Tensor, y: Tensor) -> Tensor:
        """The timestep embedding (... C) with the labels (...) added: what adaLN sees."""

    @abstractmethod
    def head(self, h: Tensor, c: Tensor) -> Tensor:
        """B N C, B C -> B Cout S S (a video: B F Cout S S)."""

    def enter_block(self, i: int, h: Tensor) -> Tensor:
        """What block i sees of h (B N C), the output of what is before it."""
        return h

    # what all have

    def set_flops_ratio(self, ratio: float) -> None:
        """Of a model of a range. Raises `DyditError` for a static one."""
        raise DyditError("is a static model, which has no FLOPs ratio to set; convert it first: dydit convert SRC DST")

    def labels(self, x: Tensor, y: Tensor | None) -> Tensor:
        """y (B,), or for a model without classes, which takes none, zeros; raises `DyditError` where labels are missing."""
        if y is not None:
            return y
        if self.config.num_classes:
            raise DyditError(
                f"the model has {self.config.num_classes} classes: give labels y, {self.config.null_class} for none"
            )
        return torch.zeros(len(x), dtype=torch.long, device=x.device)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: Literal[True]
    ) -> tuple[Tensor, Routing]: ...

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, return_routing: bool = False
    ) -> Tensor | tuple[Tensor, Routing]:
        """x: B Cin S S, or of videos B F Cin S S; t: B timesteps; y: B labels, `config.null_class` for none -> as x, of Cout
        channels.

        A model without classes takes no y. With `return_routing` also the `Routing`, all ones for a static model.
        """
        c = self.condition(self.embed_timestep(t), self.labels(x, y))  # B C

        def step(i: int, h: Tensor) -> Tensor:
            return self.keep(self.run_block(self.blocks[i], self.enter_block(i, h), c))

        out = self.head(self.run_blocks(self.embed(x), step), c)
        return (out, Routing.all_on(self.config, x.shape[0], x.device)) if return_routing else out

    @property
    def backbone(self) -> Backbone:
        """The model itself, as of an executable that wraps one."""
        return self

    def run_blocks(self, h: Tensor, step: Callable[[int, Tensor], Tensor]) -> Tensor:
        """h (B N C) through all blocks: `step(i, h)` returns what block i makes of it. `through`, where there is one, calls
        them, or leaves some out."""
        if self.through is not None:
            return self.through(h, step)
        for i in range(len(self.blocks)):
            h = step(i, h)
        return h

    def keep(self, h: Tensor) -> Tensor:
        """h: B N C, what a block returned, as it is."""
        if self.outputs is not None:
            self.outputs.append(h)
        return h

    def run_block(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """`block(*inputs)`; with `checkpointing` its activations are computed again in the backward pass, not kept."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def num_parameters(self) -> int:
        """As the papers count: fixed positions included."""
        return sum(p.numel() for p in self.parameters())

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    # an executable, as `execution.Executable` says: a dense model prepares nothing

    @property
    def merging(self) -> Merging | None:
        return None

    def plan(self, timesteps: Sequence[float]) -> int:
        return 0

    def prepare(self, timestep: float, y: Tensor) -> int:
        return 0

    def clear(self) -> None:
        pass

    def macs(self, routing: Routing) -> Tensor:
        """All of it runs, whatever the masks: (B,) int64."""
        everything = Routing.all_on(self.config, routing.batch)
        return total_macs(everything, self.config)


class DynamicBackbone(Backbone):
    """A model with routers, to be mixed into a family's static one (arXiv 2410.03456).

    In training mode masks are drawn (`gumbel_noise` scales the noise, 1 is the paper's) and carry straight-through
    gradients; in evaluation they are deterministic. Routers start fully on, so that a fresh model computes what the static
    model computes.
    """

    config: RoutedConfig

    def __init__(self, config: RoutedConfig) -> None:
        super().__init__(config)
        self.gumbel_noise = 1.0
        self.allocation: tuple[Tensor, Tensor] | None = None  # timesteps and what the routers are set to at them
        self.reset_routers()

    @property
    def routed_blocks(self) -> list[RoutedBlock]:
        return cast(list[RoutedBlock], list(self.blocks))

    @property
    def width_routers(self) -> list[WidthRouter]:
        return [router for block in self.routed_blocks for router in (block.head_router, block.group_router)]

    @property
    def token_routers(self) -> list[TokenRouter]:
        return [block.token_router for block in self.routed_blocks]

    @property
    def routers(self) -> list[WidthRouter | TokenRouter]:
        return [*self.width_routers, *self.token_routers]

    def reset_routers(self, bias: float = HEAD_AND_GROUP_BIAS, token_bias: float = TOKEN_BIAS) -> None:
        """Xavier weights and these biases: the higher, the longer everything stays on (paper: 15 and 35)."""
        for block in self.routed_blocks:
            block.head_router.reset(bias)
            block.group_router.reset(bias)
            block.token_router.reset(token_bias)

    def token_biases(self) -> dict[str, nn.Parameter]:
        """The bias of every token router's logits, by its full name."""
        return self._named(router.last for router in self.token_routers)

    def router_biases(self) -> dict[str, nn.Parameter]:
        """The bias of every router's logits, by its full name."""
        return {**self._named(router.last for router in self.width_routers), **self.token_biases()}

    def set_flops_ratio(self, ratio: float) -> None:
        """Sets the routers of a model of a range to one FLOPs ratio of attention and MLP (0 to 1), which by its table a
        sampling run then is. Raises `DyditError` for one out of its range, and for a model of one ratio."""
        setting = torch.tensor([self.config.setting_for(ratio)], device=self.device)
        self.allocation = None
        with torch.no_grad():
            self.set_routers(setting)

    def set_allocation(self, pairs: Sequence[tuple[float, float]]) -> None:
        """Sets the routers of a model of a range to FLOPs ratios by timestep: at each the ratio of the nearest of `pairs` of a
        timestep and a ratio."""
        settings = [self.config.setting_for(ratio) for _, ratio in pairs]
        self.allocation = (torch.tensor([t for t, _ in pairs]), torch.tensor(settings))  # each K

    def at_timesteps(self, t: Tensor) -> None:
        """t: B, of the batch to come; where ratios are set by timestep, the routers are set to theirs."""
        if self.allocation is not None:
            points, settings = (values.to(t.device) for values in self.allocation)
            with torch.no_grad():
                self.set_routers(settings[(t[:, None] - points).abs().argmin(dim=1)])

    def set_routers(self, settings: Tensor) -> None:
        """Sets the routers to settings on the scale of the budgets: (B,), one for each sample of the batches to come, or (1,)
        for all. An infinite one is everything on."""
        mix = budget_mix(self.config.budgets, settings)
        for router in self.routers:
            if router.budget is not None:
                router.budget.set(mix)

    def _named(self, linears: Iterable[nn.Linear]) -> dict[str, nn.Parameter]:
        biases = {id(linear.bias) for linear in linears}
        return {name: p for name, p in self.named_parameters() if id(p) in biases}

    @overload
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        return_routing: Literal[False] = False,
        complete: bool = False,
        gate_noise: GateNoise | None = None,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        return_routing: Literal[True],
        complete: bool = False,
        gate_noise: GateNoise | None = None,
    ) -> tuple[Tensor, Routing]: ...

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        return_routing: bool = False,
        complete: bool = False,
        gate_noise: GateNoise | None = None,
    ) -> Tensor | tuple[Tensor, Routing]:
        """As `Backbone.forward`; with `complete` every router is on, whatever its logits (the complete model).

        `gate_noise` takes the place of the noise that a model in training draws for itself.
        """
        if complete:
            return super().forward(x, t, y, return_routing=True) if return_routing else super().forward(x, t, y)
        noise = self.gumbel_noise if self.training else 0.0
        self.at_timesteps(t)
        e = self.embed_timestep(t)  # B C
        c = self.condition(e, self.labels(x, y))  # B C
        blocks, routed = self.routed_blocks, BlockRouting.none_of(self.config, len(x), x.device)

        def step(i: int, h: Tensor) -> Tensor:
            own = noise if gate_noise is None else (gate_noise.heads[i], gate_noise.groups[i], gate_noise.tokens[i])
            h, routed[i] = self.run_block(blocks[i].forward_routed, self.enter_block(i, h), c, e, own)
            return self.keep(h)

        out = self.head(self.run_blocks(self.embed(x), step), c)
        return (out, Routing.stack(routed)) if return_routing else out

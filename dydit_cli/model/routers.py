"""The three routers of DyDiT (arXiv 2410.03456, sections 3.2 and 3.3) and the hard gate that they share.

Legend: B batch, N tokens, C width, H heads (and channel groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.config import RoutedConfig

# The released models start fully on: sigmoid(15) and sigmoid(35) round to 1.
HEAD_AND_GROUP_BIAS = 15.0

TOKEN_BIAS = 35.0

T = TypeVar("T")
Noise = float | Tensor  # a scale of noise that the gate draws itself, or the noise to add, shaped as the logits


def logistic(u: Tensor) -> Tensor:
    """Uniform samples to logistic ones: the difference of two Gumbel samples."""
    return torch.logit(u.clamp_(1e-7, 1 - 1e-7))


@dataclass(frozen=True)
class GateNoise:
    """The noise of one forward pass in training, drawn outside the model. heads, groups: L B R logits; tokens: L B N.

    A model that draws its own depends on how a batch is cut over processes and micro-batches; with this it does not.
    """

    heads: Tensor
    groups: Tensor
    tokens: Tensor

    @classmethod
    def draw(cls, config: RoutedConfig, batch: int, generator: torch.Generator, scale: float = 1.0) -> GateNoise:
        """Logistic samples times `scale`, float32 on the cpu, in the order in which a model draws its own."""
        shapes = ((batch, config.router_rows), (batch, config.router_rows), (batch, config.num_tokens))
        blocks = [[logistic(torch.rand(shape, generator=generator)) for shape in shapes] for _ in range(config.depth)]
        heads, groups, tokens = (scale * torch.stack([block[i] for block in blocks]) for i in range(3))
        return cls(heads, groups, tokens)

    def select(self, samples: slice) -> GateNoise:
        """The part of the batch that `samples` cuts out."""
        return GateNoise(self.heads[:, samples], self.groups[:, samples], self.tokens[:, samples])

    def to(self, device: torch.device) -> GateNoise:
        return GateNoise(*(noise.to(device, non_blocking=True) for noise in (self.heads, self.groups, self.tokens)))


def gate(logits: Tensor, temperature: float, noise: Noise) -> Tensor:
    """Logits to a mask that is exactly 0 or 1, same shape.

    `noise` 0 is evaluation: sigmoid(logit) > 0.5, which is logit > 0. Above 0, a logistic sample (the difference of two
    Gumbel samples) times `noise` is added first, and the gradient is that of sigmoid(. / temperature)
    (straight-through Gumbel-sigmoid). A tensor is added as it is.
    """
    if isinstance(noise, Tensor):
        logits = logits + noise.to(logits.dtype)
    elif noise > 0:
        logits = logits + noise * logistic(torch.rand_like(logits, dtype=torch.float32)).to(logits.dtype)
    elif not (torch.is_grad_enabled() and logits.requires_grad):
        return (logits > 0).to(logits.dtype)
    hard = (logits > 0).to(logits.dtype)
    soft = torch.sigmoid(logits / temperature)
    # soft - soft.detach() is exactly 0, so that the mask stays exactly 0 or 1
    return hard + (soft - soft.detach())


def init_linear(linear: nn.Linear, bias: float = 0.0) -> None:
    """Xavier-uniform weights, as everywhere in DiT, and a constant bias."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.constant_(linear.bias, bias)


THRESHOLDS = 10.0  # from the first head's to the last one's

ON = 1e4  # added to a logit, it outweighs all others


class BudgetTable(nn.Module):
    """What a FLOPs ratio adds to a router's logits, in a model that has a range of them.

    It has a row for each of the configuration's `budgets` and is linear between them. It starts at zero, so that a model of one
    ratio becomes one of a range without computing anything else.
    """

    def __init__(self, config: RoutedConfig, rows: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(len(config.budgets), rows))  # K R
        self.shift: Tensor | None = None  # B R, or 1 R for all samples alike

    def set(self, mix: Tensor) -> None:
        """mix: B K+1 or 1 K+1, as `budget_mix` has it. The table's gradient goes through what is set."""
        mix = mix.to(self.table)
        self.shift = mix[:, :-1] @ self.table + ON * mix[:, -1:]

    def forward(self, logits: Tensor) -> Tensor:
        """B R (B N) -> B R (B N); as they are where nothing is set."""
        return logits if self.shift is None else logits + self.shift.to(logits)


def budget_mix(budgets: Sequence[float], settings: Tensor) -> Tensor:
    """How much of each of K rising budgets settings (B,) have: B K+1. Beyond the ends the nearest two are continued; the last
    column is 1 where the setting is infinite, which is everything on."""
    everything = settings.isinf()
    points = torch.tensor(budgets, device=settings.device, dtype=settings.dtype)
    settings = settings.where(~everything, points[-1])
    left = (torch.searchsorted(points, settings, right=True) - 1).clamp(0, len(budgets) - 2)  # B
    above = (settings - points[left]) / (points[left + 1] - points[left])
    mix = settings.new_zeros(len(settings), len(budgets) + 1)
    mix.scatter_(1, left[:, None], (1 - above)[:, None]).scatter_(1, left[:, None] + 1, above[:, None])
    mix[:, -1] = everything.to(mix)
    return mix


def budget_table(config: RoutedConfig, rows: int) -> BudgetTable | None:
    """None in a model of one ratio."""
    return BudgetTable(config, rows) if config.budgets else None


class WidthRouter(nn.Module):
    """Timestep embedding to a logit per head (or channel group); where the first is always on it has none.

    Another kind gives its layers, `logits`, `last` and `macs`.
    """

    budget: BudgetTable | None
    highest = 0.0  # a logit over it switches everything on

    def __init__(self, config: RoutedConfig) -> None:
        super().__init__()
        self.always_on, self.width = config.always_on, config.router_rows
        self.router = nn.Linear(config.hidden_size, self.rows(config))
        self.budget = budget_table(config, self.rows(config))

    @classmethod
    def rows(cls, config: RoutedConfig) -> int:
        """How many logits it has."""
        return config.router_rows

    @classmethod
    def macs(cls, config: RoutedConfig) -> int:
        """Of one router, per timestep."""
        return config.hidden_size * cls.rows(config)

    @property
    def last(self) -> nn.Linear:
        """The layer whose bias moves the thresholds."""
        return self.router

    def logits(self, e: Tensor) -> Tensor:
        """e: B C -> B R."""
        return self.router(e)

    def reset(self, bias: float) -> None:
        """Xavier weights, and `bias` in the last layer."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init_linear(layer, bias if layer is self.last else 0.0)

    @torch.no_grad()
    def shrink(self, e: Tensor) -> None:
        """Makes the last weights smaller where with the embeddings `e` (M C) they outweigh the bias: half of it is left.

        Not a higher bias, since a gate's gradient fades with its logit: which heads go off would be left to chance.
        """
        weight, bias = self.last.weight, self.last.bias
        lowest, margin = (self.logits(e) - bias).min(), bias.min() - self.highest
        if margin > 0 and lowest + margin <= 0:
            weight.mul_(0.5 * margin / -lowest)

    def forward(self, e: Tensor, temperature: float, noise: Noise) -> Tensor:
        """e: B C, the timestep embedder's output before the label is added -> mask B H."""
        logits = self.logits(e)
        if self.budget is not None:
            logits = self.budget(logits)
        mask = self.gates(logits, temperature, noise)  # B H-1, or B H
        return torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1) if self.always_on else mask

    def gates(self, logits: Tensor, temperature: float, noise: Noise) -> Tensor:
        """logits: B R -> B H, or B H-1 where the first is always on."""
        return gate(logits, temperature, noise)


class PrefixRouter(WidthRouter):
    """How many of the ranked heads (or groups) run: one logit, over a threshold of each, so that the first ones are on.

    What runs at less compute is then part of what runs at more, and always one run of weights.
    """

    highest = THRESHOLDS

    @classmethod
    def rows(cls, config: RoutedConfig) -> int:
        return 1

    def reset(self, bias: float) -> None:
        """`bias` is over the last one's threshold, as that of other routers is over 0."""
        super().reset(bias + self.highest)

    def gates(self, logits: Tensor, temperature: float, noise: Noise) -> Tensor:
        noise = noise[:, :1] if isinstance(noise, Tensor) else noise
        thresholds = torch.linspace(0, self.highest, self.width, device=logits.device)
        return gate(logits - thresholds, temperature, noise)


class TokenRouter(nn.Module):
    """Tokens to one logit each: Linear C -> C/16, ReLU, Linear -> 1."""

    budget: BudgetTable | None

    def __init__(self, config: RoutedConfig) -> None:
        super().__init__()
        hidden = config.token_router_hidden
        self.mlp_head = nn.Sequential(nn.Linear(config.hidden_size, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.budget = budget_table(config, 1)

    @staticmethod
    def macs(config: RoutedConfig) -> int:
        """Per token."""
        return (config.hidden_size + 1) * config.token_router_hidden

    @property
    def first(self) -> nn.Linear:
        """The layer that sees a token."""
        return cast(nn.Linear, self.mlp_head[0])

    @property
    def last(self) -> nn.Linear:
        """The layer whose bias moves the threshold."""
        return cast(nn.Linear, self.mlp_head[2])

    def logits(self, x: Tensor) -> Tensor:
        """x: B N C -> B N."""
        logits: Tensor = self.mlp_head(x).squeeze(-1)
        return logits if self.budget is None else self.budget(logits)

    def reset(self, bias: float) -> None:
        """Xavier weights, and `bias` in the last layer."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init_linear(layer, bias if layer is self.last else 0.0)

    def forward(self, x: Tensor, temperature: float, noise: Noise) -> Tensor:
        """x: B N C, after the attention residual and before norm2 -> mask B N."""
        return gate(self.logits(x), temperature, noise)


class LayerRouter(TokenRouter):
    """An ablation: the mean of an image's logits decides for all of its tokens."""

    def forward(self, x: Tensor, temperature: float, noise: Noise) -> Tensor:
        logits = self.logits(x)  # B N
        noise = noise[:, :1] if isinstance(noise, Tensor) else noise
        return gate(logits.mean(dim=1, keepdim=True), temperature, noise).expand_as(logits)


# by the names that a configuration has them under; a new kind is an entry here
WIDTH_ROUTERS: dict[str, type[WidthRouter]] = {"linear": WidthRouter, "prefix": PrefixRouter}
TOKEN_ROUTERS: dict[str, type[TokenRouter]] = {"tokens": TokenRouter, "layers": LayerRouter}


def width_router(config: RoutedConfig) -> type[WidthRouter]:
    """The kind of the configuration's `width_routing`; raises `DyditError` for an unknown one."""
    return _known(WIDTH_ROUTERS, "width_routing", config.width_routing)


def token_router(config: RoutedConfig) -> type[TokenRouter]:
    """The kind of the configuration's `token_routing`; raises `DyditError` for an unknown one."""
    return _known(TOKEN_ROUTERS, "token_routing", config.token_routing)


def _known(registry: dict[str, T], name: str, value: str) -> T:
    if value not in registry:
        raise DyditError(f"model configuration: {name} is {value!r}; use one of {', '.join(map(repr, registry))}")
    return registry[value]

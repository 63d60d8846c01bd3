"""Width routers that begin where a run should end: on where a head or channel group matters at a timestep, off elsewhere.

Routers that begin all on spend a short run's first steps on being switched off. What a head adds to the residual stream,
at each timestep, says beforehand which of them to keep; training goes on from there. Token routers begin all on.

Legend: B batch, N tokens, C width, L depth, H heads (and channel groups), D head width, T timesteps, R a router's rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from dydit_cli.data.dataset import Dataset
from dydit_cli.diffusion.process import process_of
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone, RoutedBlock
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.macs import attention_macs, routed_macs
from dydit_cli.model.routers import TOKEN_BIAS, TokenRouter
from dydit_cli.model.sites import Site
from dydit_cli.train.recipe import Recipe, RoutingRecipe

SPREAD = 50.0  # the standard deviation of random logits: far more than the training noise's

CALIBRATION_IMAGES = 64  # with which random token routers are set


@dataclass(frozen=True)
class _Threshold:
    """A fixed last layer whose bias decides how much is on; `logits` (M R) are what it says without bias, sorted."""

    linear: nn.Linear
    logits: Tensor

    @torch.no_grad()
    def set(self, share: float) -> None:
        """Puts the bias where `share` of the logits are above 0."""
        rows = len(self.logits)
        below = round((1 - share) * rows)
        if below <= 0:
            bias = SPREAD - self.logits[0]  # so that no noise switches anything off
        elif below >= rows:
            bias = -SPREAD - self.logits[-1]
        else:
            bias = -(self.logits[below - 1] + self.logits[below]) / 2
        self.linear.bias.copy_(bias)


class FixedRouters:
    """Fixes the routers of `model` that `recipe` does not learn, and lets random ones follow the target ratio.

    Random width routers are a random function of the timestep, random token routers one of the content, and each head,
    group and block's tokens are on as often as the target asks of all kinds alike. `data` show what the tokens are like.
    Raises `DyditError` where the recipe wants whole layers skipped and the model's configuration does not.
    """

    def __init__(self, model: DynamicBackbone, recipe: Recipe, data: Dataset) -> None:
        self.model, self.routing = model, recipe.routing
        self._random: list[tuple[_Threshold, bool]] = []  # and whether it stands for width
        width, tokens = recipe.routing.width, recipe.routing.tokens
        if tokens == "layers" and model.config.token_routing != "layers":
            raise DyditError("routing.tokens is layers, and the model's token_routing is tokens; begin with dydit finetune")
        if width == "random":
            check_linear(model.config, "routing.width random")
        generator = torch.Generator().manual_seed(recipe.train.seed)
        for block in model.routed_blocks:
            for router in (block.head_router.last, block.group_router.last):
                if width == "off":
                    _switch_on(router)
                elif width == "random":
                    self._random.append((_random_width(model, router, generator), True))
            if width in ("off", "random"):
                _fix(block.head_router)
                _fix(block.group_router)
            if tokens == "off":
                _switch_on(block.token_router.last)
            if tokens in ("off", "random"):
                _fix(block.token_router)
        if tokens == "random":
            self.follow(recipe.routing.flops_ratio)  # tokens are looked at as they will be in the end
            share = common_share(model.config, recipe.routing, recipe.routing.flops_ratio)
            self._random += [(threshold, False) for threshold in _random_tokens(model, data, generator, share)]

    def follow(self, target: float) -> None:
        """Sets the random routers for this ratio."""
        share = common_share(self.model.config, self.routing, target)
        H = self.model.config.num_heads
        routed = (share * H - 1) / (H - 1) if self.model.config.always_on else share
        for threshold, is_width in self._random:
            threshold.set(max(0.0, routed) if is_width else share)


def check_linear(config: RoutedConfig, what: str) -> None:
    """Raises `DyditError` for width routers whose weights cannot be solved for."""
    if config.width_routing != "linear":
        raise DyditError(f"{what} needs linear width routers, and the model's are {config.width_routing!r}; leave it out")


def common_share(config: RoutedConfig, routing: RoutingRecipe, ratio: float) -> float:
    """The share p at which all that is not always on comes to `ratio`; with both kinds p f_attn + p^2 f_mlp = ratio of both."""
    a = sum(attention_macs(config, i) for i in range(config.depth))
    m = routed_macs(config) - a
    if routing.tokens == "off":
        return ratio
    if routing.width == "off":
        return max(0.0, (ratio * (a + m) - a) / m)
    return (math.sqrt(a * a + 4 * m * ratio * (a + m)) - a) / (2 * m)


def _fix(router: nn.Module) -> None:
    """Nothing learns from what `router` decides: not its weights, and not what it looks at."""
    router.requires_grad_(False)
    router.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(), *inputs[1:]))


def _switch_on(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, TOKEN_BIAS)


@torch.no_grad()
def _random_width(model: DynamicBackbone, linear: nn.Linear, generator: torch.Generator) -> _Threshold:
    linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
    linear.bias.zero_()
    # timesteps' embeddings have much in common, which decides nothing
    logits = linear(model.embed_timestep(process_of(model.config).every().to(linear.weight.device)))  # T R
    scale = SPREAD / logits.std(dim=0).clamp(min=1e-6)  # R
    linear.weight.mul_(scale[:, None])
    return _Threshold(linear, (logits * scale).sort(dim=0).values)


@torch.no_grad()
def _random_tokens(model: DynamicBackbone, data: Dataset, generator: torch.Generator, share: float) -> list[_Threshold]:
    """One threshold for each block, set for `share` in the order of the blocks, since each sees what the others leave."""
    found: list[_Threshold] = []

    def look(router: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(router, TokenRouter)
        first, last = router.first, router.last
        for linear in (first, last):
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / math.sqrt(linear.in_features))
            linear.bias.zero_()
        logits = router.mlp_head(inputs[0]).flatten()  # B * N
        scale = SPREAD / logits.std().clamp(min=1e-6)
        last.weight.mul_(scale)
        found.append(_Threshold(last, (logits * scale).sort().values[:, None]))
        found[-1].set(share)

    index = torch.linspace(0, len(data) - 1, CALIBRATION_IMAGES).long()
    x0, y = data.take(index, torch.zeros_like(index) if data.varied else None)
    process, device = process_of(model.config), model.device
    t = process.draw(len(index), 4, generator)
    noise = torch.randn(x0.shape, generator=generator)
    hooks = [block.token_router.register_forward_pre_hook(look) for block in model.routed_blocks]
    model.eval()(process.add_noise(x0, t, noise).to(device), t.to(device), y.to(device))
    for hook in hooks:
        hook.remove()
    return found


TIMESTEPS = 25  # measured; between them importance is interpolated

MEASURED_IMAGES = 32

LOGIT_SPREAD = 3.0  # as far apart as the training noise, whose standard deviation is 1.8, can still reorder

RIDGE = 1e-3


@torch.no_grad()
def measure_importance(model: DynamicBackbone, data: Dataset, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each head and each channel group adds to the residual stream with everything on, over the stream's own norm.

    Returns the timesteps (T,), and T x L x H for heads and for groups, float32 on the cpu.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.linspace(0, len(data) - 1, MEASURED_IMAGES).long()
    x0, y = data.take(index, torch.zeros_like(index) if data.varied else None)
    device, process = model.device, process_of(model.config)
    every = process.every()
    timesteps = torch.linspace(0, len(every) - 1, TIMESTEPS).long()  # their places among all
    watches = [_Watch(model.config, i, block) for i, block in enumerate(model.blocks)]
    training = model.training
    model.eval()
    heads, groups = [], []
    for t in every[timesteps]:
        t = t.expand(len(index))
        x_t = process.add_noise(x0, t, torch.randn(x0.shape, generator=generator))
        model(x_t.to(device), t.to(device), y.to(device), complete=True)
        heads.append(torch.stack([watch.heads for watch in watches]))  # L H
        groups.append(torch.stack([watch.groups for watch in watches]))
    for watch in watches:
        watch.remove()
    model.train(training)
    return timesteps, torch.stack(heads).cpu(), torch.stack(groups).cpu()


class _Watch:
    """Measures during one block's forward passes; `heads` and `groups` (H,) are those of the last one."""

    def __init__(self, config: ModelConfig, i: int, block: nn.Module) -> None:
        self.heads = self.groups = self._stream = self._modulation = torch.empty(0)
        self._width = config.hidden_size
        self._hooks = [block.register_forward_pre_hook(self._before)]
        for site in config.sites(i):
            output = block.get_submodule(site.output)
            self._hooks.append(output.register_forward_pre_hook(partial(self._measure, site)))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, c = inputs[:2]
        self._stream = x.norm()
        self._modulation = cast(RoutedBlock, block).modulation(c).view(len(c), -1, self._width)  # B K C

    def _measure(self, site: Site, output: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        gate, weight = self._modulation[:, site.gate].unsqueeze(1), output.get_parameter("weight")  # B 1 C; C A
        widths = [size * site.unit for size in site.sizes]
        parts = zip(inputs[0].split(widths, dim=2), weight.split(widths, dim=1), strict=True)
        added = torch.stack([(own @ w.t() * gate).norm() for own, w in parts])
        setattr(self, site.structure, added / self._stream)


@torch.no_grad()
def start_by_importance(model: DynamicBackbone, recipe: Recipe, data: Dataset) -> None:
    """Sets the width routers of `model` so that, of all heads, groups and timesteps, those that add least are off; as many
    as the recipe's FLOPs ratio asks for where tokens are to be skipped alike."""
    config = model.config
    check_linear(config, "routing.start importance")
    timesteps, heads, groups = measure_importance(model, data, recipe.train.seed)
    share = common_share(config, recipe.routing, recipe.routing.flops_ratio)
    if config.always_on:
        share = max(0.0, (share * config.num_heads - 1) / (config.num_heads - 1))
        heads, groups = heads[:, :, 1:], groups[:, :, 1:]
    e = model.embed_timestep(process_of(config).every().to(model.device)).float().cpu()  # T C
    inputs = torch.cat([e, torch.ones(len(e), 1)], dim=1)  # T C+1
    blocks = model.routed_blocks
    for importance, routers in (
        (heads, [block.head_router for block in blocks]),
        (groups, [block.group_router for block in blocks]),
    ):
        score = _interpolate(timesteps, importance.clamp_min(1e-12).log(), len(e))  # T L R
        logits = (LOGIT_SPREAD * (score - _quantile(score, 1 - share)) / score.std()).flatten(1)  # T LR
        solved = _ridge(inputs.double(), logits.double()).float()  # C+1 LR
        for i, router in enumerate(routers):
            own = solved.view(solved.shape[0], config.depth, -1)[:, i]  # C+1 R
            router.last.weight.copy_(own[:-1].t())
            router.last.bias.copy_(own[-1])


def _interpolate(places: Tensor, values: Tensor, count: int) -> Tensor:
    """values (T ...) at `places`, linearly at all of `count` places."""
    every = torch.arange(count)
    right = torch.searchsorted(places, every).clamp(1, len(places) - 1)
    low, high = places[right - 1], places[right]
    part = ((every - low) / (high - low)).view(-1, *[1] * (values.dim() - 1))
    return values[right - 1] * (1 - part) + values[right] * part


def _quantile(values: Tensor, share: float) -> Tensor:
    return values.flatten().kthvalue(max(1, round(share * values.numel()))).values


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """Least squares with a small penalty: e(t) has directions that hardly move, which would get huge weights."""
    gram = inputs.t() @ inputs
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved: Tensor = torch.linalg.solve(gram + penalty, inputs.t() @ targets)
    return solved

"""Width routers that begin where a run should end: on where a head or channel group matters at a timestep, off elsewhere.

Routers that begin all on spend a short run's first steps on being switched off. What a head adds to the residual stream,
at each timestep, says beforehand which of them to keep; training goes on from there. Token routers begin all on.

Legend: B batch, N tokens, C width, L depth, H heads (and channel groups), D head width, T timesteps, R a router's rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dydit_cli.data.dataset import Dataset
from dydit_cli.diffusion.schedule import TRAIN_STEPS, linear_schedule
from dydit_cli.errors import DyditError
from dydit_cli.flops.analytic import attention_macs, mlp_macs
from dydit_cli.model.config import DyDiTConfig
from dydit_cli.model.dydit import DyDiT, DynamicBlock
from dydit_cli.model.routers import TOKEN_BIAS, TokenRouter
from dydit_cli.train.batch import stratified_timesteps
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

    def __init__(self, model: DyDiT, recipe: Recipe, data: Dataset) -> None:
        self.model, self.routing = model, recipe.routing
        self._random: list[tuple[_Threshold, bool]] = []  # and whether it stands for width
        width, tokens = recipe.routing.width, recipe.routing.tokens
        if tokens == "layers" and model.config.token_routing != "layers":
            raise DyditError("routing.tokens is layers, and the model's token_routing is tokens; begin with dydit finetune")
        generator = torch.Generator().manual_seed(recipe.train.seed)
        blocks = [block for block in model.blocks if isinstance(block, DynamicBlock)]
        for block in blocks:
            for router in (block.attn_rate.router, block.mlp_rate.router):
                if width == "off":
                    _switch_on(router)
                elif width == "random":
                    self._random.append((_random_width(model, router, generator), True))
            if width in ("off", "random"):
                _fix(block.attn_rate)
                _fix(block.mlp_rate)
            if tokens == "off":
                _switch_on(_last(block.token_selection))
            if tokens in ("off", "random"):
                _fix(block.token_selection)
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


def common_share(config: DyDiTConfig, routing: RoutingRecipe, ratio: float) -> float:
    """The share p at which all that is not always on comes to `ratio`; with both kinds p f_attn + p^2 f_mlp = ratio of both."""
    a, m = attention_macs(config), mlp_macs(config)
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


def _last(router: TokenRouter) -> nn.Linear:
    last = router.mlp_head[2]
    assert isinstance(last, nn.Linear)
    return last


@torch.no_grad()
def _random_width(model: DyDiT, linear: nn.Linear, generator: torch.Generator) -> _Threshold:
    linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
    linear.bias.zero_()
    # timesteps' embeddings have much in common, which decides nothing
    logits = linear(model.t_embedder(torch.arange(TRAIN_STEPS, device=linear.weight.device)))  # T R
    scale = SPREAD / logits.std(dim=0).clamp(min=1e-6)  # R
    linear.weight.mul_(scale[:, None])
    return _Threshold(linear, (logits * scale).sort(dim=0).values)


@torch.no_grad()
def _random_tokens(model: DyDiT, data: Dataset, generator: torch.Generator, share: float) -> list[_Threshold]:
    """One threshold for each block, set for `share` in the order of the blocks, since each sees what the others leave."""
    found: list[_Threshold] = []

    def look(router: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(router, TokenRouter)
        first, last = router.mlp_head[0], _last(router)
        assert isinstance(first, nn.Linear)
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
    t = stratified_timesteps(len(index), 4, generator)
    noise = torch.randn(x0.shape, generator=generator)
    place = model.pos_embed.device
    hooks = [block.get_submodule("token_selection").register_forward_pre_hook(look) for block in model.blocks]
    model.eval()(linear_schedule().add_noise(x0, t, noise).to(place), t.to(place), y.to(place))
    for hook in hooks:
        hook.remove()
    return found


TIMESTEPS = 25  # measured; between them importance is interpolated

MEASURED_IMAGES = 32

LOGIT_SPREAD = 3.0  # as far apart as the training noise, whose standard deviation is 1.8, can still reorder

RIDGE = 1e-3


@torch.no_grad()
def measure_importance(model: DyDiT, data: Dataset, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each head and each channel group adds to the residual stream with everything on, over the stream's own norm.

    Returns the timesteps (T,), and T x L x H for heads and for groups, float32 on the cpu.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.linspace(0, len(data) - 1, MEASURED_IMAGES).long()
    x0, y = data.take(index, torch.zeros_like(index) if data.varied else None)
    place, schedule = model.pos_embed.device, linear_schedule()
    timesteps = torch.linspace(0, TRAIN_STEPS - 1, TIMESTEPS).long()
    watches = [_Watch(block, model.config.num_heads) for block in model.blocks if isinstance(block, DynamicBlock)]
    training = model.training
    model.eval()
    heads, groups = [], []
    for timestep in timesteps.tolist():
        t = torch.full((len(index),), timestep)
        x_t = schedule.add_noise(x0, t, torch.randn(x0.shape, generator=generator))
        model(x_t.to(place), t.to(place), y.to(place), complete=True)
        heads.append(torch.stack([watch.heads for watch in watches]))  # L H
        groups.append(torch.stack([watch.groups for watch in watches]))
    for watch in watches:
        watch.remove()
    model.train(training)
    return timesteps, torch.stack(heads).cpu(), torch.stack(groups).cpu()


class _Watch:
    """Sees one block's forward passes; `heads` and `groups` (H,) are those of the last one."""

    def __init__(self, block: DynamicBlock, heads: int) -> None:
        self._block, self._count = block, heads
        self.heads = self.groups = torch.empty(0)
        self._stream = self._gates = torch.empty(0)
        self._hooks = [
            block.norm1.register_forward_pre_hook(self._see_stream),
            block.adaLN_modulation.register_forward_hook(self._see_gates),
            block.attn.proj.register_forward_pre_hook(self._see_heads),
            block.mlp.fc2.register_forward_pre_hook(self._see_groups),
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see_stream(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._stream = inputs[0].norm()

    def _see_gates(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._gates = output

    def _see_heads(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.heads = self._added(inputs[0], self._block.attn.proj.weight, 2)

    def _see_groups(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.groups = self._added(inputs[0], self._block.mlp.fc2.weight, 5)

    def _added(self, x: Tensor, weight: Tensor, part: int) -> Tensor:
        gate = self._gates.chunk(6, dim=1)[part].unsqueeze(1)  # B 1 C
        parts = zip(x.chunk(self._count, dim=2), weight.chunk(self._count, dim=1), strict=True)
        return torch.stack([(own @ w.t() * gate).norm() for own, w in parts]) / self._stream  # H


@torch.no_grad()
def start_by_importance(model: DyDiT, recipe: Recipe, data: Dataset) -> None:
    """Sets the width routers of `model` so that, of all heads, groups and timesteps, those that add least are off; as many
    as the recipe's FLOPs ratio asks for where tokens are to be skipped alike."""
    config = model.config
    timesteps, heads, groups = measure_importance(model, data, recipe.train.seed)
    share = common_share(config, recipe.routing, recipe.routing.flops_ratio)
    if config.always_on:
        share = max(0.0, (share * config.num_heads - 1) / (config.num_heads - 1))
        heads, groups = heads[:, :, 1:], groups[:, :, 1:]
    every = torch.arange(TRAIN_STEPS)
    e = model.t_embedder(every.to(model.pos_embed.device)).float().cpu()  # T C
    inputs = torch.cat([e, torch.ones(len(e), 1)], dim=1)  # T C+1
    for importance, name in ((heads, "attn_rate"), (groups, "mlp_rate")):
        score = _interpolate(timesteps, importance.clamp_min(1e-12).log())  # T L R
        logits = (LOGIT_SPREAD * (score - _quantile(score, 1 - share)) / score.std()).flatten(1)  # T LR
        solved = _ridge(inputs.double(), logits.double()).float()  # C+1 LR
        for i, block in enumerate(model.blocks):
            router = block.get_submodule(name).get_submodule("router")
            assert isinstance(router, nn.Linear)
            own = solved.view(solved.shape[0], config.depth, -1)[:, i]  # C+1 R
            router.weight.copy_(own[:-1].t())
            router.bias.copy_(own[-1])


def _interpolate(timesteps: Tensor, values: Tensor) -> Tensor:
    """values (T ...) at `timesteps`, linearly at all 1,000."""
    every = torch.arange(TRAIN_STEPS)
    right = torch.searchsorted(timesteps, every).clamp(1, len(timesteps) - 1)
    low, high = timesteps[right - 1], timesteps[right]
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

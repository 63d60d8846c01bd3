"""Pruning the width: how much each attention head and each MLP channel of a static model matters, by one of several criteria.

A criterion takes the model and the `CalibrationData` that it may look at, and gives a score to every head and channel of every
block; higher is kept. Scores are compared within a block and a site only, so their scale is free. A new one is a function with
`@criterion`.

Legend: L depth, H heads, F MLP width, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.compress.calibration import BatchLosses, CalibrationData
from dydit_cli.compress.methods import Kept, PruningMethod, register
from dydit_cli.diffusion.process import times
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.macs import attention_macs, mlp_macs


@dataclass(frozen=True)
class Scores:
    """heads: L x H; channels: L x F; float32 on the cpu. `seen` says in a phrase what they were measured on."""

    heads: Tensor
    channels: Tensor
    seen: str = "the weights alone"


Score = Callable[[Backbone, CalibrationData], Scores]


@dataclass(frozen=True)
class Criterion(PruningMethod):
    """Keeps the heads and channels of the highest scores, in every block as many as in the others.

    `score` takes the model and what it may look at; `count(data)` is how many forward passes it takes with each batch.
    """

    score: Score
    batches: int = 0
    count: Callable[[CalibrationData], int] = lambda data: 1

    def smaller(self, config: ModelConfig, keep: float) -> ModelConfig:
        return narrower(config, keep)

    def passes(self, config: ModelConfig, smaller: ModelConfig, data: CalibrationData) -> int:
        return self.count(data)

    def choose(self, model: Backbone, smaller: ModelConfig, data: CalibrationData) -> Kept:
        scores = self.score(model, data)
        heads, channels = chosen(scores, smaller)
        return Kept(list(range(smaller.depth)), list(heads), list(channels), scores.seen)


def criterion(
    name: str, *, batches: int = 0, passes: Callable[[CalibrationData], int] = lambda data: 1
) -> Callable[[Score], Score]:
    """Registers a function as the `score` of the pruning criterion `name`; see `Criterion`."""

    def decorate(score: Score) -> Score:
        register(name, Criterion(score, batches, passes))
        return score

    return decorate


def narrower(config: ModelConfig, keep: float) -> ModelConfig:
    """`config` with the share `keep` of its heads, at least one, and the MLP width that brings attention and MLP of a block
    together nearest to `keep` of their MACs.

    Raises `DyditError` where `keep` is less than a head and a channel cost.
    """
    H, F = config.num_heads, config.mlp_hidden
    heads, both = max(1, round(keep * H)), attention_macs(config) + mlp_macs(config)
    channel = mlp_macs(config) // F
    attention = attention_macs(config) // H * heads
    width = min(F, round((keep * both - attention) / channel))
    if width < 1:
        least = (attention + channel) / both
        raise DyditError(f"share to keep {keep:g}: with {heads} of {H} heads and one channel it is {least:.3f}; keep more")
    return config.narrowed(heads, width)


def chosen(scores: Scores, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Which heads (L x kept) and channels (L x kept) of each block `config`, the narrower one, has room for, ascending."""
    kept = ((scores.heads, config.num_heads), (scores.channels, config.mlp_hidden))
    heads, channels = (
        score.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values for score, count in kept
    )
    return heads, channels


def structure_sums(values: Mapping[str, Tensor], config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Sums of `values`, one for every weight by the weights' names, over what goes when a head or a channel goes.

    Returns L x H and L x F, float32 on the cpu.
    """
    blocks = list(enumerate(config.block_names()))
    heads, channels = (
        torch.stack([config.site(structure, i).unit_sums(values, block) for i, block in blocks]).cpu()
        for structure in ("heads", "groups")
    )
    return heads, channels


def structured(model: Backbone) -> dict[str, torch.nn.Parameter]:
    """The parameters that `structure_sums` reads, by name."""
    config = model.config
    names = {
        f"{block}.{name}" for i, block in enumerate(config.block_names()) for site in config.sites(i) for name in site.names()
    }
    return {name: p for name, p in model.named_parameters() if name in names}


@criterion("random")
def random(model: Backbone, data: CalibrationData) -> Scores:
    """Chance alone: uniform scores under the seed."""
    config, generator = model.config, torch.Generator().manual_seed(data.seed)
    heads = torch.rand(config.depth, config.num_heads, generator=generator)
    return Scores(heads, torch.rand(config.depth, config.mlp_hidden, generator=generator), "chance alone")


@criterion("magnitude")
@torch.no_grad()
def magnitude(model: Backbone, data: CalibrationData) -> Scores:
    """The L2 norm of all weights of a structure."""
    heads, channels = structure_sums({name: p.float().square() for name, p in structured(model).items()}, model.config)
    return Scores(heads.sqrt(), channels.sqrt())


@criterion("taylor", batches=16)
def taylor(model: Backbone, data: CalibrationData) -> Scores:
    """The mean over batches of |sum of w dL/dw|, L the training loss with the batch's timesteps spread over the schedule."""
    total = _Total(model)
    losses = BatchLosses(model, data)
    for x0, y in losses.batches():
        t = losses.process.spread(len(y), losses.generator)
        losses.at(x0, y, t, losses.noise(x0)).loss.mean().backward()
        data.on_work(1)
        total.add()
    return total.scores(f"{data.images}, timesteps spread over the schedule")


@criterion("diff", batches=1, passes=lambda data: 2 * data.timesteps)
def diff(model: Backbone, data: CalibrationData) -> Scores:
    """Diff-Pruning (Fang et al. 2023, arXiv 2305.10924): as `taylor`, of the loss summed over those timesteps whose noise
    error is at least `threshold` of the largest. The late, noisy ones say little about what an image is made of, and their
    many small gradients would drown the others.

    A batch's images and noise are the same at every timestep.
    """
    total = _Total(model)
    losses = BatchLosses(model, data)
    timesteps = losses.process.grid(data.timesteps)
    counted = 0
    for x0, y in losses.batches():
        noise = losses.noise(x0)
        errors = []
        with torch.no_grad():
            for t in timesteps:
                errors.append(losses.at(x0, y, times(y, t), noise).mse.mean().item())
                data.on_work(1)
        chosen = contributing(torch.tensor(errors), data.threshold).tolist()
        for i in chosen:
            losses.at(x0, y, times(y, timesteps[i]), noise).loss.mean().backward()
            data.on_work(1)
        data.on_work(len(timesteps) - len(chosen))
        counted += len(chosen)
        total.add()
    mean = counted / data.batches
    return total.scores(
        f"{data.images}, {mean:g} of {len(timesteps)} timesteps with {data.threshold:g} of the largest loss or more"
    )


def contributing(losses: Tensor, threshold: float) -> Tensor:
    """The places in losses (T,) whose loss is at least `threshold` times the largest, ascending."""
    return (losses >= threshold * losses.max()).nonzero().squeeze(1)


class _Total:
    """Adds up |sum of w dL/dw| over batches; the gradients of all that no score needs are never made."""

    def __init__(self, model: Backbone) -> None:
        self._config, self._weights = model.config, structured(model)
        for p in model.parameters():
            p.requires_grad_(False)
        for p in self._weights.values():
            p.requires_grad_(True)
        self._batches = 0
        self._heads = self._channels = torch.zeros(())

    @torch.no_grad()
    def add(self) -> None:
        """The batch whose gradients the weights hold now; takes the gradients away."""
        heads, channels = structure_sums({name: p * p.grad for name, p in self._weights.items()}, self._config)  # type: ignore[operator]
        self._heads, self._channels = self._heads + heads.abs(), self._channels + channels.abs()
        self._batches += 1
        for p in self._weights.values():
            p.grad = None

    def scores(self, seen: str) -> Scores:
        return Scores(self._heads / self._batches, self._channels / self._batches, seen)

"""How much each attention head and each MLP channel of a static model matters, by one of several criteria.

A criterion takes the model and the `CalibrationData` that it may look at, and gives a score to every head and channel of every
block; higher is kept. Scores are compared within a block and a site only, so their scale is free. A new one is a function with
`@criterion`.

Legend: L depth, H heads, F MLP width, B batch, C channels, S size, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.data.dataset import Dataset, batches
from dydit_cli.diffusion.objective import LossTerms
from dydit_cli.diffusion.options import MOST_TIMESTEPS
from dydit_cli.diffusion.process import process_of, times
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.seeds import check_seed


@dataclass(frozen=True)
class Scores:
    """heads: L x H; channels: L x F; float32 on the cpu. `seen` says in a phrase what they were measured on."""

    heads: Tensor
    channels: Tensor
    seen: str = "the weights alone"


def _ignore(amount: int = 1) -> None:
    pass


@dataclass(frozen=True)
class CalibrationData:
    """What a criterion may look at beside the weights: `batches` of `batch_size` images of `data`, all chance from `seed`.

    `timesteps` and `threshold` are `diff`'s: so many timesteps, of which those count whose loss is at least that share of
    the largest. `on_work` is told of every forward pass. Raises `DyditError` for a number out of range.
    """

    seed: int = 0
    data: Dataset | None = None
    batches: int = 1
    batch_size: int = 64
    timesteps: int = 50
    threshold: float = 0.05
    on_work: Callable[[int], None] = _ignore

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for what, value in (("batches", self.batches), ("images in a batch", self.batch_size)):
            if value < 1:
                raise DyditError(f"{value} {what}; importance is measured on at least 1")
        if not 1 <= self.timesteps <= MOST_TIMESTEPS:
            raise DyditError(f"{self.timesteps} timesteps; choose 1 to {MOST_TIMESTEPS}")
        if not 0 <= self.threshold <= 1:
            raise DyditError(f"threshold {self.threshold:g}; it is a share of the largest loss, from 0 to 1")


@dataclass(frozen=True)
class Criterion:
    """`score` takes the model and what it may look at. `batches` is how many it looks at by default, 0 for none, and
    `passes(data)` how many forward passes one takes, for the progress shown."""

    score: Callable[[Backbone, CalibrationData], Scores]
    batches: int = 0
    passes: Callable[[CalibrationData], int] = lambda data: 1


CRITERIA: dict[str, Criterion] = {}
Score = Callable[[Backbone, CalibrationData], Scores]


def criterion(
    name: str, *, batches: int = 0, passes: Callable[[CalibrationData], int] = lambda data: 1
) -> Callable[[Score], Score]:
    """Registers a function as the pruning criterion `name`; see `Criterion`."""

    def register(score: Score) -> Score:
        CRITERIA[name] = Criterion(score, batches, passes)
        return score

    return register


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


LABEL_DROPOUT = 0.1  # as in training


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
    return total.scores(f"{_images(data)}, timesteps spread over the schedule")


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
        f"{_images(data)}, {mean:g} of {len(timesteps)} timesteps with {data.threshold:g} of the largest loss or more"
    )


def contributing(losses: Tensor, threshold: float) -> Tensor:
    """The places in losses (T,) whose loss is at least `threshold` times the largest, ascending."""
    return (losses >= threshold * losses.max()).nonzero().squeeze(1)


class BatchLosses:
    """The model's losses on the batches of the calibration data, with all chance drawn on the cpu by `generator`."""

    def __init__(self, model: Backbone, data: CalibrationData) -> None:
        assert data.data is not None
        self._model, self._calibration, self._data = model, data, data.data
        self.process = process_of(model.config)
        self.generator = torch.Generator().manual_seed(data.seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images B C S S and labels B, a tenth of which stand for none."""
        stream = batches(self._data, self._calibration.batch_size, self.generator)
        for _ in range(self._calibration.batches):
            x0, y = next(stream)
            dropped = torch.rand(len(y), generator=self.generator) < LABEL_DROPOUT
            yield x0, torch.where(dropped, torch.full_like(y, self._model.config.null_class), y)

    def noise(self, x0: Tensor) -> Tensor:
        return torch.randn(x0.shape, generator=self.generator)

    def at(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> LossTerms:
        device, dtype = self._model.device, self._model.dtype
        x0, noise, t, y = x0.to(device, dtype), noise.to(device, dtype), t.to(device), y.to(device)
        x_t = self.process.add_noise(x0, t, noise)
        return self.process.losses(self._model(x_t, t, y), x0, x_t, t, noise)


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


def _images(data: CalibrationData) -> str:
    assert data.data is not None
    return f"{data.batches} x {data.batch_size} images of {data.data.name}"

"""How much each attention head and each MLP channel of a static model matters, by one of four criteria.

A criterion takes the model and the `CalibrationData` that it may look at, and gives a score to every head and channel of every
block; higher is kept. Scores are compared within a block and a kind only, so their scale is free.

Legend: L depth, H heads, D head width, C width, F MLP width, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dydit_cli.data.dataset import Dataset, batches
from dydit_cli.diffusion.objective import LossTerms, loss_terms
from dydit_cli.diffusion.schedule import TRAIN_STEPS, linear_schedule, spaced_timesteps
from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig
from dydit_cli.model.dit import DiT
from dydit_cli.seeds import check_seed

Method = Literal["random", "magnitude", "taylor", "diff"]


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
        if not 1 <= self.timesteps <= TRAIN_STEPS:
            raise DyditError(f"{self.timesteps} timesteps; choose 1 to {TRAIN_STEPS}")
        if not 0 <= self.threshold <= 1:
            raise DyditError(f"threshold {self.threshold:g}; it is a share of the largest loss, from 0 to 1")


Criterion = Callable[[DiT, CalibrationData], Scores]


def structure_sums(values: Mapping[str, Tensor], config: DiTConfig) -> tuple[Tensor, Tensor]:
    """Sums of `values`, one for every weight by the weights' names, over what goes when a structure goes.

    A head is its rows of q, k and v with their biases, and its columns of proj; a channel its row of fc1 with its bias, and
    its column of fc2. Returns L x H and L x F, float32 on the cpu.
    """
    H, D = config.num_heads, config.head_dim
    heads, channels = [], []
    for i in range(config.depth):
        attn, mlp = f"blocks.{i}.attn", f"blocks.{i}.mlp"
        rows = values[f"{attn}.qkv.weight"].float().sum(dim=1) + values[f"{attn}.qkv.bias"].float()  # 3HD
        columns = values[f"{attn}.proj.weight"].float().sum(dim=0)  # HD
        heads.append(rows.view(3, H, D).sum(dim=(0, 2)) + columns.view(H, D).sum(dim=1))  # H
        fc1 = values[f"{mlp}.fc1.weight"].float().sum(dim=1) + values[f"{mlp}.fc1.bias"].float()  # F
        channels.append(fc1 + values[f"{mlp}.fc2.weight"].float().sum(dim=0))  # F
    return torch.stack(heads).cpu(), torch.stack(channels).cpu()


def structured(model: DiT) -> dict[str, torch.nn.Parameter]:
    """The parameters that `structure_sums` reads, by name."""
    parts = ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight")
    return {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and name.endswith(parts)}


def random(model: DiT, evidence: CalibrationData) -> Scores:
    """Chance alone: uniform scores under the seed."""
    config, generator = model.config, torch.Generator().manual_seed(evidence.seed)
    heads = torch.rand(config.depth, config.num_heads, generator=generator)
    return Scores(heads, torch.rand(config.depth, config.mlp_hidden, generator=generator), "chance alone")


@torch.no_grad()
def magnitude(model: DiT, evidence: CalibrationData) -> Scores:
    """The L2 norm of all weights of a structure."""
    heads, channels = structure_sums({name: p.float().square() for name, p in structured(model).items()}, model.config)
    return Scores(heads.sqrt(), channels.sqrt())


LABEL_DROPOUT = 0.1  # as in training


def taylor(model: DiT, evidence: CalibrationData) -> Scores:
    """The mean over batches of |sum of w dL/dw|, L the training loss with the batch's timesteps spread over the schedule."""
    total = _Total(model)
    losses = BatchLosses(model, evidence)
    for x0, y in losses.batches():
        t = spread_timesteps(len(y), losses.generator)
        losses.at(x0, y, t, losses.noise(x0)).loss.mean().backward()
        evidence.on_work(1)
        total.add()
    return total.scores(f"{_images(evidence)}, timesteps spread over the schedule")


def diff(model: DiT, evidence: CalibrationData) -> Scores:
    """Diff-Pruning (Fang et al. 2023, arXiv 2305.10924): as `taylor`, of the loss summed over those timesteps whose noise
    error is at least `threshold` of the largest. The late, noisy ones say little about what an image is made of, and their
    many small gradients would drown the others.

    A batch's images and noise are the same at every timestep.
    """
    total = _Total(model)
    losses = BatchLosses(model, evidence)
    timesteps = spaced_timesteps(evidence.timesteps)[::-1]
    counted = 0
    for x0, y in losses.batches():
        noise = losses.noise(x0)
        errors = []
        with torch.no_grad():
            for t in timesteps:
                errors.append(losses.at(x0, y, torch.full_like(y, t), noise).mse.mean().item())
                evidence.on_work(1)
        chosen = contributing(torch.tensor(errors), evidence.threshold).tolist()
        for i in chosen:
            losses.at(x0, y, torch.full_like(y, timesteps[i]), noise).loss.mean().backward()
            evidence.on_work(1)
        evidence.on_work(len(timesteps) - len(chosen))
        counted += len(chosen)
        total.add()
    mean = counted / evidence.batches
    return total.scores(
        f"{_images(evidence)}, {mean:g} of {len(timesteps)} timesteps with {evidence.threshold:g} of the largest loss or more"
    )


def spread_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) int64 timesteps, one drawn from each of so many equal parts of the schedule."""
    drawn = torch.arange(batch) + torch.rand(batch, generator=generator)
    return (drawn * TRAIN_STEPS / batch).long().clamp(max=TRAIN_STEPS - 1)


def contributing(losses: Tensor, threshold: float) -> Tensor:
    """The places in losses (T,) whose loss is at least `threshold` times the largest, ascending."""
    return (losses >= threshold * losses.max()).nonzero().squeeze(1)


class BatchLosses:
    """The model's losses on the evidence's batches, with all chance drawn on the cpu by `generator`."""

    def __init__(self, model: DiT, evidence: CalibrationData) -> None:
        assert evidence.data is not None
        self._model, self._evidence, self._data = model, evidence, evidence.data
        self._schedule = linear_schedule()
        self.generator = torch.Generator().manual_seed(evidence.seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images B C S S and labels B, a tenth of which stand for none."""
        stream = batches(self._data, self._evidence.batch_size, self.generator)
        for _ in range(self._evidence.batches):
            x0, y = next(stream)
            dropped = torch.rand(len(y), generator=self.generator) < LABEL_DROPOUT
            yield x0, torch.where(dropped, torch.full_like(y, self._model.config.null_class), y)

    def noise(self, x0: Tensor) -> Tensor:
        return torch.randn(x0.shape, generator=self.generator)

    def at(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> LossTerms:
        like = self._model.pos_embed
        x0, noise, t, y = x0.to(like), noise.to(like), t.to(like.device), y.to(like.device)
        x_t = self._schedule.add_noise(x0, t, noise)
        return loss_terms(self._schedule, self._model(x_t, t, y), x0, x_t, t, noise)


class _Total:
    """Adds up |sum of w dL/dw| over batches; the gradients of all that no score needs are never made."""

    def __init__(self, model: DiT) -> None:
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


def _images(evidence: CalibrationData) -> str:
    assert evidence.data is not None
    return f"{evidence.batches} x {evidence.batch_size} images of {evidence.data.name}"

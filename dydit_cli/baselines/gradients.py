"""Importance by first-order Taylor expansion: by how much the diffusion loss would change without a structure.

The change is w dL/dw summed over the structure's weights w (Molchanov et al. 2019, arXiv 1906.10771), whose sign says
little, since the expansion is far from home: its size is the score.

Legend: B batch, C channels, S size, T timesteps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dydit_cli.baselines.importance import Evidence, Scores, structure_sums, structured
from dydit_cli.data.dataset import batches
from dydit_cli.diffusion.objective import LossTerms, loss_terms
from dydit_cli.diffusion.schedule import TRAIN_STEPS, linear_schedule, spaced_timesteps
from dydit_cli.model.dit import DiT

LABEL_DROPOUT = 0.1  # as in training


def taylor(model: DiT, evidence: Evidence) -> Scores:
    """The mean over batches of |sum of w dL/dw|, L the training loss with the batch's timesteps spread over the schedule."""
    total = _Total(model)
    losses = BatchLosses(model, evidence)
    for x0, y in losses.batches():
        t = spread_timesteps(len(y), losses.generator)
        losses.at(x0, y, t, losses.noise(x0)).loss.mean().backward()
        evidence.on_work(1)
        total.add()
    return total.scores(f"{_images(evidence)}, timesteps spread over the schedule")


def diff(model: DiT, evidence: Evidence) -> Scores:
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

    def __init__(self, model: DiT, evidence: Evidence) -> None:
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


def _images(evidence: Evidence) -> str:
    assert evidence.data is not None
    return f"{evidence.batches} x {evidence.batch_size} images of {evidence.data.name}"

"""Many images in batches, each from its own seed, so that an image does not depend on the batch it was drawn in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.diffusion.options import ReadySettings
from dydit_cli.diffusion.sampler import Denoiser, sample
from dydit_cli.errors import DyditError
from dydit_cli.seeds import derived


@dataclass(frozen=True)
class Progress:
    """Before a model evaluation: images `first` to `first + batch - 1`, the `call`-th of their run, timestep `timestep`.

    `work` is what it is of the run's work, which is `settings.work` an image.
    """

    first: int
    batch: int
    call: int
    timestep: float
    work: int


def image_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """One generator for each of the images `first`, `first` + 1, ... of the run with `seed`."""
    return [torch.Generator().manual_seed(derived(seed, 1_000_003, i)) for i in range(first, first + count)]


@torch.no_grad()
def generate(
    model: Denoiser,
    labels: Tensor,
    shape: tuple[int, ...],
    settings: ReadySettings,
    *,
    null_class: int,
    seed: int = 0,
    first: int = 0,
    batch: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_progress: Callable[[Progress], None] | None = None,
) -> Tensor:
    """Samples for labels (M,): M C S S on cpu in float32, `shape` being C S S; of videos M F C S S.

    They are the images `first` to `first` + M - 1 of the run with `seed`. The noise is drawn on the cpu, image by image:
    the same seed gives the same noise on any device, at any `batch` and in any slice of the run. `dtype` is the model's:
    it sees and returns tensors of it, while the sampler's state stays float32. Raises `DyditError` for a label that is
    no class.
    """
    check_labels(labels, null_class)

    def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model(x.to(dtype), t, y).float()

    parts = []
    for start in range(0, len(labels), batch):
        y = labels[start : start + batch].to(device)
        generators = image_generators(seed, first + start, len(y))
        x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)

        def report(call: int, timestep: float, start: int = start, count: int = len(y)) -> None:
            if on_progress:
                counts = settings.calls is not None or call == 0
                on_progress(Progress(first + start, count, call, timestep, count if counts else 0))

        x = sample(denoise, x, y, settings, null_class=null_class, generator=generators, on_step=report)
        parts.append(x.cpu())
    return torch.cat(parts)


def check_labels(labels: Tensor, null_class: int) -> None:
    """Raises `DyditError` for a label that is no class; a model without classes takes 0."""
    wrong = labels[(labels < 0) | (labels >= max(1, null_class))]
    if len(wrong):
        raise DyditError(f"class {int(wrong[0])}: the model has classes 0 to {null_class - 1}")


def cycle_labels(classes: list[int], count: int) -> Tensor:
    """(count,) labels that go round `classes`."""
    return torch.tensor([classes[i % len(classes)] for i in range(count)], dtype=torch.long)

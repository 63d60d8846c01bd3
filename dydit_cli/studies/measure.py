"""How every row is measured, whatever its method: MACs, samples, their figures, and the loss on held-out data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.data.dataset import ImageData
from dydit_cli.diffusion.generate import Progress
from dydit_cli.diffusion.objective import loss_terms
from dydit_cli.diffusion.schedule import TRAIN_STEPS, linear_schedule
from dydit_cli.evaluate.evaluate import evaluate
from dydit_cli.evaluate.features import Extractor
from dydit_cli.evaluate.images import ArrayImages
from dydit_cli.evaluate.reference import Reference
from dydit_cli.model.execution import Executable
from dydit_cli.profiling.profile import profile
from dydit_cli.sampling.sampler import SamplingConfig, open_sampler, protocol
from dydit_cli.studies.recipe import EvaluationPart
from dydit_cli.studies.rows import Row, RowWork

LOSS_TIMESTEPS, LOSS_SEED = 20, 0

PROFILE_SHARE, SAMPLE_SHARE, LOSS_SHARE = 0.05, 0.75, 0.2  # of the time that measuring takes, roughly


@dataclass(frozen=True)
class Evaluator:
    """What all rows of a study are measured with. `macs` is the static model's per forward; `held_out` None where the
    data have no such part."""

    how: EvaluationPart
    extractor: Extractor
    reference: Reference
    held_out: ImageData | None
    macs: float
    device: str

    def drawing(self, row: Row, batch: int | None = None) -> SamplingConfig:
        """How the row's samples are drawn."""
        how = self.how
        return SamplingConfig(
            settings=how.settings, seed=row.seed, vae=how.vae, batch=batch or how.batch, device=self.device, tome=row.tome
        )


@dataclass(frozen=True)
class Measured:
    """`values` by name; samples: M S S C uint8, all that were drawn."""

    values: dict[str, Any]
    samples: NDArray[np.uint8]


def measure(loaded: Checkpoint, row: Row, evaluator: Evaluator, work: RowWork) -> Measured:
    """The figures of one row."""
    how = evaluator.how
    counted = work.part("count MACs", PROFILE_SHARE, how.profiled * how.settings.steps)
    summary = profile(
        loaded, name=row.name, images=how.profiled, settings=how.settings, seed=row.seed, batch=how.batch,
        tome=row.tome, device=evaluator.device, on_progress=lambda progress: counted(progress.batch),
    ).summary  # fmt: skip
    macs = float(summary["macs_dynamic"])

    drawing = evaluator.drawing(row)
    image_sampler = open_sampler(loaded, drawing)
    drawn = work.part("sample", SAMPLE_SHARE, how.images * how.settings.steps)
    start = time.perf_counter()

    def see(progress: Progress) -> None:
        drawn(progress.batch)

    pixels = image_sampler.pixels(image_sampler.samples(0, how.images, see))
    seconds = time.perf_counter() - start
    labels = image_sampler.labels(0, how.images).numpy()
    record = {"images": how.images, **protocol(loaded, drawing), "device": evaluator.device}
    images = ArrayImages(row.name, pixels, labels, record)
    result = evaluate(images, evaluator.reference, evaluator.extractor, batch=how.batch, device=evaluator.device)

    loss = None
    if evaluator.held_out is not None:
        done = work.part("held-out loss", LOSS_SHARE, len(evaluator.held_out) * LOSS_TIMESTEPS)
        loss = held_out_loss(image_sampler.model, evaluator.held_out, image_sampler.how.batch, done)
    figures = result.figures
    return Measured(
        {
            "macs": macs,
            "ratio": macs / evaluator.macs,
            "routed_ratio": summary["routed_ratio"] if loaded.config.kind == "dydit" else None,
            # what the features of the digits call Fréchet distance, Inception's call FID
            "frechet": figures.get("frechet", figures.get("fid")),
            "recognised": figures.get("recognised"),
            "precision": figures["precision"],
            "recall": figures["recall"],
            "loss": loss,
            "sampling_seconds": seconds,
            "evaluation": result.to_dict(),
        },
        pixels,
    )


@torch.no_grad()
def held_out_loss(
    model: Executable, data: ImageData, batch: int = 64, done: Callable[[int], None] = lambda images: None
) -> float:
    """The diffusion loss (mse and variational term) on `data`, mean over 20 timesteps, the same noise for every model."""
    weight = next(model.parameters())
    schedule = linear_schedule()
    generator = torch.Generator().manual_seed(LOSS_SEED)
    timesteps = torch.linspace(0, TRAIN_STEPS - 1, LOSS_TIMESTEPS).long().tolist()
    losses: list[Tensor] = []
    for timestep in timesteps:
        noise = torch.randn(data.images.shape, generator=generator)  # M C S S
        for part in torch.arange(len(data)).split(batch):
            x_0, y = data.take(part)
            t = torch.full((len(part),), timestep)
            x_t = schedule.add_noise(x_0, t, noise[part])
            out = model(x_t.to(weight.device), t.to(weight.device), y.to(weight.device)).float().cpu()
            losses.append(loss_terms(schedule, out, x_0, x_t, t, noise[part]).loss)
            done(len(part))
    return torch.cat(losses).double().mean().item()

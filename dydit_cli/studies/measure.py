"""How every row is measured, whatever its method: MACs, samples, their figures, and the loss on held-out data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.artifacts.evaluation import Evaluation
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.data.dataset import ImageData
from dydit_cli.diffusion.process import process_of, times
from dydit_cli.evaluate.evaluate import evaluate, find_extractor
from dydit_cli.evaluate.features import Extractor
from dydit_cli.evaluate.images import ArrayImages
from dydit_cli.evaluate.reference import Reference, open_reference
from dydit_cli.model.caching import NONE, CacheOptions
from dydit_cli.model.execution import Executable
from dydit_cli.profiling.profile import profile
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import open_sampler, record_of
from dydit_cli.studies.methods import Row
from dydit_cli.studies.progress import RowWork
from dydit_cli.studies.recipe import EvaluationPart

LOSS_TIMESTEPS, LOSS_SEED = 20, 0

PROFILE_SHARE, SAMPLE_SHARE, LOSS_SHARE = 0.05, 0.75, 0.2  # of the time that measuring takes, roughly


# of every judge after the first, under the names `frechet_efficientnet`, ...
BY_JUDGE = ("frechet", "precision", "recall")


@dataclass(frozen=True)
class OpenJudge:
    """The features that samples are compared in, and what with."""

    name: str
    extractor: Extractor
    reference: Reference


def open_judges(names: Sequence[str], reference: str | None, data: str | None, device: str) -> tuple[OpenJudge, ...]:
    """Each with the reference, by default the data set of its features; those of none take `data`, or the first other's.

    Raises `DyditError` for an unknown judge, one whose package is missing, and a reference that cannot be had.
    """
    extractors = [find_extractor(name, device=device) for name in names]
    data = data or next((extractor.data for extractor in extractors if extractor.data), None)
    return tuple(
        OpenJudge(name, extractor, open_reference(reference or extractor.data or data, extractor))
        for name, extractor in zip(names, extractors, strict=True)
    )


def judge_facts(judge: OpenJudge) -> dict[str, Any]:
    """Which network, and what samples are compared with."""
    return {**judge.extractor.facts, "reference": judge.reference.name, "reference_sha256": judge.reference.digest()}


@dataclass(frozen=True)
class Evaluator:
    """What all rows of a study are measured with. `judges` has the main one first; `macs` is the static model's per forward;
    `held_out` None where the data have no such part."""

    config: EvaluationPart
    judges: tuple[OpenJudge, ...]
    held_out: ImageData | None
    macs: float
    device: str

    def sampling(self, row: Row, batch: int | None = None) -> SamplingConfig:
        """How the row's samples are made."""
        settings, vae, batch = self.config.settings, self.config.vae, batch or self.config.batch
        if row.steps is not None:
            settings = replace(settings, steps=row.steps)
        cache = CacheOptions.parse(row.cache or NONE)
        return SamplingConfig(settings, seed=row.seed, vae=vae, batch=batch, device=self.device, tome=row.tome, cache=cache)


@dataclass(frozen=True)
class Measured:
    """`values` by name; samples: M S S C uint8, all of them."""

    values: dict[str, Any]
    samples: NDArray[np.uint8]


def measure(loaded: Checkpoint, row: Row, evaluator: Evaluator, work: RowWork) -> Measured:
    """The figures of one row."""
    config, sampling = evaluator.config, evaluator.sampling(row)
    ready = sampling.settings.for_model(loaded.config)
    each = ready.work
    counted = work.part("count MACs", PROFILE_SHARE, config.profiled * each)
    summary = profile(
        loaded, name=row.name, images=config.profiled, settings=sampling.settings, seed=row.seed, batch=config.batch,
        tome=row.tome, cache=sampling.cache, device=evaluator.device, on_progress=lambda progress: counted(progress.work),
    ).summary  # fmt: skip
    macs = float(summary["macs_dynamic"])

    image_sampler = open_sampler(loaded, sampling)
    sampled = work.part("sample", SAMPLE_SHARE, config.images * each)
    start = time.perf_counter()
    samples = image_sampler.samples(0, config.images, sampled)
    pixels = image_sampler.pixels(samples)
    seconds = time.perf_counter() - start
    labels = image_sampler.labels(0, config.images).numpy()
    images = ArrayImages(row.name, pixels, labels, record_of(loaded, sampling, config.images))
    main, *others = (
        (judge.name, evaluate(images, judge.reference, judge.extractor, batch=config.batch, device=evaluator.device))
        for judge in evaluator.judges
    )

    loss = None
    if evaluator.held_out is not None and row.cache is None:  # one forward forecasts nothing
        done = work.part("held-out loss", LOSS_SHARE, len(evaluator.held_out) * LOSS_TIMESTEPS)
        loss = held_out_loss(image_sampler.model, evaluator.held_out, sampling.batch, done)
    figures = shared_figures(main[1])
    return Measured(
        {
            "steps": ready.steps,
            "forwards_per_image": summary["forwards_per_image"],
            "macs": macs,
            "macs_per_image": float(summary["macs_dynamic_per_image"]),
            "ratio": macs / evaluator.macs,
            "routed_ratio": summary["routed_ratio"] if loaded.config.dynamic else None,
            **figures,
            "recognised": main[1].figures.get("recognised"),
            **{f"{figure}_{name}": value for name, result in others for figure, value in shared_figures(result).items()},
            "loss": loss,
            "sampling_seconds": seconds,
            "evaluation": main[1].to_dict(),
            **{f"evaluation_{name}": result.to_dict() for name, result in others},
        },
        pixels,
    )


def shared_figures(result: Evaluation) -> dict[str, float | None]:
    """The figures that every judge has: what the features of a data set call Fréchet distance, Inception's call FID."""
    figures = result.figures
    values = (figures.get("frechet", figures.get("fid")), figures["precision"], figures["recall"])
    return dict(zip(BY_JUDGE, values, strict=True))


@torch.no_grad()
def held_out_loss(
    model: Executable, data: ImageData, batch: int = 64, done: Callable[[int], None] = lambda images: None
) -> float:
    """The diffusion loss (mse and variational term) on `data`, mean over 20 timesteps, the same noise for every model."""
    process, device = process_of(model.config), model.device
    generator = torch.Generator().manual_seed(LOSS_SEED)
    every = process.every()
    timesteps = every[torch.linspace(0, len(every) - 1, LOSS_TIMESTEPS).long()].tolist()
    losses: list[Tensor] = []
    for timestep in timesteps:
        noise = torch.randn(data.images.shape, generator=generator)  # M C S S
        for part in torch.arange(len(data)).split(batch):
            x_0, y = data.take(part)
            t = times(part, timestep)
            x_t = process.add_noise(x_0, t, noise[part])
            out = model(x_t.to(device), t.to(device), y.to(device)).float().cpu()
            losses.append(process.losses(out, x_0, x_t, t, noise[part]).loss)
            done(len(part))
    return torch.cat(losses).double().mean().item()

"""`dydit losses`: the diffusion loss of models at every timestep on the same real images and noise, and by patch.

Legend: T timesteps, M images, A timesteps with maps, R images with maps, S patches and P pixels a side, C channels, B batch.
Of videos, images are F C P P and maps F S S, F being their frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dydit_cli.artifacts.losses import Losses
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.data.dataset import Dataset
from dydit_cli.data.load import default_data, load_data, load_held_out
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.options import float32
from dydit_cli.diffusion.process import Process, process_of, times
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.options import NOISE_SHARES
from dydit_cli.evaluate.options import LossSettings as LossSettings
from dydit_cli.files import check_output
from dydit_cli.model.execution import Executable, executor
from dydit_cli.profiling.profile import names_of
from dydit_cli.provenance import made_by
from dydit_cli.seeds import derived
from dydit_cli.version import __version__

MAP_SEEDS = 1 << 32  # keeps the maps' noises apart from the curves'

OnStage = Callable[[str, int, str], None]

OnWork = Callable[[int], None]


def maps_at(settings: LossSettings, process: Process) -> list[float]:
    """The timesteps of the maps, ascending. Raises `DyditError` for one outside the process's, or for none."""
    chosen, (low, high), timeline = settings.maps_at, process.span, process.timeline
    if chosen is None:
        shares = [1 - share if timeline.rising else share for share in NOISE_SHARES]
        chosen = tuple(timeline.at(share) for share in shares)
    wrong = [t for t in chosen if not low <= t <= high or (timeline.whole and not isinstance(t, int))]
    if wrong or not chosen:
        what = f"no timestep {wrong[0]}" if wrong else "no timesteps"
        raise DyditError(f"{what} to draw maps at: the schedule has {low:g} to {high:g}")
    return sorted({t if timeline.whole else float32(t) for t in chosen})


def measure_losses(
    checkpoints: Sequence[CheckpointLike],
    out: str | Path | None = None,
    *,
    data: str | None = None,
    settings: LossSettings = LossSettings(),
    reading: LoadOptions = LoadOptions(),
    device: str = "auto",
    force: bool = False,
    on_stage: OnStage = lambda what, total, unit: None,
    on_work: OnWork = lambda amount: None,
) -> Losses:
    """The mean squared error of what each model predicts, for noise that is the same for every model and in every batch; a
    DyDiT runs as it samples. Maps are of the last model. Written to the folder `out` if given.

    `data` is by default what the first model was trained on. The images are the data set's held-out ones, or where it has no
    such part those of the set itself, which the model may have been trained on. Raises `DyditError` for no checkpoint, data
    that do not fit a model, or an existing `out` (without `force`).
    """
    start = time.perf_counter()
    if not checkpoints:
        raise DyditError("no checkpoint to measure losses of; name one, or a small and a large one")
    if out is not None:
        check_output(out, force)
    on = pick_device(device)
    models = [read(checkpoint, reading) for checkpoint in checkpoints]
    names = names_of([str(model.path or "model") for model in models])
    data = data or default_data(models[0].trained_on, models[0].config)
    held_out = load_held_out(data, models[0].config)
    images = load_data(data, models[0].config) if held_out is None else held_out
    for model in models:
        images.check(model.config, model.latents)
    x0, labels = chosen(images, settings)  # M C P P, M
    process = process_of(models[0].config)
    for name, model in zip(names, models, strict=True):
        if process_of(model.config) != process:
            raise DyditError(f"{name} does not predict what {names[0]} does; measure them apart")
    mapped = maps_at(settings, process)
    timesteps = process.grid(settings.timesteps)
    curves = []
    for name, model in zip(names, models, strict=True):
        on_stage(f"losses of {name}", len(x0) * len(timesteps), "image-steps")
        runner = ready(model, on, timesteps)
        curves.append(torch.stack([at_timestep(runner, x0, labels, t, settings, on_work) for t in timesteps]))
    shown = distinct(labels, settings.map_images)
    on_stage(f"maps of {names[-1]}", len(shown) * len(mapped) * settings.map_noises, "image-steps")
    runner = ready(models[-1], on, mapped)
    patches = torch.stack([maps_of(runner, x0[shown], labels[shown], t, settings, on_work) for t in mapped])
    summary: dict[str, Any] = {
        **made_by(),
        **what_is_measured(process),
        "models": [
            {
                "name": name,
                "checkpoint": str(model.path),
                "size": model.config.size_name,
                "kind": model.config.kind,
                "parameters": sum(weight.numel() for weight in model.weights.values()),
            }
            for name, model in zip(names, models, strict=True)
        ],
        "data": data,
        "held_out": held_out is not None,
        "data_images": len(images),
        "images": len(x0),
        "timesteps": len(timesteps),
        "map_model": names[-1],
        "map_timesteps": mapped,
        "map_noises": settings.map_noises,
        "seed": settings.seed,
        "dtype": "float32",
        "device": on.type,
        "seconds": time.perf_counter() - start,
        "versions": {"dydit": __version__, "torch": torch.__version__},
    }
    arrays = (torch.tensor(list(timesteps)), torch.stack(curves), torch.tensor(mapped), patches, x0[shown], labels[shown])
    result = Losses(summary, *(array.numpy() for array in arrays))
    if out is not None:
        result.write(out)
    return result


def what_is_measured(process: Process) -> dict[str, Any]:
    """In words; and where it is not noise at 1,000 timesteps, what is predicted and the timesteps' scale."""
    target, timeline = process.describe()["predicts"], process.timeline
    loss = f"mean squared error of the predicted {target} over channels and pixels"
    if timeline.whole:
        return {"loss": f"{loss}; the variance's term is left out"}
    return {"loss": loss, "target": target, "timeline": timeline.to_dict()}


def chosen(data: Dataset, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Images M C P P and labels M, drawn from all of `data` under the seed; all of them where it has fewer."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(settings.seed))
    return data.take(order[: settings.images])


def distinct(labels: Tensor, count: int) -> Tensor:
    """The indices of `count` images: the first of each class, by class, and where that is not enough the ones that follow."""
    classes = labels.tolist()
    first = [classes.index(label) for label in sorted(set(classes))]
    return torch.tensor([*first, *(i for i in range(len(classes)) if i not in first)][:count])


def ready(model: Checkpoint, place: torch.device, timesteps: Sequence[float]) -> Executable:
    """The model as it samples, on its device; a DyDiT's widths at the timesteps are decided ahead."""
    runner = executor(model.build().to(place).float(), "sparse")
    runner.plan(timesteps)
    return runner


def at_timestep(
    model: Executable, x0: Tensor, labels: Tensor, timestep: float, settings: LossSettings, on_work: OnWork
) -> Tensor:
    """(M,) the images' losses at `timestep`, float32 on the cpu."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(noise_seed(model, timestep, settings.seed)))
    return squared_errors(model, x0, labels, timestep, noise, settings.batch, on_work).flatten(1).mean(dim=1)


def noise_seed(model: Executable, timestep: float, seed: int) -> int:
    """Of the noise at a timestep, the same whichever model sees it."""
    process = process_of(model.config)
    return derived(seed, len(process.every()), process.number(timestep))


def maps_of(model: Executable, x0: Tensor, labels: Tensor, timestep: float, settings: LossSettings, on_work: OnWork) -> Tensor:
    """R S S, the loss of each patch, mean over the noises."""
    generator = torch.Generator().manual_seed((MAP_SEEDS + noise_seed(model, timestep, settings.seed)) % 2**64)
    total = torch.zeros(())
    for _ in range(settings.map_noises):
        noise = torch.randn(x0.shape, generator=generator)
        errors = squared_errors(model, x0, labels, timestep, noise, settings.batch, on_work)  # R C P P
        total = total + torch.nn.functional.avg_pool2d(errors.mean(dim=-3), model.config.patch_size)  # R S S
    return total / settings.map_noises


@torch.no_grad()
def squared_errors(
    model: Executable, x0: Tensor, labels: Tensor, timestep: float, noise: Tensor, batch: int, on_work: OnWork
) -> Tensor:
    """B C P P: the prediction's squared errors at one timestep, float32 on the cpu."""
    process, found = process_of(model.config), []
    for x, y, eps in zip(x0.split(batch), labels.split(batch), noise.split(batch), strict=True):
        t = times(x, timestep)
        x_t = process.add_noise(x, t, eps)
        output = model(x_t.to(model.device), t.to(model.device), y.to(model.device)).float().cpu()
        found.append(process.errors(output, x, x_t, t, eps))
        on_work(len(x))
    return torch.cat(found)

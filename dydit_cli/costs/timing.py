"""How long work takes on this machine: a few steps of the work itself, or where that would be long, of a part of it whose MACs
say how much longer the whole takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.devices import synchronize
from dydit_cli.diffusion.process import process_of, times
from dydit_cli.model.execution import Executable
from dydit_cli.model.families import build_shapes
from dydit_cli.model.macs import static_macs

PART_DEPTH = 2  # blocks of a part: a Latte's come in pairs

PART_MACS = 5e9  # of a part's step, forward

PATIENCE = 2.0  # seconds: a step that takes longer is not run

LEAST_SECONDS, MOST_STEPS = 1.0, 10  # so long a step is timed, or so often


def seconds_of(step: Callable[[], object], device: torch.device, warm_up: int = 1) -> float:
    """Of a step: the mean after some to warm up."""
    for _ in range(warm_up):
        step()
    synchronize(device)
    start, done = time.perf_counter(), 0
    while done < MOST_STEPS and (done < 2 or time.perf_counter() - start < LEAST_SECONDS):
        step()
        synchronize(device)
        done += 1
    return (time.perf_counter() - start) / done


def part_of(checkpoint: Checkpoint, static: bool = False) -> Checkpoint:
    """Its first blocks, with their own weights; where asked for, of a DyDiT the static model's."""
    config = checkpoint.config.static() if static else checkpoint.config
    config = replace(config, depth=min(config.depth, PART_DEPTH))
    weights = {name: checkpoint.weights[name] for name in build_shapes(config).state_dict()}
    return replace(checkpoint, config=config, weights=weights)


@torch.no_grad()
def evaluate(model: Executable, rows: int, timestep: float) -> None:
    """A call of the model on so many samples."""
    x = torch.randn(rows, *model.config.sample_shape, device=model.device, dtype=model.dtype)
    model(x, times(x, timestep, "cpu"), torch.zeros(rows, dtype=torch.long, device=model.device))


def time_forward(checkpoint: Checkpoint, rows: int, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Seconds of a call of a checkpoint's model as it is."""
    model = checkpoint.build().to(device, dtype)
    return seconds_of(partial(evaluate, model, rows, process_of(checkpoint.config).span[1]), device)


def few_samples(part: Checkpoint) -> int:
    """On how many samples a part is timed: some, and so many that their products take most of the time."""
    return max(2, math.ceil(PART_MACS / static_macs(part.config)))


def multiple(size: int, least: int, most: int) -> int:
    """The smallest multiple of `size` that is `least` or more, at most `most`."""
    return min(most, size * math.ceil(least / size))


def describe_part(part: Checkpoint, whole: Checkpoint, batch: int, seconds: float) -> str:
    """How a time was found that was scaled by MACs, `seconds` being the part's; a rate is of the MACs of a forward pass."""
    rate = static_macs(part.config) * batch / seconds
    return (
        f"from MACs: a step of {part.config.depth} of {whole.config.depth} blocks on {batch} samples, timed here, is "
        f"{rate / 1e9:.3g} GMACs/s of a forward pass"
    )

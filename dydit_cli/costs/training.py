"""What a pre-training or a fine-tuning will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.costs.memory import optimizer_bytes, touch, training_memory, training_state, weight_bytes
from dydit_cli.costs.plan import Machine, Plan, output
from dydit_cli.costs.timing import PATIENCE, describe_part, few_samples, multiple, part_of, seconds_of
from dydit_cli.data.dataset import Dataset
from dydit_cli.data.load import load_data
from dydit_cli.devices import pick_device, total_memory
from dydit_cli.distributed import Distributed
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.macs import static_macs
from dydit_cli.train.batch import TrainingBatches, complete_count
from dydit_cli.train.loop import frozen
from dydit_cli.train.recipe import Recipe
from dydit_cli.train.run_folder import RunFolder, RunSpec
from dydit_cli.train.step import Trainer

METRICS_BYTES = 350  # a step's line

AT_ONCE = 5e9  # MACs of a step that is timed without a look at a part of it


def training_plan(spec: RunSpec, out: Path, device: str, force: bool) -> Plan:
    """Of `train.run.run_training`; raises `DyditError` where the data cannot be read or do not fit the model."""
    import torch._dynamo  # noqa: F401  # which an optimiser loads, and holds

    folder, recipe, start = RunFolder(out), spec.recipe, spec.start
    data = load_data(recipe.data, start.config)
    data.check(start.config, start.latents)
    touch(start.weights)
    machine = Machine.now(pick_device(device))
    batch = TrainingBatches(data, start.config, recipe)(recipe.train.steps - 1)
    micro = batch.select(slice(0, len(batch) // recipe.train.accumulation))
    taught = teacher_start(spec)
    memory = training_memory(
        start.config, recipe, None if taught is None else taught.config, replace(micro, complete=None),
        complete_part(recipe, start), machine.device,
    )  # fmt: skip
    peak = sum(memory.values()) + machine.program
    seconds, timing = training_seconds(spec, data, machine, peak, taken(folder, force))
    saves = min(recipe.train.keep, recipe.train.steps // recipe.train.save_every)
    state = 2 * memory["weights"] + optimizer_bytes(start.config, recipe)
    size = weight_bytes(start.config) + METRICS_BYTES * recipe.train.steps + (state if recipe.train.keep_state else 0)
    return machine.plan(
        memory,
        seconds=seconds,
        timing=timing,
        outputs=[output(out, size, force, lambda: folder.check(spec, force), folder.states.exists() or folder.kept.exists())],
        scratch=state * (saves + 1) if saves else 0,  # a new one is written before an old one goes
        recipe=recipe.model_dump(),
        notes=notes(recipe, start),
    )


def notes(recipe: Recipe, start: Checkpoint) -> list[str]:
    """What the time leaves out."""
    routing, dynamic = recipe.routing, start.config.dynamic
    there = {
        "calibration": routing.calibrate or routing.range is not None,
        "the importance of heads and channels": routing.start == "importance",
        "thresholds of random routers": "random" in (routing.width, routing.tokens),
    }
    left_out = [name for name, is_there in there.items() if is_there and dynamic]
    compiled = ["torch.compile, which changes time and memory, is not in it"] if recipe.train.compile else []
    adapters = ["planned as if all were trained: with adapters gradients, optimiser state and EMA are a small part of that"]
    time = [f"not in the time: {', '.join(left_out)}"] if left_out else []
    return [*time, *compiled, *([] if recipe.lora.rank is None else adapters)]


def teacher_start(spec: RunSpec) -> Checkpoint | None:
    """What the run learns from, where it does."""
    return (spec.teacher or spec.start) if spec.recipe.train.teacher_weight else None


def complete_part(recipe: Recipe, start: Checkpoint) -> int:
    """Samples of a micro-batch that the complete model sees, in the steps where it sees any."""
    if not start.config.dynamic or not recipe.routing.complete_steps:
        return 0
    return -(-complete_count(recipe.train.batch_size, recipe.routing) // recipe.train.accumulation)


def taken(folder: RunFolder, force: bool) -> int:
    """Steps of the run in the folder that need not be taken again."""
    states = next((states for states in (folder.states, folder.kept) if states.exists()), None)
    return 0 if states is None or force else max(states.steps(), default=0)


def check_room(spec: RunSpec, device: str) -> None:
    """Raises `DyditError` where a training cannot fit: it takes more memory than there is in all, free or not."""
    recipe, config, place = spec.recipe, spec.start.config, pick_device(device)
    if recipe.lora.rank is not None:  # adapters take a small part of what is counted here
        return
    total, taught = total_memory(place), teacher_start(spec)
    needed = sum(training_state(config, recipe, None if taught is None else taught.config).values())
    if total and needed > total:
        raise DyditError(
            f"weights, gradients, optimiser state and averages take {needed / 1e9:.1f} GB, and {place.type} has "
            f"{total / 1e9:.1f} GB in all; train a smaller model, or on another --device (dydit plan shows it by part)"
        )


def training_seconds(spec: RunSpec, data: Dataset, machine: Machine, peak: int, done: int) -> tuple[float, str]:
    """Of the steps that are left after `done`, and how it was found."""
    recipe, start = spec.recipe, spec.start
    steps, size = recipe.train.steps, recipe.train.batch_size
    seen = sum(recipe.routing.complete_now(step) for step in range(done, steps)) if start.config.dynamic else 0
    # a step with the complete model, and one without it: how many there are of each
    kinds = {step: count for step, count in ((0, seen), (steps - 1, max(0, steps - done - seen))) if count}
    if not kinds:
        return 0.0, "no step is left"

    part = part_of(start)
    few = multiple(recipe.train.accumulation, least_batch(recipe, part), size)
    scale = static_macs(start.config) * size / (static_macs(part.config) * few)
    roomy = not machine.free or 2 * peak < machine.free
    per_step: dict[int, float] = {}
    if not roomy or static_macs(start.config) * size > AT_ONCE:
        small = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": few})})
        teacher = part if spec.teacher is None else part_of(spec.teacher)
        per_step = {
            step: scale * seconds for step, seconds in time_steps(part, teacher, small, data, machine.device, [*kinds]).items()
        }
    if roomy and max(per_step.values(), default=0.0) <= PATIENCE:
        per_step = time_steps(start, spec.teacher or start, recipe, data, machine.device, [*kinds])
        how = "a few steps of this run, timed here"
    else:
        how = describe_part(part, start, few, max(per_step.values()) / scale)
    return sum(per_step[step] * count for step, count in kinds.items()), how


def least_batch(recipe: Recipe, part: Checkpoint) -> int:
    """Of a part that is timed; the complete model sees a sample of it, where it sees any."""
    return max(few_samples(part), round(1 / recipe.routing.complete_share) if part.config.dynamic else 1)


def time_steps(
    start: Checkpoint, teacher: Checkpoint, recipe: Recipe, data: Dataset, device: torch.device, steps: Sequence[int]
) -> dict[int, float]:
    """Seconds of steps by their numbers, of a training of a copy of `start`."""

    def built(checkpoint: Checkpoint) -> Backbone:
        return checkpoint.build().to(device).float()

    with torch.random.fork_rng(devices=[]):
        known = frozen(built(teacher)) if recipe.train.teacher_weight else None
        trainer = Trainer(built(start), recipe, Distributed(), known)
        batches = TrainingBatches(data, start.config, recipe)
        return {step: seconds_of(lambda step=step: trainer.step(batches(step), step), device) for step in steps}  # type: ignore[misc]

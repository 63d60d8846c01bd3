"""What sampling will take, as pictures, as an array, or to be profiled or evaluated.

Legend: M images, B batch, C channels, S size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dydit_cli.artifacts.samples import RECORD_FILE, SHARDS
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import asked_ratio, set_ratio
from dydit_cli.costs.memory import LiveBytes, forward_memory, touch
from dydit_cli.costs.plan import Machine, Plan, held, output
from dydit_cli.costs.timing import PATIENCE, describe_part, evaluate, few_samples, part_of, seconds_of, time_forward
from dydit_cli.data.vae import Decode
from dydit_cli.devices import DTYPES, pick_device
from dydit_cli.diffusion.options import ReadySettings
from dydit_cli.files import check_output
from dydit_cli.model.caching import reused_numbers
from dydit_cli.model.execution import FREE_SHARE, Executable, executor
from dydit_cli.model.families import family_of
from dydit_cli.model.macs import static_macs
from dydit_cli.model.planning import ROWS
from dydit_cli.profiling.options import ProfileOptions
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import cache_of, open_sampler
from dydit_cli.sampling.shards import SHARD_SIZE, ShardedRun

TIMED = 4  # timesteps of a run that are timed: what a DyDiT does differs by them


@dataclass(frozen=True)
class SamplingCost:
    """Of sampling: `memory` as of a `Plan`, `seconds` (None where the solver chooses its steps) and how they were found, and
    the bytes of the pictures' pixels."""

    machine: Machine
    memory: dict[str, int]
    seconds: float | None
    timing: str
    pixels: int


def sampling_cost(loaded: Checkpoint, config: SamplingConfig, num: int, decoded: bool = True) -> SamplingCost:
    """Of `num` images, `config.batch` at once, `decoded` where they are latents; raises as `open_sampler`."""
    loading = load_libraries(loaded)
    device, ready, at_once = pick_device(config.device), config.settings.for_model(loaded.config), min(num, config.batch)
    rows, dtype = at_once * (1 if ready.cfg == 1 else 2), DTYPES[config.dtype]
    touch(loaded.weights)
    machine, before = Machine.now(device), held(device)
    model, decode = opened_model(loaded, config, decoded)
    opened = held(device) - before
    memory = {**forward_memory(loaded.config, rows, device, dtype), **kept_memory(loaded, config, ready, rows, machine)}
    seconds, timing = run_seconds(model, loaded, config, ready, num, at_once, machine, sum(memory.values()))
    shape = loaded.config.sample_shape
    pictures, side = num * math.prod(shape[:-3]), shape[-1]
    if decode is not None:
        latent = torch.zeros(1, *shape[-3:])
        with LiveBytes() as live:
            side = decode(latent).shape[-1]
        memory["VAE"] = max(0, opened - memory["weights"]) + live.peak
        if seconds is not None:
            seconds += pictures * seconds_of(partial(decode, latent), device, warm_up=0)
    seconds = None if seconds is None else seconds + loading
    return SamplingCost(machine, memory, seconds, timing, pictures * side * side * 3)


def load_libraries(loaded: Checkpoint) -> float:
    """Loads what a run does, which then holds it, and returns the seconds that it took."""
    start = time.perf_counter()
    if family_of(loaded.config).process == "gaussian":
        from diffusers import DPMSolverMultistepScheduler  # noqa: F401
    return time.perf_counter() - start


def opened_model(loaded: Checkpoint, config: SamplingConfig, decoded: bool) -> tuple[Executable, Decode | None]:
    """As the run builds it, and what decodes its samples."""
    if decoded:
        image_sampler = open_sampler(loaded, config)
        return image_sampler.model, image_sampler.decode
    built = loaded.build().to(pick_device(config.device)).float()
    return executor(built, config.execution, plan_memory=config.plan_memory, tome=config.tome, cache=config.cache), None


def kept_memory(
    loaded: Checkpoint, config: SamplingConfig, ready: ReadySettings, rows: int, machine: Machine
) -> dict[str, int]:
    """Bytes by part of what stays from step to step, for so many samples at once."""
    model, itemsize = loaded.config, DTYPES[config.dtype].itemsize
    schedule = cache_of(loaded, config)
    kept = {
        "cache": 0 if schedule is None else schedule.bytes(model, rows, itemsize),
        "outputs of skipped tokens": reused_numbers(model) * rows * itemsize if config.cache.reuse_skipped else 0,
    }
    if not model.dynamic or config.execution not in ("sparse", "padded"):
        return kept
    # adaLN of several steps at once, and of q, k and v a second weight whose rows stand head by head
    ahead = max(ROWS, rows) * model.depth * (6 * model.hidden_size) * itemsize
    second = sum(
        3 * site.units * site.unit * model.hidden_size for i in range(model.depth) for site in [model.site("heads", i)]
    )
    kept |= {"plan of steps": ahead + second * itemsize}
    if machine.device.type != "cpu":
        room = machine.free // FREE_SHARE if config.plan_memory is None else config.plan_memory
        kept["copies of weights, at most"] = room
    return kept


def run_seconds(
    model: Executable,
    loaded: Checkpoint,
    config: SamplingConfig,
    ready: ReadySettings,
    num: int,
    at_once: int,
    machine: Machine,
    memory: int,
) -> tuple[float | None, str]:
    """Of sampling `num` images, and how it was found; None where the solver chooses its steps."""
    every = ready.timesteps
    if every is None:
        return None, f"sampler {ready.sampler} chooses its own steps"
    schedule = cache_of(loaded, config)
    computed = [t for t in every if schedule is None or schedule.computed[schedule.steps[t]]]
    halves = {t: 1 if ready.guidance_at(t) == 1 else 2 for t in computed}
    calls = sum(halves[t] for t in computed) * num  # samples that the model sees
    macs, ratio = static_macs(loaded.config), set_ratio(loaded.lineage) or asked_ratio(loaded.lineage) or 1.0
    part = part_of(loaded, static=True)
    few = min(few_samples(part), 2 * at_once)
    device, most = machine.device, at_once * max(halves.values())
    seconds = time_forward(part, few, device, DTYPES[config.dtype])
    scaled = seconds / (few * static_macs(part.config)) * macs  # of a sample, everything on
    if scaled * most > PATIENCE or (machine.free and 2 * (memory + machine.program) > machine.free):
        # of a DyDiT the share that it was trained for is left
        return scaled * calls * ratio, describe_part(part, loaded, few, seconds)
    model.plan(every)
    chosen = computed[:: max(1, len(computed) // TIMED)][:TIMED]
    spent = [seconds_of(partial(evaluate, model, at_once * halves[t], t), device) / (at_once * halves[t]) for t in chosen]
    model.clear()
    return calls * sum(spent) / len(spent), f"{len(chosen)} steps of this run, timed here"


def sample_plan(
    loaded: Checkpoint, out: Path, config: SamplingConfig, num: int, shard_size: int | None, npz: bool, force: bool
) -> Plan:
    """Of `dydit sample`; with `npz` of what is missing of a run that was begun."""
    run = ShardedRun(out / SHARDS, num, shard_size or SHARD_SIZE, ".npz")
    left = num if not npz or force else sum(len(run.items(shard)) for shard in run.missing())
    cost = sampling_cost(loaded, config, max(left, 1))
    share = left / max(left, 1)
    whole = int(cost.pixels / max(left, 1) * num)
    check = (lambda: out) if npz and (out / RECORD_FILE).is_file() else (lambda: check_output(out, force))
    memory = cost.memory | {"pictures": (min(num, run.size) if npz else num) * whole // num}
    return cost.machine.plan(
        memory,
        seconds=None if cost.seconds is None else cost.seconds * share,
        timing=cost.timing,
        outputs=[output(out, whole * (1 if npz else 2), force, check, npz)],
        scratch=whole if npz else 0,
        notes=() if npz else ("pictures are PNG files, which take less disk than the pixels that are counted",),
    )


def profile_plan(checkpoints: Sequence[Checkpoint], out: Path, options: ProfileOptions, device: str, force: bool) -> Plan:
    """Of `dydit profile` of these, one after the other."""
    config = SamplingConfig(
        settings=options.settings, batch=options.batch, device=device, tome=options.tome, cache=options.cache,
        plan_memory=options.plan_memory,
    )  # fmt: skip
    costs = [sampling_cost(loaded, config, options.images, decoded=False) for loaded in checkpoints]
    records = [record_bytes(loaded, options) for loaded in checkpoints]
    largest = max(costs, key=lambda cost: sum(cost.memory.values()))
    seconds = [cost.seconds for cost in costs]
    return largest.machine.plan(
        largest.memory | {"routing": max(records)},
        seconds=None if None in seconds else sum(filter(None, seconds)) * (3 if options.time else 1),
        timing=largest.timing,
        outputs=[output(out, sum(records) // 8, force)],  # token masks are kept as bits
        notes=("files are compressed, and take less disk than is counted",),
    )


def record_bytes(loaded: Checkpoint, options: ProfileOptions) -> int:
    """Of what a profile keeps of a run: a byte for every token of the images with masks, at every call and block."""
    config, ready = loaded.config, options.settings.for_model(loaded.config)
    masks = min(options.images, options.keep_masks) * config.num_tokens + 4 * options.images
    return ready.work * config.depth * (1 if ready.cfg == 1 else 2) * masks

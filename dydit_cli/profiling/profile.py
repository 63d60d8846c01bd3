"""`dydit profile`: a sampling run, its routing and MACs at every timestep, as files that figures draw from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dydit_cli.artifacts.profile import Profile, RoutingRecord, timestep_table
from dydit_cli.checkpoint.lineage import CARD_FILE, asked_ratio, set_ratio, with_figures
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import Progress, cycle_labels
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output, write_text
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.caching import CacheSchedule, cache_protocol
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.execution import Executable, executor, static_twin
from dydit_cli.profiling.options import ProfileOptions
from dydit_cli.profiling.record import Recorder
from dydit_cli.profiling.step_timer import StepTimer
from dydit_cli.provenance import made_by
from dydit_cli.units import macs, sampling, share
from dydit_cli.version import __version__


def profile(
    checkpoint: CheckpointLike,
    out: str | Path | None = None,
    options: ProfileOptions = ProfileOptions(),
    *,
    name: str | None = None,
    reading: LoadOptions = LoadOptions(),
    device: str = "auto",
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> Profile:
    """Samples images and counts what every step executed; writes to `out` if given.

    A static model's profile is what it always does. `changes` replace single fields of `options`, as in
    `profile(checkpoint, images=4)`; `name` is what the summary calls the model, by default its path. Raises `DyditError`
    for an existing `out` (without `force`), and as `ProfileOptions` does.
    """
    if out is not None:
        check_output(out, force)
    checkpoint, options = read(checkpoint, reading), replace(options, **changes)
    config, place = checkpoint.config, pick_device(device)
    settings = options.settings.for_model(config)
    if not settings.whole_run:
        raise DyditError("a profile counts the same guidance at every step; leave the guidance interval (cfg_interval) out")
    schedule = options.cache.schedule(settings.timesteps, settings.sampler)
    if settings.timesteps is None and options.images > options.batch:
        raise DyditError(
            f"sampler {settings.sampler} chooses other timesteps for every batch, and {options.images} images are several; "
            f"profile {options.batch}, or raise the batch"
        )
    built = checkpoint.build().to(place).float()

    def runner() -> Executable:
        return executor(built, "sparse", plan_memory=options.plan_memory, tome=options.tome, cache=options.cache)

    model = runner()
    halves = 1 if settings.cfg == 1 else 2
    recorder = Recorder(model, halves, max(1, options.keep_masks))
    clock = None
    if options.time and model is not built:  # a static model as it is has nothing to be compared with
        whole = static_twin(built) if isinstance(built, DynamicBackbone) else built
        clock = StepTimer(runner(), whole, recorder, settings.timesteps or ())
    labels = cycle_labels(list(options.classes or config.class_numbers), options.images)
    samples = recorder.sample(
        labels, options.settings, seed=options.seed, batch=options.batch, denoiser=clock, on_progress=on_progress
    )
    record = recorder.record()
    table = timestep_table(record, config)
    if clock:
        table = clock.add_to(table)
    static, dynamic = float(table["static_macs"].mean()), float(table["dynamic_macs"].mean())
    ratio = set_ratio(checkpoint.lineage)
    forwards, tally = len(table) * halves, recorder.tally
    summary = {
        **Profile.header(),
        **made_by(),
        "checkpoint": str(checkpoint.path) if name is None else name,
        "model": config.to_dict(),
        "lineage": checkpoint.lineage,
        "unit": "MAC (1 multiply-accumulate = 1 FLOP of fvcore and the papers), mean per forward and image",
        "macs_static": static,
        "macs_dynamic": dynamic,
        "macs_static_per_image": static * forwards,
        "macs_dynamic_per_image": dynamic * forwards,
        "ratio": dynamic / static,
        "routed_ratio": float(table["routed_ratio"].mean()),
        "flops_ratio_asked": asked_ratio(checkpoint.lineage),
        **({} if ratio is None else {"flops_ratio": ratio}),
        "tome": options.tome or None,
        **cache_protocol(options.cache, schedule),
        **({} if schedule is None else cache_facts(schedule, record, config, min(options.images, options.batch) * halves)),
        "tokens_in_attention": config.num_tokens if recorder.merging is None else recorder.merging.kept,
        "active_heads_share": float(table["active_heads_share"].mean()),
        "active_groups_share": float(table["active_groups_share"].mean()),
        "active_tokens_share": float(table["active_tokens_share"].mean()),
        "forwards_per_image": forwards,
        "executed_macs": dict(tally.counted),
        "formula_macs": dict(tally.formula),
        "counters_agree": tally.agree,
        "operations_without_handle": dict(tally.unknown),
        **{name: value for name, value in settings.protocol().items() if name != "cfg_interval"},
        **({"model_calls": len(table)} if "model_calls" in settings.protocol() else {}),
        "images": options.images,
        **({"classes": list(options.classes)} if options.classes else {}),
        "images_with_masks": record.tokens.shape[3],
        "seed": options.seed,
        "dtype": "float32",
        "device": place.type,
        "versions": {"dydit": __version__, "torch": torch.__version__},
    }
    if clock:
        summary |= clock.summary(dynamic / static)
    result = Profile(summary, table, record, samples.numpy(), labels.numpy(), recorder.film())
    if out is not None:
        result.write(out)
    return result


def cache_facts(schedule: CacheSchedule, record: RoutingRecord, config: ModelConfig, batch: int) -> dict[str, Any]:
    """How many of the run's model calls were computed and how many forecast, and what the cache kept of `batch` samples."""
    forecast = int((record.forecasts > 0).sum())
    bytes_kept = schedule.bytes(config, batch, itemsize=4)
    return {"calls_computed": len(record.forecasts) - forecast, "calls_forecast": forecast, "cache_bytes": bytes_kept}


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """A folder name for each checkpoint: the last part of its path, numbered where two are the same."""
    names: list[str] = []
    for checkpoint in checkpoints:
        stem = Path(checkpoint).name.removesuffix(".pt").removesuffix(".safetensors") or "checkpoint"
        taken = {name for name in names if name == stem or name.startswith(f"{stem}-")}
        names.append(f"{stem}-{len(taken) + 1}" if taken else stem)
    return names


def add_to_card(folder: str | Path, profile: Profile) -> None:
    """Writes the section of figures into README.md of a checkpoint folder, replacing an older one.

    Raises `DyditError` where the checkpoint is no folder with a card.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise DyditError(f"{folder}: has no {CARD_FILE} to add figures to; only checkpoint folders written by dydit have one")
    write_text(path, with_figures(path.read_text(encoding="utf-8"), card_lines(profile)))


def card_lines(profile: Profile) -> list[str]:
    """The figures and their protocol, as Markdown."""
    summary = profile.summary
    return [
        f"- static: {macs(summary['macs_static'])}, dynamic: {macs(summary['macs_dynamic'])} per forward and image, "
        f"ratio {summary['ratio']:.4f}",
        f"- active: {share(summary['active_heads_share'])} of heads, {share(summary['active_groups_share'])} of channel "
        f"groups, {share(summary['active_tokens_share'])} of tokens in the MLPs",
        f"- measured by dydit {summary['versions']['dydit']}: {sampling(summary)}, cfg "
        f"{summary['cfg']:g}, {summary['images']} images, seed {summary['seed']}, {summary['dtype']}, {summary['device']}",
    ]

"""Static against masked and sparse, or against itself with merged tokens: the same batch at the same timesteps, one after the
other, again and again, so that drift and heat fall on all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dydit_cli.artifacts.bench import BenchResult
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.bench.breakdown import CACHED_PARTS, PARTS, TOME_PARTS, breakdown
from dydit_cli.bench.random_model import random_dydit
from dydit_cli.bench.trace import write_trace
from dydit_cli.checkpoint.budgets import at_ratio
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.devices import DTYPES, pick_device, synchronize
from dydit_cli.diffusion.process import process_of, times
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.caching import CacheOptions, cache_protocol
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.execution import Executable, MergedModel, SparseModel, executor, static_twin
from dydit_cli.model.families import build_model, named_config
from dydit_cli.model.macs import static_macs, total_macs
from dydit_cli.model.merging import Merging
from dydit_cli.model.routing import Routing
from dydit_cli.model.weight_cache import SliceStats

OnWork = Callable[[int, str], None]  # evaluations done, and what is being done


def interleaved(
    variants: Mapping[str, Callable[..., Any]],
    x: Tensor,
    y: Tensor,
    timesteps: Sequence[float],
    repeats: int,
    device: torch.device,
    on_work: OnWork,
    begin: Callable[[], None] = lambda: None,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """By variant the mean seconds of an evaluation, one figure a repeat, and on cuda the most bytes that one held.

    Each runs once beforehand, to be warm and compiled; `begin` is called before every repeat.
    """
    for kind, model in variants.items():
        model(x, times(y, timesteps[len(timesteps) // 2]), y)
        on_work(1, f"warming {kind}")
    means: dict[str, list[float]] = {kind: [] for kind in variants}
    peaks: dict[str, int] = {}
    order = list(variants)
    for repeat in range(repeats):
        sums = dict.fromkeys(variants, 0.0)
        begin()
        for i, timestep in enumerate(timesteps):
            t = times(y, timestep)
            shift = (repeat + i) % len(order)
            for kind in order[shift:] + order[:shift]:  # nobody always comes first
                seconds, peak = _time(variants[kind], (x, t, y), device)
                sums[kind] += seconds
                peaks[kind] = max(peaks.get(kind, 0), peak)
                on_work(1, "")
        for kind, total in sums.items():
            means[kind].append(total / len(timesteps))
    return means, peaks


def _time(model: Callable[..., Any], inputs: tuple[Tensor, ...], device: torch.device) -> tuple[float, int]:
    """Seconds of one evaluation and, on cuda, the most bytes that it held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    synchronize(device)
    start = time.perf_counter()
    model(*inputs)
    synchronize(device)
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def bench(
    checkpoint: CheckpointLike | None = None,
    *,
    model: str = "DiT-S/2",
    flops_ratio: float = 0.5,
    settings: BenchSettings = BenchSettings(),
    device: str = "auto",
    trace: str | Path | None = None,
    on_work: OnWork = lambda amount, note: None,
) -> BenchResult:
    """Times a DyDiT checkpoint (one of a range at `flops_ratio`), or a random DyDiT of the published size `model` at it.

    `trace` is a file to write, as `write_trace` does, of the steps that are run.
    Raises `DyditError` for a static checkpoint or a setting out of range.
    """
    where = pick_device(device)
    dynamic, name = model_of(checkpoint, model, flops_ratio, settings)
    if not isinstance(dynamic, DynamicBackbone):
        raise DyditError(f"{name}: is a static model; convert it first: dydit convert {name} DST")
    return _measure(dynamic.to(where, DTYPES[settings.dtype]), name, settings, where, trace, on_work)


def model_of(
    checkpoint: CheckpointLike | None, model: str, flops_ratio: float, settings: BenchSettings
) -> tuple[Backbone, str]:
    """A checkpoint's model (a DyDiT of a range at `flops_ratio`) or a random DyDiT of the size `model` at it, and its name."""
    if checkpoint is None:
        config = named_config(model)
        return random_dydit(config, flops_ratio, sampling_timesteps(config, settings), settings.seed), model
    loaded = read(checkpoint)
    if isinstance(loaded.config, RoutedConfig) and loaded.config.budgets:
        loaded = at_ratio(loaded, flops_ratio)
    return loaded.build().float(), str(loaded.path)


def _measure(
    dynamic: DynamicBackbone,
    name: str,
    settings: BenchSettings,
    device: torch.device,
    trace: str | Path | None,
    on_work: OnWork,
) -> BenchResult:
    config, dtype = dynamic.config, DTYPES[settings.dtype]
    x, y = make_inputs(config, settings, device, dtype)
    sparse = SparseModel(dynamic, access=settings.access, plan_memory=settings.plan_memory)
    static = static_twin(dynamic)
    sparse_variants = {"sparse": sparse}
    variants: dict[str, Callable[..., Any]] = {"static": static}
    if settings.compile:
        variants["static compiled"] = torch.compile(static, dynamic=False)
        sparse_variants["sparse compiled"] = SparseModel(
            dynamic, access=settings.access, plan_memory=settings.plan_memory, compile=True
        )
    if settings.masked:
        variants["masked"] = dynamic
    variants |= sparse_variants

    every = sampling_timesteps(config, settings)
    timesteps = settings.measured_of(every)
    with torch.inference_mode():
        start = time.perf_counter()
        SparseModel(dynamic, access=settings.access).plan(every)
        synchronize(device)
        plan_seconds = time.perf_counter() - start
        # the steps that are run share their adaLN with one another alone, fewer than in a whole run: no advantage
        for variant in sparse_variants.values():
            variant.plan(timesteps)

        def clear() -> None:
            for variant in sparse_variants.values():
                variant.clear()  # every sampling run makes its copies anew

        means, peaks = interleaved(variants, x, y, timesteps, settings.repeats, device, on_work, clear)
        totals = {kind: [seconds * settings.steps for seconds in values] for kind, values in means.items()}
        for kind in sparse_variants:
            totals[kind] = [seconds + plan_seconds for seconds in totals[kind]]
        macs = [total_macs(sparse(x, times(y, t), y, return_routing=True)[1], config) for t in timesteps]
        parts = breakdown({"static": static, "sparse": sparse}, PARTS, x, y, timesteps, settings.steps)
        stats = replace(sparse.stats)  # a trace adds to them
        if trace is not None:
            write_trace({"static": static, "sparse": sparse}, x, y, timesteps, trace)
    ratio = torch.stack(macs).double().mean().item() / static_macs(config)
    return BenchResult.of(
        name,
        settings,
        device,
        totals,
        "sparse",
        ratio,
        slices=stats,
        peaks=peaks,
        parts=parts,
        plan_seconds=plan_seconds,
    )


def sampling_timesteps(config: ModelConfig, settings: BenchSettings) -> Sequence[float]:
    """Of a whole sampling run, the noisiest first."""
    process = process_of(config)
    timesteps = process.grid(settings.steps)
    return timesteps if process.timeline.rising else timesteps[::-1]


def make_inputs(
    config: ModelConfig, settings: BenchSettings, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x: B Cin S S noise, and y: (B,) classes, of the settings' seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(settings.batch, *config.sample_shape, generator=generator)
    y = torch.randint(0, len(config.class_numbers), (settings.batch,), generator=generator)
    return x.to(device, dtype), y.to(device)


def bench_cached(
    cache: CacheOptions,
    checkpoint: CheckpointLike | None = None,
    *,
    model: str = "DiT-S/2",
    flops_ratio: float = 0.5,
    settings: BenchSettings = BenchSettings(),
    device: str = "auto",
    trace: str | Path | None = None,
    on_memory: Callable[[str], None] = lambda text: None,
    on_work: OnWork = lambda amount, note: None,
) -> BenchResult:
    """Times a checkpoint, static or DyDiT, or a random DyDiT as `bench` does, with a cache between steps (`CachedModel`);
    `subject` and `parts` call that `cached`.

    All steps of a run are run, since a cache forecasts from the steps before. `on_memory` is told what is kept, before it is.
    Raises `DyditError` as `CacheOptions.schedule` and `CachedModel` do, and for `compile`.
    """
    if settings.compile:
        raise DyditError("--compile is not timed with --cache; leave it out")
    where, settings = pick_device(device), replace(settings, measured=settings.steps)
    built, name = model_of(checkpoint, model, flops_ratio, settings)
    config, timesteps = built.config, sampling_timesteps(built.config, settings)
    schedule = cache.schedule(timesteps)
    cache.check(config)
    kept = config, schedule, settings.batch, DTYPES[settings.dtype].itemsize
    if settings.plan_memory is not None:
        cache.check_room(*kept, settings.plan_memory)
    for line in cache.memory(*kept):
        on_memory(line)
    built = built.to(where, DTYPES[settings.dtype])
    plain = executor(built, "sparse", plan_memory=settings.plan_memory)
    cached = executor(built, "sparse", plan_memory=settings.plan_memory, cache=cache)
    static = static_twin(built) if isinstance(built, DynamicBackbone) else built
    variants: dict[str, Executable] = {"static": static, **({"sparse": plain} if plain is not built else {}), "cached": cached}
    x, y = make_inputs(config, settings, where, DTYPES[settings.dtype])
    with torch.inference_mode():
        plan_seconds = {}
        for kind, variant in variants.items():
            start = time.perf_counter()
            variant.plan(timesteps)
            synchronize(where)
            plan_seconds[kind] = time.perf_counter() - start

        def clear() -> None:
            for variant in variants.values():
                variant.clear()

        means, peaks = interleaved(variants, x, y, timesteps, settings.repeats, where, on_work, clear)
        clear()
        macs = [total_macs(cached(x, times(y, t), y, return_routing=True)[1], config) for t in timesteps]
        clear()
        parts = breakdown({"static": static, "cached": cached}, CACHED_PARTS, x, y, timesteps, settings.steps)
        if trace is not None:
            write_trace({"static": static, "cached": cached}, x, y, timesteps, trace)
    seconds = {kind: [mean * settings.steps + plan_seconds[kind] for mean in own] for kind, own in means.items()}
    return BenchResult.of(
        name,
        settings,
        where,
        seconds,
        "cached",
        torch.stack(macs).double().mean().item() / static_macs(config),
        slices=SliceStats(),
        peaks=peaks,
        parts=parts,
        plan_seconds=plan_seconds["cached"],
        cache=cache_protocol(cache, schedule),
    )


def bench_tome(
    ratio: float,
    checkpoint: CheckpointLike | None = None,
    *,
    model: str = "DiT-S/2",
    settings: BenchSettings = BenchSettings(),
    device: str = "auto",
    trace: str | Path | None = None,
    on_work: OnWork = lambda amount, note: None,
) -> BenchResult:
    """Times a static checkpoint, or random weights of the published size `model`, with the share `ratio` of its tokens
    merged (`MergedModel`); `subject` and `parts` call that `tome`.

    Of the settings those of sparse execution mean nothing here. Raises `DyditError` for a DyDiT or a ratio out of range.
    """
    where, dtype = pick_device(device), DTYPES[settings.dtype]
    if checkpoint is not None:
        loaded = read(checkpoint)
        config, name = loaded.config, str(loaded.path)
        Merging.of(config, ratio)
        static = loaded.build()
    else:
        config, name = named_config(model), model
        Merging.of(config, ratio)
        torch.manual_seed(settings.seed)
        static = build_model(config).eval()
    static = static.to(where, dtype)
    tome = MergedModel(static, ratio)
    x, y = make_inputs(config, settings, where, dtype)
    variants: dict[str, Callable[..., Any]] = {"static": static, "tome": tome}
    if settings.compile:
        variants |= {f"{kind} compiled": torch.compile(variant, dynamic=False) for kind, variant in variants.items()}
    timesteps = settings.measured_of(sampling_timesteps(config, settings))
    with torch.inference_mode():
        means, peaks = interleaved(variants, x, y, timesteps, settings.repeats, where, on_work)
        parts = breakdown({"static": static, "tome": tome}, TOME_PARTS, x, y, timesteps, settings.steps)
        if trace is not None:
            write_trace({"static": static, "tome": tome}, x, y, timesteps, trace)
    seconds = {kind: [mean * settings.steps for mean in values] for kind, values in means.items()}
    flops_ratio = int(total_macs(Routing.all_on(config, 1), config, tome.merging)[0]) / static_macs(config)
    return BenchResult.of(
        name, settings, where, seconds, "tome", flops_ratio, slices=SliceStats(), peaks=peaks, parts=parts, tome=ratio
    )

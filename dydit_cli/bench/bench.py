"""Static against masked and sparse: the same batch at the same timesteps, one after the other, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dydit_cli.artifacts.bench import BenchResult, BenchSettings
from dydit_cli.bench.breakdown import breakdown
from dydit_cli.bench.interleave import OnWork, interleaved
from dydit_cli.bench.random_model import random_dydit
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.devices import DTYPES, pick_device, wait
from dydit_cli.diffusion.schedule import spaced_timesteps
from dydit_cli.errors import DyditError
from dydit_cli.flops.analytic import static_macs, total_macs
from dydit_cli.model.config import DiTConfig, named_config
from dydit_cli.model.dydit import DyDiT, static_twin
from dydit_cli.model.sparse import SparseDyDiT


def bench(
    checkpoint: CheckpointLike | None = None,
    *,
    model: str = "DiT-S/2",
    flops_ratio: float = 0.5,
    settings: BenchSettings = BenchSettings(),
    device: str = "auto",
    on_work: OnWork = lambda amount, note: None,
) -> BenchResult:
    """Times a DyDiT checkpoint, or a random DyDiT of the published size `model` at `flops_ratio`.

    Raises `DyditError` for a static checkpoint or a setting out of range.
    """
    place = pick_device(device)
    timesteps = spaced_timesteps(settings.steps)
    if checkpoint is not None:
        loaded = read(checkpoint)
        built, name = loaded.build().float(), str(loaded.path)
        if not isinstance(built, DyDiT):
            raise DyditError(f"{name}: is a static model; convert it first: dydit convert {name} DST")
        dynamic = built
    else:
        dynamic, name = random_dydit(named_config(model), flops_ratio, timesteps, settings.seed), model
    dynamic = dynamic.to(place, DTYPES[settings.dtype])
    return _measure(dynamic, name, settings, place, on_work)


def _measure(dynamic: DyDiT, name: str, settings: BenchSettings, place: torch.device, on_work: OnWork) -> BenchResult:
    config, dtype = dynamic.config, DTYPES[settings.dtype]
    x, y = make_inputs(config, settings, place, dtype)
    sparse = SparseDyDiT(dynamic, access=settings.access, plan_memory=settings.plan_memory)
    static = static_twin(dynamic)
    sparse_variants = {"sparse": sparse}
    variants: dict[str, Callable[..., Any]] = {"static": static}
    if settings.compile:
        variants["static compiled"] = torch.compile(static, dynamic=False)
        sparse_variants["sparse compiled"] = SparseDyDiT(
            dynamic, access=settings.access, plan_memory=settings.plan_memory, compile=True
        )
    if settings.masked:
        variants["masked"] = dynamic
    variants |= sparse_variants

    timesteps = settings.timesteps
    with torch.inference_mode():
        start = time.perf_counter()
        SparseDyDiT(dynamic, access=settings.access).plan(spaced_timesteps(settings.steps))
        wait(place)
        plan_seconds = time.perf_counter() - start
        # the steps that are run share their adaLN with one another alone, fewer than in a whole run: no advantage
        for variant in sparse_variants.values():
            variant.plan(timesteps)

        def forget() -> None:
            for variant in sparse_variants.values():
                variant.forget()  # every sampling run makes its copies anew

        means, peaks = interleaved(variants, x, y, timesteps, settings.repeats, place, on_work, forget)
        totals = {kind: [seconds * settings.steps for seconds in values] for kind, values in means.items()}
        for kind in sparse_variants:
            totals[kind] = [seconds + plan_seconds for seconds in totals[kind]]
        macs = [total_macs(sparse(x, torch.full_like(y, t), y, return_routing=True)[1], config) for t in timesteps]
        parts = breakdown(static, sparse, x, y, timesteps, settings.steps, place)
    ratio = torch.stack(macs).double().mean().item() / static_macs(config)
    return BenchResult.of(
        name, settings, place, totals, "sparse", ratio, slices=sparse.stats, peaks=peaks, parts=parts, plan_seconds=plan_seconds
    )


def make_inputs(config: DiTConfig, settings: BenchSettings, place: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x: B Cin S S noise, and y: (B,) classes, of the settings' seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(settings.batch, config.in_channels, config.input_size, config.input_size, generator=generator)
    y = torch.randint(0, config.num_classes, (settings.batch,), generator=generator)
    return x.to(place, dtype), y.to(place)

"""A static model against itself with its tokens merged in every attention (ToMe), as `run` times sparse execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dydit_cli.artifacts.bench import BenchResult, BenchSettings
from dydit_cli.bench.bench import make_inputs
from dydit_cli.bench.breakdown import Stopwatch, static_parts
from dydit_cli.bench.interleave import OnWork, interleaved
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.devices import DTYPES, pick_device
from dydit_cli.flops.analytic import static_macs, total_macs
from dydit_cli.model import tome as tome_module
from dydit_cli.model.config import named_config
from dydit_cli.model.dit import DiT
from dydit_cli.model.routing import Routing
from dydit_cli.model.tome import Merging, TomeDiT
from dydit_cli.model.weight_cache import SliceStats

PARTS = ("attention", "mlp", "modulation and norms", "matching", "gather and scatter", "rest")


def bench_tome(
    ratio: float,
    checkpoint: CheckpointLike | None = None,
    *,
    model: str = "DiT-S/2",
    settings: BenchSettings = BenchSettings(),
    device: str = "auto",
    on_work: OnWork = lambda amount, note: None,
) -> BenchResult:
    """Times a static checkpoint, or random weights of the published size `model`, with the share `ratio` of its tokens
    merged (`TomeDiT`); `subject` and `parts` call that `tome`.

    Of the settings those of sparse execution mean nothing here. Raises `DyditError` for a DyDiT or a ratio out of range.
    """
    place, dtype = pick_device(device), DTYPES[settings.dtype]
    if checkpoint is not None:
        loaded = read(checkpoint)
        config, name = loaded.config, str(loaded.path)
        Merging.of(config, ratio)
        static = loaded.build()
    else:
        config, name = named_config(model), model
        Merging.of(config, ratio)
        torch.manual_seed(settings.seed)
        static = DiT(config).eval()
    static = static.to(place, dtype)
    tome = TomeDiT(static, ratio)
    x, y = make_inputs(config, settings, place, dtype)
    variants: dict[str, Callable[..., Any]] = {"static": static, "tome": tome}
    if settings.compile:
        variants |= {f"{kind} compiled": torch.compile(variant, dynamic=False) for kind, variant in variants.items()}
    timesteps = settings.timesteps
    with torch.inference_mode():
        means, peaks = interleaved(variants, x, y, timesteps, settings.repeats, place, on_work)
        parts = breakdown(static, tome, x, y, timesteps, settings.steps, place)
    seconds = {kind: [mean * settings.steps for mean in values] for kind, values in means.items()}
    flops_ratio = int(total_macs(Routing.all_on(config, 1), config, tome.merging)[0]) / static_macs(config)
    return BenchResult.of(
        name, settings, place, seconds, "tome", flops_ratio, slices=SliceStats(), peaks=peaks, parts=parts, tome=ratio
    )


def breakdown(
    static: DiT, tome: TomeDiT, x: Tensor, y: Tensor, timesteps: list[int], steps: int, place: torch.device
) -> dict[str, dict[str, float]]:
    """Seconds by part over a sampling run of `steps`, from one evaluation at each of `timesteps`: part: static, tome."""
    watches = {"static": Stopwatch(place), "tome": Stopwatch(place)}
    for timestep in timesteps:
        t = torch.full_like(y, timestep)
        with static_parts(static, watches["static"]), watches["static"].part("rest"):
            static(x, t, y)
        with _tome_parts(tome, watches["tome"]), watches["tome"].part("rest"):
            tome(x, t, y)
    scale = steps / len(timesteps)
    return {part: {kind: watch.seconds[part] * scale for kind, watch in watches.items()} for part in PARTS}


@contextmanager
def _tome_parts(model: TomeDiT, watch: Stopwatch) -> Iterator[None]:
    functions = {"match": "matching", "merge": "gather and scatter", "unmerge": "gather and scatter"}
    with ExitStack() as stack:
        stack.enter_context(static_parts(model.model, watch, modulated_in="dydit_cli.model.tome"))
        for name, part in functions.items():
            stack.enter_context(patch.object(tome_module, name, watch.wrap(part, getattr(tome_module, name))))
        yield

"""Time sparse execution against the static model, interleaved, and show where the time goes; with --tome merged tokens, with
--cache steps that are forecast.

Example: `dydit bench --model DiT-S/2 --flops-ratio 0.5 --batch 2 --measure 2 --repeats 2`

For ui.perfetto.dev: `dydit bench --model DiT-S/2 --flops-ratio 0.5 --batch 2 --measure 2 --repeats 1 --trace trace.json`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dydit_cli import units
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.cli import console, options
from dydit_cli.errors import DyditError
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.options import Tome
from dydit_cli.options import Arg, Opt

if TYPE_CHECKING:
    from dydit_cli.artifacts.bench import BenchResult


def bench(
    checkpoint: Annotated[
        str | None,
        Arg(
            "[CKPT]",
            "A DyDiT checkpoint (with --tome a static one, with --cache either); without one, random weights of --model.",
        ),
    ] = None,
    model: Annotated[str, Opt("A published size, such as DiT-XL/2.")] = "DiT-S/2",
    flops_ratio: Annotated[
        float, Opt("The FLOPs ratio of a random model, or of a DyDiT of a range.", ("--flops-ratio", "--lambda"))
    ] = 0.5,
    tome: Tome = None,
    *,
    cache: CacheOptions,
    settings: BenchSettings,
    figure: Annotated[Path | None, Opt("Draw the breakdown: .png, .svg or .pdf.", metavar="FILE")] = None,
    trace: Annotated[
        Path | None, Opt("Write the steps that are run, once more, operation by operation for Perfetto: .json.", metavar="FILE")
    ] = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.bench.bench import bench as run
    from dydit_cli.bench.bench import bench_cached, bench_tome
    from dydit_cli.figures.visualize import prepare, save_as
    from dydit_cli.files import check_output

    if figure is not None:
        prepare(figure, force)
    if trace is not None:
        check_output(trace, force)
    if tome and cache.keeps:
        raise DyditError("--tome and --cache are timed apart; leave one out")
    variants = 2 + 2 * settings.compile + (settings.masked and not tome)
    count = settings.steps if cache.keeps else settings.count
    with console.stages() as work:
        work.begin("bench", variants * (1 + count * settings.repeats), "evaluations")
        common: dict[str, Any] = {
            "model": model,
            "settings": settings,
            "device": device,
            "trace": trace,
            "on_work": work.advance,
        }
        if cache.keeps:
            result = bench_cached(cache, checkpoint, flops_ratio=flops_ratio, on_memory=console.note, **common)
        elif tome:
            result = bench_tome(tome, checkpoint, **common)
        else:
            result = run(checkpoint, flops_ratio=flops_ratio, **common)
    if figure is not None:
        from dydit_cli.figures.time import draw_breakdown

        save_as(lambda: draw_breakdown(result), figure)
    if json:
        console.as_json(result.to_dict())
    else:
        show(result)


def show(result: BenchResult) -> None:
    """The times, the breakdown and the closing ratio."""
    settings = result.settings
    console.table(
        f"{result.model}, batch {settings.batch}, {settings.dtype}, {result.device}: {settings.steps} steps",
        ["", "median [s]", "quartiles [s]", "ms/step", *(["peak [GB]"] if result.peak_bytes else [])],
        [
            [
                kind,
                f"{spread.median:.2f}",
                f"{spread.low:.2f} to {spread.high:.2f}",
                f"{1000 * spread.median / settings.steps:.1f}",
                *([f"{result.peak_bytes[kind] / 1e9:.2f}"] if result.peak_bytes else []),
            ]
            for kind, spread in result.seconds.items()
        ],
    )
    kind = result.timed
    console.table(
        "Where the time goes [s]",
        ["", "static", kind, f"{kind} / static"],
        [
            [part, f"{both['static']:.2f}", f"{both[kind]:.2f}", _ratio(both[kind], both["static"])]
            for part, both in result.parts.items()
        ],
    )
    speedup, efficiency, slices = result.speedup, result.realised_efficiency, result.slices
    plan = f"({units.seconds(result.plan_seconds)})"
    weights = (
        f"weights: {slices.distinct} distinct sets, {slices.hits} hits, {slices.misses} misses, {slices.bytes / 1e6:.0f} MB "
        f"of copies, {slices.evictions} evicted; "
    )
    console.say(
        f"speed-up of {result.subject} {speedup.median:.3f} ({speedup.low:.3f} to {speedup.high:.3f}) over {result.baseline}, "
        f"{'ToMe ' + format(result.tome, 'g') if result.tome else 'planning included ' + plan}"
        f"{kept_between(result.cache or {})}; "
        f"FLOPs ratio {result.flops_ratio:.3f}\n"
        f"realised efficiency {efficiency.median:.3f} ({efficiency.low:.3f} to {efficiency.high:.3f}): 1 is time saved in "
        f"proportion to FLOPs saved\n"
        f"{weights if kind == 'sparse' else ''}{settings.count} of {settings.steps} steps run {settings.repeats} times"
    )


def kept_between(cache: dict[str, Any]) -> str:
    """What was kept from step to step."""
    forecast = f", cache {cache['cache']} at {cache['cache_at']}" if cache.get("cache") else ""
    return forecast + (", skipped outputs reused" if cache.get("reuse_skipped") else "")


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.3f}" if b else ""

"""Draw images: single PNGs and a grid, or with --npz one array.

Example: `dydit sample digits-dit --num 8 --classes 0,1,2 --steps 10 --out runs/samples`
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dydit_cli import units
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.cli.planning import Planned, planned
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.options import Opt
from dydit_cli.sampling.options import SamplingConfig

if TYPE_CHECKING:
    from dydit_cli.checkpoint.checkpoint import Checkpoint

SHARED = PLANNED = True


def sample(
    typed: Typed,
    checkpoint: options.Ckpt,
    out: options.Out,
    *,
    num: Annotated[int, Opt("How many images.", min=1)] = 64,
    classes: options.Classes = None,
    config: SamplingConfig,
    npz: Annotated[
        bool,
        Opt(
            "One array for ADM's evaluation suite, samples.npz, in place of pictures. The same command again "
            "continues after a kill, and adds images for a larger --num; `accelerate launch -m dydit_cli sample ...` shares "
            "it over processes."
        ),
    ] = False,
    shard_size: Annotated[int | None, Opt("Images in a shard of --npz.", metavar="N", min=1, default="500")] = None,
    cost: Annotated[
        float | None,
        Opt(
            "Take the best mix of steps, sampler, cache and FLOPs ratio for this share of the static model's many-step MACs, "
            "from the front that `dydit frontier --store` left.",
            metavar="SHARE",
            default="none",
        ),
    ] = None,
    seconds: Annotated[float | None, Opt("As --cost, for seconds per image.", metavar="S", default="none")] = None,
    loading: LoadOptions,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    if shard_size is not None and not npz:
        raise DyditError("--shard-size is for --npz; add it, or leave the size out")
    if cost is None and seconds is None:
        loaded = options.read_to_run(checkpoint, loading)
    else:
        loaded, config = within_budget(typed, options.read(checkpoint, loading), config, cost, seconds)
    config = replace(config, classes=options.class_numbers(classes, loaded))
    at_once = min(num, config.batch)
    options.show_cache(loaded, config.cache, config.settings, at_once, config.plan_memory, config.dtype)
    if planned():
        from dydit_cli.costs.sampling import sample_plan

        raise Planned(sample_plan(loaded, out, config, num, shard_size if npz else None, npz, force))
    if npz:
        with typed.continues():
            write_array(loaded, out, config, num, shard_size, force, json)
    else:
        write_pictures(loaded, out, config, num, force, json)


CHOSEN = (
    "--flops-ratio",
    "--steps",
    "--sampler",
    "--cache",
    "--cache-first",
    "--cache-last",
    "--cache-at",
    "--reuse-skipped",
    "--tome",
)


def within_budget(
    typed: Typed, loaded: Checkpoint, config: SamplingConfig, cost: float | None, seconds: float | None
) -> tuple[Checkpoint, SamplingConfig]:
    """The best mix of the stored front, which is said on stderr."""
    if cost is not None and seconds is not None:
        raise DyditError("--cost and --seconds are two budgets; leave one out")
    option, budget, over = ("--cost", cost, "cost") if cost is not None else ("--seconds", seconds, "seconds_per_image")
    if chosen := next((name for name in CHOSEN if name in typed.options), None):
        raise DyditError(f"{option} chooses {chosen} from the front; leave one of the two out")

    from dydit_cli.distributed import is_main
    from dydit_cli.sampling.fronts import best_within, stored_front, with_mix

    front = stored_front(loaded)
    mix = best_within(loaded, front, over, budget)  # type: ignore[arg-type]
    kept = {field.name for field in fields(SamplerSettings) if f"--{field.name.replace('_', '-')}" in typed.options}
    if is_main():
        took = (
            "" if mix.seconds_per_image is None else f", {mix.seconds_per_image:.3g} s per image on {front.summary['device']}"
        )
        said = "".join(f", {judge} {figures['frechet']:.4g}" for judge, figures in mix.judged.items())
        console.note(f"{option} {budget:g}: {mix.label}; cost {mix.cost:.3g}{took}, distance {mix.distance:.3g}{said}")
    return with_mix(loaded, front, mix, config, kept)


def write_pictures(loaded: Checkpoint, out: Path, config: SamplingConfig, num: int, force: bool, json: bool) -> None:
    from dydit_cli.sampling.images import sample_images

    with console.stages() as work:
        work.begin("sample", num, "images", config.settings.for_model(loaded.config).work)
        summary = sample_images(loaded, out, config, num=num, force=force, on_work=work.advance)
    if json:
        console.as_json(summary)
    else:
        console.say(f"{num} images in {out} ({summary['seconds_per_image']:.3f} s per image); all of them: {out / 'grid.png'}")


def write_array(
    loaded: Checkpoint, out: Path, config: SamplingConfig, num: int, shard_size: int | None, force: bool, json: bool
) -> None:
    from dydit_cli.artifacts.samples import ARRAY_FILE
    from dydit_cli.sampling.shards import SHARD_SIZE, sample_npz

    size = shard_size or SHARD_SIZE
    with console.stages() as work:
        summary = sample_npz(
            loaded, out, config, num=num, shard_size=size, force=force, on_stage=work.begin, on_progress=work.advance
        )
    if summary is None:  # the main process prints for all
        return
    if json:
        console.as_json(summary)
    else:
        drawn, took = summary["drawn"], units.seconds(summary["seconds"])
        console.say(f"{num} images in {out / ARRAY_FILE} (arr_0), {drawn} of them drawn now, in {took}")

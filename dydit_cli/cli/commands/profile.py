"""Count a model's FLOPs at every timestep of a sampling run, from what ran.

Writes timesteps.csv, blocks.csv, images.csv, routing.npz and profile.json.

Example: `dydit profile runs/digits-0.5 --out runs/profile-0.5`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dydit_cli import units
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.cli.planning import Planned, planned
from dydit_cli.errors import DyditError
from dydit_cli.options import Arg, Opt
from dydit_cli.profiling.options import ProfileOptions

if TYPE_CHECKING:
    from dydit_cli.artifacts.profile import Profile
    from dydit_cli.flops.published import StaticCount

PLANNED = True

Unit = Literal["mac", "flop"]


def profile(
    typed: Typed,
    checkpoints: Annotated[Sequence[str] | None, Arg("CKPT...", "One checkpoint, or several to compare.")] = None,
    out: Annotated[Path | None, Opt("The folder to write.", ("--out", "-o"), metavar="DIR")] = None,
    classes: options.Classes = None,
    *,
    config: ProfileOptions,
    width_only: Annotated[bool, Opt("Heads and groups at all 1,000 timesteps, without drawing images.")] = False,
    table: Annotated[bool, Opt("The twelve DiT sizes beside the published figures; no CKPT.")] = False,
    unit: Annotated[Unit, Opt("What is shown: mac, or flop (2 per MAC). Files hold MACs.")] = "mac",
    loading: LoadOptions,
    device: options.Device = "auto",
    force: options.Force = False,
    card: Annotated[bool, Opt("Add the figures to the checkpoint folder's README.md too.")] = False,
    json: options.Json = False,
) -> None:
    if table:
        if option := typed.other_than("--table", "--unit", "--json"):
            what = checkpoints[0] if checkpoints else option
            raise DyditError(f"--table shows the published sizes and profiles nothing; leave {what} out")
        if planned():
            raise Planned(None)
        show_static_table(unit, json)
        return
    if not checkpoints:
        raise DyditError("no checkpoint; name one, or show the published sizes with --table")
    if out is None:
        raise DyditError("no folder to write; name one with --out DIR")
    if (config.tome or config.cache.keeps) and (card or width_only):
        what = "--card tells of the checkpoint as it is" if card else "--width-only counts heads and groups alone"
        raise DyditError(
            f"{what}; leave {'--tome' if config.tome else '--cache' if config.cache.active else '--reuse-skipped'} out"
        )

    from dydit_cli.profiling.profile import names_of

    folders = [out] if len(checkpoints) == 1 else [out / name for name in names_of(checkpoints)]
    work = list(zip(checkpoints, folders, strict=True))
    if width_only:
        if planned():
            raise Planned(None)
        show_width(work, out, loading, unit, force, json)
        return

    from dydit_cli.artifacts.comparison import Comparison
    from dydit_cli.files import check_output
    from dydit_cli.profiling.profile import add_to_card
    from dydit_cli.profiling.profile import profile as run

    if planned():
        from dydit_cli.costs.sampling import profile_plan

        every = [options.read_to_run(checkpoint, loading) for checkpoint in checkpoints]
        raise Planned(profile_plan(every, out, config, device, force))
    check_output(out, force)
    results = []
    for checkpoint, folder in work:
        with console.stages() as stages:
            loaded = options.read_to_run(checkpoint, loading)
            work_of_one = config.settings.for_model(loaded.config).work
            stages.begin(f"profile {Path(checkpoint).name}", config.images * work_of_one, "image-steps")
            own = replace(config, classes=options.class_numbers(classes, loaded))
            options.show_cache(loaded, own.cache, own.settings, min(own.images, own.batch), own.plan_memory)
            results.append(
                run(
                    loaded, folder, own, device=device, force=force,
                    on_progress=lambda progress, stages=stages: stages.advance(progress.work),  # type: ignore[misc]
                )
            )  # fmt: skip
        if card:
            add_to_card(checkpoint, results[-1])
    if len(results) > 1:
        Comparison.of({folder.name: result for (_, folder), result in zip(work, results, strict=True)}).write(out)
        if json:
            console.as_json({"profiles": [result.summary for result in results]})
        else:
            show_comparison(results, out, unit)
    elif json:
        console.as_json(results[0].summary)
    else:
        show(results[0], unit)
        console.say(f"figures: dydit visualize {out} --figure architecture --out FILE.png (or tokens, flops)")


def show(result: Profile, unit: str) -> None:
    """The profile's tables, by phase of the schedule and by part, in 80 columns."""
    summary, means = result.summary, result.table.mean().to_dict()
    console.table(
        f"{summary['checkpoint']}: per forward and image",
        ["timesteps", "static", "dynamic", "ratio", "heads", "groups", "tokens"],
        [_row(str(row["phase"]), row, unit) for row in result.phases.to_dict("records")] + [_row("all", means, unit)],
    )
    console.table(
        "By part: per forward and image",
        ["", units.name(unit), "share"],
        [
            [name, units.work(means[f"{part}_macs"], unit), units.share(means[f"{part}_macs"] / means["dynamic_macs"])]
            for part, name in units.PARTS.items()
        ],
    )
    console.say(
        f"{units.convention(unit)}; {units.sampling(summary)}, cfg {summary['cfg']:g}, "
        f"{summary['images']} images, seed {summary['seed']}, {summary['device']}\n"
        f"{units.work(summary['macs_dynamic_per_image'], unit)} per generated image "
        f"({summary['forwards_per_image']} forwards); images differ by {_spread(result)}\n"
        f"ratio {summary['ratio']:.4f} of everything; {summary['routed_ratio']:.4f} of attention and MLP, "
        f"what lambda{_asked(summary)} steers"
    )
    if "speedup" in summary:
        console.say(
            f"{1000 * summary['dynamic_seconds']:.2f} ms per forward and image, static {1000 * summary['static_seconds']:.2f}: "
            f"speed-up {summary['speedup']:.2f}, realised efficiency {summary['realised_efficiency']:.2f}"
        )
    _say_counters(summary, unit)
    if summary["cache"]:
        computed, forecast = summary["calls_computed"], summary["calls_forecast"]
        kept = "the model's output is" if summary["cache_at"] == "model" else "outputs of attention and MLP are"
        console.say(
            f"cache {summary['cache']}: {computed} of {computed + forecast} model calls computed, {forecast} forecast; {kept} "
            f"kept, {summary['cache_bytes'] / 1e6:.3g} MB\n"
            f"{units.work(summary['macs_static_per_image'], unit)} per image of the static model without a cache"
        )
    if summary["reuse_skipped"]:
        console.say("a token that skips an MLP keeps the output that it last had there, which costs no MACs")
    if summary["tome"]:
        console.say(
            f"ToMe {summary['tome']:g}: every attention sees {summary['tokens_in_attention']} of "
            f"{result.config.num_tokens} tokens, every MLP all; the matching is counted as attention's"
        )
    elif not result.config.dynamic and not summary["cache"]:
        console.say("a static model does everything at every timestep: its ratio is 1")


def _say_counters(summary: Mapping[str, Any], unit: str) -> None:
    executed, formula = (sum(summary[name].values()) for name in ("executed_macs", "formula_macs"))
    if summary["counters_agree"]:
        console.say(
            f"counted from the calls that ran: {units.work(executed, unit)} in all, to the digit what the formula gives"
        )
    else:
        console.note(f"warning: the calls that ran count {executed} MACs, the formula {formula}; please report this")
    for name, calls in summary["operations_without_handle"].items():
        console.note(f"warning: not counted: {name}, {calls} calls")


def _spread(result: Profile) -> str:
    ratios = result.images["ratio"]
    return f"{ratios.std(ddof=0):.4f} of the static MACs (from {ratios.min():.4f} to {ratios.max():.4f})"


def _asked(summary: Mapping[str, Any]) -> str:
    asked = summary["flops_ratio_asked"]
    return "" if asked is None else f" ({asked:g})"


def _row(name: str, means: Mapping[Any, Any], unit: str) -> list[str]:
    return [
        name,
        units.work(means["static_macs"], unit),
        units.work(means["dynamic_macs"], unit),
        f"{means['ratio']:.3f}",
        *(units.share(means[f"active_{part}_share"]) for part in ("heads", "groups", "tokens")),
    ]


def show_comparison(results: list[Profile], out: Path, unit: str) -> None:
    """One row a checkpoint."""
    timed = all("speedup" in result.summary for result in results)
    console.table(
        "Per forward and image",
        [
            "checkpoint",
            "lambda",
            units.name(unit),
            "ratio",
            "heads",
            "groups",
            "tokens",
            *(["ms", "speed-up"] if timed else []),
        ],
        [
            [
                Path(summary["checkpoint"]).name,
                "" if summary["flops_ratio_asked"] is None else f"{summary['flops_ratio_asked']:g}",
                units.work(summary["macs_dynamic"], unit),
                f"{summary['ratio']:.4f}",
                *(units.share(summary[f"active_{part}_share"]) for part in ("heads", "groups", "tokens")),
                *([f"{1000 * summary['dynamic_seconds']:.2f}", f"{summary['speedup']:.2f}"] if timed else []),
            ]
            for summary in (result.summary for result in results)
        ],
    )
    for result in results:
        _say_counters(result.summary, unit)
    console.say(f"{units.convention(unit)}; compare.csv and a folder for each in {out}")


def show_width(work: Sequence[tuple[str, Path]], out: Path, loading: LoadOptions, unit: str, force: bool, json: bool) -> None:
    """Each checkpoint's TDW, by phase of the schedule."""
    from dydit_cli.profiling.width import profile_width

    results = [profile_width(options.read(checkpoint, loading), folder, force=force) for checkpoint, folder in work]
    if json:
        console.as_json(results[0].summary if len(results) == 1 else {"profiles": [result.summary for result in results]})
        return
    for result in results:
        console.table(
            f"{result.summary['checkpoint']}: heads and groups alone, per forward and image",
            ["timesteps", "heads", "groups", "no token", "all tokens", "static"],
            [_width_row(row["timesteps"], row, unit) for row in result.phases.to_dict("records")]
            + [_width_row("all", result.table.mean(), unit)],
        )
    console.say(f"{units.convention(unit)}; all 1,000 timesteps, exact; what tokens add depends on the images: {out}")


def _width_row(name: str, means: Any, unit: str) -> list[str]:
    shares = [units.share(means[f"active_{part}_share"]) for part in ("heads", "groups")]
    work = [units.work(means[column], unit) for column in ("dynamic_macs_no_tokens", "dynamic_macs_all_tokens", "static_macs")]
    return [name, *shares, *work]


def show_static_table(unit: str, json: bool) -> None:
    """The published sizes."""
    from dydit_cli.flops.published import static_table

    counts = static_table()
    if json:
        console.as_json({"unit": "MAC per forward and image", "sizes": [asdict(count) for count in counts]})
        return
    scale = units.per_mac(unit) / 1e9
    console.table(
        f"Static models at 32x32 latents (-512: 64x64; Latte: 16 frames): G{units.name(unit)} per forward and image",
        ["", "parameters", "products", "+ norms x1", "+ norms x4", "published"],
        [
            [
                count.model,
                f"{count.parameters / 1e6:.1f} M",
                *(f"{macs * scale:.3f}" for macs in (count.macs_products, count.macs_norms_once, count.macs)),
                _published(count, unit),
            ]
            for count in counts
        ],
    )
    console.say(
        f"{units.convention(unit)}. Included: attention, MLP, adaLN, embedders, final layer.\n"
        "products: matrix products and convolutions alone, what torch's counter sees (halved).\n"
        "norms x1: and 1 per element of a LayerNorm: the DiT paper's (118.64 for XL/2).\n"
        "norms x4: and 4 per element, fvcore's count: the DyDiT paper's (118.69), and dydit's.\n"
        "Latte's paper counts adaLN once a frame or place, 30 G more; here it runs once a video."
    )


def _published(count: StaticCount, unit: str) -> str:
    """As the paper rounds it; empty where it gives none."""
    giga = count.published_giga
    return "" if giga is None else f"{giga * units.per_mac(unit):.{0 if isinstance(giga, int) else 2}f}"

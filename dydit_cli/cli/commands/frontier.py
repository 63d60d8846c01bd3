"""Measure which mix of FLOPs ratio, sampling steps, sampler and cache stays nearest to the complete model for its cost.

All samples are compared with those of the first static CKPT, or where there is none of the first one with everything on, with
many steps from the same noise. Mixes run in rising cost, and one that on a quarter of the images is far from the front is
dropped. With --features judges then see more samples of each checkpoint's best mixes. The same command continues it after a
kill; started twice, two processes share the mixes.

Example: `dydit frontier digits-dit runs/digits-0.5 --store --images 16 --steps 10,5 --out runs/front`

Then: `dydit sample runs/digits-0.5 --cost 0.15 --out runs/cheap`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.options import Arg, Opt
from dydit_cli.studies.frontier_options import FrontierOptions

if TYPE_CHECKING:
    from dydit_cli.artifacts.frontier import MeasuredMix
    from dydit_cli.studies.frontier import FrontierResult


def frontier(
    typed: Typed,
    checkpoints: Annotated[Sequence[str], Arg("CKPT...", "A model, or several that began as one static model.")],
    out: options.Out,
    *,
    config: FrontierOptions,
    time: Annotated[bool, Opt("Take seconds when all mixes are measured.")] = True,
    store: Annotated[bool, Opt("Store each front with its checkpoint too, for `dydit sample --cost`.")] = False,
    loading: options.LoadingWithoutRatio,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.studies.frontier import frontier as run

    with typed.continues(), console.stages() as work:
        result = run(
            checkpoints, out, config, time=time, store=store, reading=loading, device=device, force=force,
            on_stage=work.begin, on_work=work.advance,
        )  # fmt: skip
    if json:
        console.as_json({"out": str(out), **result.frontier.to_dict(), "stored": [str(folder) for folder in result.stored]})
    else:
        show(result, str(out))
    if time and not result.left and any(mix.seconds_per_image is None and not mix.dropped for mix in result.frontier.mixes):
        console.note(f"another process takes the seconds; if none is running: {typed.again}")
    if result.left:
        console.note(f"{result.left} mixes are with other processes; if none is running: {typed.again}")


def show(result: FrontierResult, out: str) -> None:
    """The mixes on any front, how they came about, and where the files are."""
    front, about = result.frontier, result.frontier.summary
    fronts = {"MACs": front.front("cost"), "time": front.front("seconds_per_image")}
    fronts |= {judge: front.front("cost", judge) for judge in front.judges}
    shown = [mix for mix in sorted(front.mixes, key=lambda mix: mix.cost) if any(mix in of for of in fronts.values())]
    reference = about["reference"]
    console.table(
        "The front: nearest to the complete model for the cost",
        ["", "cost", "MACs", "ms", "distance", *front.judges, "front of"],
        [
            [
                front.label(mix),
                f"{mix.cost:.3f}",
                units.macs(mix.macs_per_image),
                "-" if mix.seconds_per_image is None else f"{1000 * mix.seconds_per_image:.1f}",
                f"{mix.distance:.3g}",
                *(judged(mix, judge) for judge in front.judges),
                ", ".join(name for name, of in fronts.items() if mix in of),
            ]
            for mix in shown
        ],
    )
    dropped = sum(mix.dropped for mix in front.mixes)
    for judge in front.judges:
        facts = about["judges"][judge]
        console.say(
            f"{judge}: Fréchet distance of {facts['images']:,} samples to {facts['reference']}, and its deviation over "
            f"draws of samples; of {sum(judge in mix.judged for mix in front.mixes)} mixes near their checkpoint's front"
        )
    console.say(
        f"cost: MACs per image over the static model's with {reference['steps']} steps; distance: mean squared, to samples of "
        f"{reference['checkpoint']} ({reference['sampler']}, {reference['steps']} steps), {about['images']} images, seed "
        f"{about['seed']}\n{len(front.mixes)} mixes, {dropped} of them dropped after a quarter of the images; "
        f"files in {out}: frontier.csv, frontier.json"
    )
    for folder in result.stored:
        console.say(f"stored: {folder}; dydit sample {folder} --cost {front.front('cost')[-1].cost:.2g} --out DIR")


def judged(mix: MeasuredMix, judge: str) -> str:
    """A judge's Fréchet distance."""
    figures = mix.judged.get(judge, {})
    value, deviation = figures.get("frechet"), figures.get("frechet_sd")
    if value is None:
        return "-"
    return f"{value:.4g}" if deviation is None else f"{value:.4g} ± {deviation:.2g}"

"""Measure the diffusion loss at every timestep on real images, and patch by patch: for `loss-gap` and `loss-maps`.

All models see the same images and noise. The loss is the mean squared error of the predicted noise. Writes losses.csv,
losses.npz and losses.json.

Example: `dydit losses runs/digits-0.5 digits-dit --out runs/losses --timesteps 50`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from dydit_cli.cli import console, options
from dydit_cli.evaluate.options import LossSettings
from dydit_cli.options import Arg, Opt

if TYPE_CHECKING:
    from dydit_cli.artifacts.losses import Losses


def losses(
    checkpoints: Annotated[Sequence[str], Arg("CKPT...", "One checkpoint, or a small and a large one.")],
    out: options.Out,
    *,
    data: Annotated[
        str | None,
        Opt(
            "digits, fashion or idx:PATH (their held-out images), imagefolder:PATH or latents:PATH.",
            default="what CKPT was trained on",
        ),
    ] = None,
    settings: LossSettings,
    loading: options.LoadingWithoutRatio,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.evaluate.timestep_loss import measure_losses

    models = [options.read(checkpoint, loading) for checkpoint in checkpoints]
    with console.stages() as work:
        result = measure_losses(
            models, out, data=data, settings=settings, device=device, force=force, on_stage=work.begin, on_work=work.advance
        )
    if json:
        means = {name: float(mse.mean()) for name, mse in zip(result.names, result.mse, strict=True)}
        console.as_json({**result.summary, "mse": means})
    else:
        show(result)
        console.say(f"figures: dydit visualize {out} --figure loss-gap --out FILE.png (or loss-maps)")


def show(result: Losses) -> None:
    """Means over four phases of the schedule."""
    summary, phases = result.summary, result.phases
    means = phases.assign(all=result.mse.mean(axis=(1, 2), dtype="float64"))
    rows = [[str(name), *("-" if value != value else f"{value:.4f}" for value in row)] for name, *row in means.itertuples()]
    first, *others = phases.columns
    console.table(
        f"Mean squared error of the {result.target}, {summary['images']} {'held-out ' if summary['held_out'] else ''}images of "
        f"{summary['data']}, seed {summary['seed']}, {summary['device']}",
        ["", f"t {first}", *others, "all"],
        rows,
    )

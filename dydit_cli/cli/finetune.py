"""dydit finetune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dydit_cli.cli import console, options
from dydit_cli.cli.training import Out, Resume, finish, interruptible, only_resume, train
from dydit_cli.errors import DyditError
from dydit_cli.seeds import LARGEST


def finetune(
    checkpoint: Annotated[
        str | None,
        typer.Argument(metavar="CKPT", help="A checkpoint: folder, .pt, .safetensors, hub id, or `digits-dit`, `glyphs-dit`."),
    ] = None,
    out: Out = None,
    flops_ratio: Annotated[
        float | None,
        typer.Option(
            "--flops-ratio",
            "--lambda",
            help="The share of the static FLOPs to come down to.",
            show_default="the recipe's, 0.5",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Optimiser steps; the recipe's phases stretch with them.", show_default="the recipe's"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, glyphs, imagefolder:PATH or latents:PATH.", show_default="RECIPE's, or what CKPT was trained on"
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A TOML recipe.", show_default="DATA/finetune")] = None,
    lr: Annotated[float | None, typer.Option(help="The model's learning rate.", show_default="the recipe's")] = None,
    router_lr: Annotated[float | None, typer.Option(help="The routers' learning rate.", show_default="the recipe's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="the recipe's")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST, help="The same seed gives the same result.", show_default="the recipe's")
    ] = None,
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of the recipe, such as train.ema_decay=0.99."),
    ] = [],  # noqa: B006
    num_classes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Another number of classes: draws a new label table."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Then shift the routers so that a sampling run has the FLOPs ratio, within 0.005."),
    ] = False,
    resume: Resume = None,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Fine-tune a DyDiT to a FLOPs ratio. A static model is tuned as it is: the control.

    Ctrl-C saves; the same command again, or --resume, continues to the very same end. The EMA weights are the result.
    Several processes, as `accelerate launch -m dydit_cli finetune ...` starts them, share each batch.

    Example: `dydit finetune runs/digits-dydit --flops-ratio 0.5 --data digits --out runs/digits-0.5`
    """
    from dydit_cli.distributed import is_main
    from dydit_cli.train.recipe import with_settings
    from dydit_cli.train.run import resolve_recipe, tuned_start, unfinished

    named = {"train.lr": lr, "routing.router_lr": router_lr, "train.batch_size": batch_size, "train.seed": seed}
    values = {key: value for key, value in named.items() if value is not None}
    if resume is not None:
        given = {"--out": out, "--flops-ratio": flops_ratio, "--steps": steps, "--data": data, "--recipe": recipe}
        given |= {"--lr": lr, "--router-lr": router_lr, "--batch-size": batch_size, "--seed": seed is not None}
        only_resume({**given, "--set": setting, "--num-classes": num_classes, "--force": force})
        place, asked = resume, unfinished(resume, checkpoint)
    elif checkpoint is None or out is None:
        raise DyditError(f"{'CKPT' if checkpoint is None else '--out'} is missing (see dydit finetune --help)")
    else:
        reading = options.reading(weights, num_heads, input_size, timestep_variant)
        start = options.read(checkpoint, reading)
        resolved = resolve_recipe(
            recipe, flops_ratio=flops_ratio, steps=steps, data=data, settings=setting, trained_on=start.trained_on
        )
        resolved = with_settings(resolved, values, "options")
        place, asked = out, tuned_start(start, resolved, reading, num_classes)
    if asked.start.config.kind == "dit" and is_main():
        console.note(
            f"{checkpoint or place} is a static model: tuning it as it is, without a FLOPs target "
            "(dydit convert makes it dynamic)"
        )
    if num_classes is not None and is_main():
        console.note(f"the label table is drawn anew for {num_classes} classes; the null class keeps its row")
    with interruptible() as stop:
        result = train("finetune", asked, place, device, force, stop)
        last = result.last
        more: dict[str, Any] = {"target": last.target, "training_ratio": last.ratio} if last else {}
        if calibrate and result.main and not result.interrupted:
            more |= calibrated(place, asked.recipe.routing.flops_ratio, device)
        finish("finetune", result, place, stop, json, more)
        if result.main and not json and last and last.ratio is not None:
            console.say(f"next: dydit profile {place} --out DIR (measures the ratio without the training noise)")


def calibrated(place: Path, flops_ratio: float, device: str) -> dict[str, Any]:
    """Shifts the routers of the result in `place`; the figures for the closing line."""
    from dydit_cli.checkpoint.native import write_into
    from dydit_cli.checkpoint.read import read
    from dydit_cli.profiling.calibrate import calibrate

    checkpoint, figures = calibrate(read(place), flops_ratio, device=device)
    write_into(checkpoint, place)
    console.note(
        f"calibrated: ratio of a sampling run {figures.ratio_before:.4f} before, {figures.ratio_after:.4f} after; "
        f"every router shifted by {figures.shift:+g}"
    )
    return {"calibration": figures.to_dict()}


def register(app: typer.Typer) -> None:
    app.command()(finetune)

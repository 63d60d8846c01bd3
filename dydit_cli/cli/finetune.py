"""dydit finetune"""

from __future__ import annotations

from typing import Annotated

import typer

from dydit_cli.cli import console, options
from dydit_cli.cli.training import describe, finish, interruptible


def finetune(
    checkpoint: options.Ckpt,
    out: options.Out,
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
    data: Annotated[str | None, typer.Option(help="The data set: digits.", show_default="the recipe's")] = None,
    recipe: Annotated[str | None, typer.Option(help="A TOML recipe.", show_default="DATA/finetune")] = None,
    lr: Annotated[float | None, typer.Option(help="The model's learning rate.", show_default="the recipe's")] = None,
    router_lr: Annotated[float | None, typer.Option(help="The routers' learning rate.", show_default="the recipe's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="the recipe's")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same result.", show_default="the recipe's")
    ] = None,
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of the recipe, such as train.ema_decay=0.99."),
    ] = [],  # noqa: B006
    num_classes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Another number of classes: draws a new label table."),
    ] = None,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Fine-tune a DyDiT to a FLOPs ratio. A static model is tuned as it is: the control.

    Ctrl-C saves what was learned. The EMA weights are what is saved.

    Example: `dydit finetune runs/digits-dydit --flops-ratio 0.5 --data digits --out runs/digits-0.5`
    """
    from dydit_cli.train.recipe import with_settings
    from dydit_cli.train.run import finetune as run
    from dydit_cli.train.run import resolve_recipe

    reading = options.reading(weights, num_heads, input_size, timestep_variant)
    named = {"train.lr": lr, "routing.router_lr": router_lr, "train.batch_size": batch_size, "train.seed": seed}
    asked = {key: value for key, value in named.items() if value is not None}
    resolved = resolve_recipe(recipe, flops_ratio=flops_ratio, steps=steps, data=data, settings=setting)
    resolved = with_settings(resolved, asked, "options")
    loaded = options.read(checkpoint, reading)
    if loaded.config.kind == "dit":
        console.note(
            f"{checkpoint} is a static model: tuning it as it is, without a FLOPs target (dydit convert makes it dynamic)"
        )
    if num_classes is not None:
        console.note(f"the label table is drawn anew for {num_classes} classes; the null class keeps its row")
    with interruptible() as stop:
        with console.progress("finetune", resolved.train.steps, "steps") as advance:
            result = run(
                loaded,
                out,
                recipe=resolved,
                num_classes=num_classes,
                device=device,
                force=force,
                on_step=lambda metrics: advance(1, describe(metrics)),
                should_stop=stop,
            )
        last = result.last
        more = {"target": last.target, "training_ratio": last.ratio} if last else {}
        finish(result, out, stop, json, more)
        if not json and last and last.ratio is not None:
            console.say(f"next: dydit profile {out} --out DIR (measures the ratio without the training noise)")


def register(app: typer.Typer) -> None:
    app.command()(finetune)

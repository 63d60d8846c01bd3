"""dydit prune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.cli.training import say_next


def prune(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A static checkpoint of any format, or `digits-dit`, `glyphs-dit`.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    method: Annotated[
        str, typer.Option(help="What is kept: by random, by magnitude, by taylor, or by diff (Diff-Pruning).")
    ] = "magnitude",
    keep: Annotated[float, typer.Option(metavar="SHARE", help="The share of the blocks' MACs to keep.")] = 0.5,
    data: Annotated[
        str | None,
        typer.Option(
            help="What taylor and diff look at: digits, fashion, glyphs, idx:PATH, imagefolder:PATH or latents:PATH.",
            show_default="what CKPT was trained on",
        ),
    ] = None,
    batches: Annotated[
        int | None, typer.Option(metavar="N", help="Batches that they look at.", show_default="taylor 16, diff 1")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images in a batch.")] = 64,
    timesteps: Annotated[int, typer.Option(metavar="N", help="Timesteps at which diff looks at each batch.")] = 50,
    threshold: Annotated[
        float, typer.Option(help="diff leaves out timesteps with less than this share of the largest loss.")
    ] = 0.05,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Cut whole heads and MLP channels out of a static DiT: the smaller static model that DyDiT is compared with.

    Every block keeps as many heads and channels as the others. Fine-tune it as you would the DyDiT:
    `dydit finetune runs/digits-pruned --out runs/digits-pruned-tuned`

    Example: `dydit prune digits-dit runs/digits-pruned --method magnitude --keep 0.5`
    """
    from dydit_cli.compress.prune import prune as run

    with console.stages() as work:
        report = run(
            checkpoint,
            out,
            method=method,  # type: ignore[arg-type]
            keep=keep,
            data=data,
            batches=batches,
            batch_size=batch_size,
            timesteps=timesteps,
            threshold=threshold,
            seed=seed,
            reading=options.reading(weights, num_heads, input_size, timestep_variant),
            device=device,
            force=force,
            on_stage=work.begin,
            on_work=work.advance,
        )
    if json:
        console.as_json(report.to_dict())
        return
    width, before = report.heads * report.head_width, report.heads_before * report.head_width
    console.facts(
        f"{checkpoint} -> {out}",
        {
            "found": report.found,
            "method": f"{report.method}, from {report.seen}",
            "heads": f"{report.heads} of {report.heads_before} in each of {report.depth} blocks (attention width {width} of "
            f"{before})",
            "MLP channels": f"{report.mlp_width} of {report.mlp_width_before} in each block",
            "parameters": f"{report.parameters:,} of {report.parameters_before:,}",
            "MACs": f"{units.macs(report.macs)} of {units.macs(report.macs_before)} per forward and image: {report.ratio:.3f}",
            "attention, MLP": f"{report.routed_ratio:.3f} of their MACs (asked for: {report.keep:g})",
        },
    )
    say_next(out, report.trained_on)


def register(app: typer.Typer) -> None:
    app.command()(prune)

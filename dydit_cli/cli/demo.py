"""dydit demo"""

from __future__ import annotations

import typer

from dydit_cli import units
from dydit_cli.cli import console, options


def demo(
    out: options.Out,
    images: int = typer.Option(256, min=1, help="Samples of each model that are judged."),
    seed: options.Seed = 0,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Everything on the bundled digits model: convert, fine-tune, profile, draw, compare.

    The same command continues it after a kill; --force starts anew.

    Example: `dydit demo --out demo`
    """
    from dydit_cli.studies.demo import REPORT_FILE
    from dydit_cli.studies.demo import demo as run

    with console.stages() as stage:
        result = run(out, images=images, seed=seed, device=device, force=force, on_stage=stage.begin, on_work=stage.advance)
    if json:
        console.as_json(result)
        return
    static, dynamic = result["static"], result["dynamic"]
    console.table(
        f"DiT and DyDiT on handwritten digits, {result['images']} samples each",
        ["", "MACs per forward", "ratio", "recognised", "sampling time"],
        [
            [
                "static DiT",
                units.macs(static["macs"]),
                "1.000",
                units.share(static["recognised"]),
                units.seconds(static["seconds"]),
            ],
            [
                f"DyDiT, lambda {result['flops_ratio']:g}",
                units.macs(dynamic["macs"]),
                f"{result['ratio']:.3f}",
                units.share(dynamic["recognised"]),
                units.seconds(dynamic["seconds"]),
            ],
        ],
    )
    console.say(
        f"fine-tuned for {result['finetune_steps']} steps, {100 * result['finetune_share']:.1f} % of the pre-training; "
        f"{result['sampler']}, {result['steps']} steps, cfg {result['cfg']:g}, seed {result['seed']}, {result['device']}\n"
        f"recognised by a classifier that is right on {units.share(result['classifier_accuracy'])} of held-out real digits\n"
        f"pictures: {out}/samples.png, architecture.png, tokens.png, flops.png; took {units.seconds(result['seconds'])}\n"
        f"all of it on one page: {out / REPORT_FILE}"
    )


def register(app: typer.Typer) -> None:
    app.command()(demo)

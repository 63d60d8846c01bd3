"""Everything on the bundled digits model: convert, fine-tune, profile, draw, compare.

The same command continues it after a kill; --force starts anew.

Example: `dydit demo --out demo`
"""

from __future__ import annotations

from typing import Annotated

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.options import Opt


def demo(
    typed: Typed,
    out: options.Out,
    images: Annotated[int, Opt("Samples of each model that are judged.", min=1)] = 256,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.studies.demo import REPORT_FILE
    from dydit_cli.studies.demo import demo as run

    with typed.continues(), console.stages() as work:
        result = run(out, images=images, seed=seed, device=device, force=force, on_stage=work.begin, on_work=work.advance)
    if json:
        console.as_json(result)
        return
    console.table(
        f"DiT and DyDiT on handwritten digits, {result['images']} samples each",
        ["", "MACs per forward", "ratio", "recognised", "sampling time"],
        [
            [name, units.macs(model["macs"]), f"{ratio:.3f}", units.share(model["recognised"]), units.seconds(model["seconds"])]
            for name, model, ratio in (
                ("static DiT", result["static"], 1),
                (f"DyDiT, lambda {result['flops_ratio']:g}", result["dynamic"], result["ratio"]),
                (f"and {result['cached']['cache']}", result["cached"], result["cached"]["macs"] / result["static"]["macs"]),
            )
        ],
    )
    console.say(
        f"fine-tuned for {result['finetune_steps']} steps, {100 * result['finetune_share']:.1f} % of the pre-training; "
        f"{result['sampler']}, {result['steps']} steps, cfg {result['cfg']:g}, seed {result['seed']}, {result['device']}\n"
        f"recognised by a classifier that is right on {units.share(result['classifier_accuracy'])} of held-out real digits\n"
        f"pictures: {out}/samples.png, architecture.png, tokens.png, flops.png; took {units.seconds(result['seconds'])}\n"
        f"all of it on one page: {out / REPORT_FILE}"
    )

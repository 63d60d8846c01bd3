"""Shift all routers of a DyDiT by one number, until a sampling run has another FLOPs ratio. It trains nothing.

It is for small corrections: far from what a model was trained for, also upwards, its pictures get worse. A model for many
ratios is trained as one: `dydit finetune CKPT --flops-ratio 0.3:1.0 --out DIR`.

Example: `dydit calibrate runs/digits-0.5 runs/digits-0.45 --flops-ratio 0.45 --steps 20`
"""

from __future__ import annotations

from typing import Annotated

from dydit_cli.cli import console, options
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.options import Opt

FAR = 0.1


def calibrate(
    checkpoint: options.Ckpt,
    out: options.OutArgument,
    flops_ratio: Annotated[float, Opt("The FLOPs ratio of attention and MLP.", ("--flops-ratio", "--lambda"), metavar="R")],
    *,
    images: Annotated[int, Opt("How many are sampled to measure the ratio.", min=1)] = 16,
    settings: SamplerSettings,
    loading: options.LoadingWithoutRatio,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.checkpoint.lineage import asked_ratio
    from dydit_cli.checkpoint.native import write
    from dydit_cli.files import check_output
    from dydit_cli.profiling.calibrate import calibrate as run

    folder = check_output(out, force)
    loaded = options.read(checkpoint, loading)
    shifted, figures = run(loaded, flops_ratio, images=images, settings=settings, seed=seed, device=device)
    write(shifted, folder)
    trained = asked_ratio(loaded.lineage)
    if trained is not None and abs(trained - flops_ratio) > FAR:
        console.note(
            f"warning: {checkpoint} was made for {trained:g}; so far from it pictures get worse, whichever way it is shifted. "
            f"Train for it: dydit finetune {checkpoint} --flops-ratio {flops_ratio:g} --out DIR"
        )
    if json:
        console.as_json(figures.to_dict())
    else:
        console.say(
            f"{out}: ratio of a sampling run {figures.ratio_before:.4f} before, {figures.ratio_after:.4f} after; every router "
            f"shifted by {figures.shift:+g}"
        )

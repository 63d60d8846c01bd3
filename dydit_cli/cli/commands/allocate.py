"""Find the FLOPs ratio of each timestep at which a DyDiT of a range stays nearest to its complete model. It trains nothing.

A few dozen images are sampled with one part of the run at a lower ratio, part after part, and compared with the complete
model's at equal noise. The result holds for the sampler and the steps that are given here; --flops-ratio sets all timesteps
alike again.

Example: `dydit allocate runs/digits-range runs/digits-allocated --flops-ratio 0.5 --sampler ddim --steps 20`
"""

from __future__ import annotations

from typing import Annotated

from dydit_cli.cli import console, options
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.options import Opt


def allocate(
    checkpoint: options.Ckpt,
    out: options.OutArgument,
    flops_ratio: Annotated[float, Opt("The FLOPs ratio of attention and MLP.", ("--flops-ratio", "--lambda"), metavar="R")],
    *,
    images: Annotated[int, Opt("How many are sampled in each run.", min=1)] = 32,
    settings: SamplerSettings,
    loading: options.LoadingWithoutRatio,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.checkpoint.native import write
    from dydit_cli.errors import naming
    from dydit_cli.files import check_output
    from dydit_cli.profiling.allocate import allocate as run

    folder = check_output(out, force)
    loaded = options.read(checkpoint, loading)
    with naming(checkpoint), console.stages() as work:
        work.begin("sample with parts of the run at lower ratios", 1, "runs", 1)
        allocated, found = run(loaded, flops_ratio, images=images, settings=settings, seed=seed, device=device)
    write(allocated, folder)
    if json:
        console.as_json(found.to_dict())
        return
    console.table(
        f"FLOPs ratio by timestep, {found.images} images, seed {seed}",
        ["timestep", "ratio"],
        [[f"{t:g}", f"{ratio:.3f}"] for t, ratio in reversed(found.pairs)],
    )
    console.say(
        f"{out}: mean squared distance to the complete model's samples {found.distance:.3g} at ratio {found.ratio:.4f}; "
        f"with one ratio for all timesteps {found.even_distance:.3g} at {found.even_ratio:.4f}"
    )

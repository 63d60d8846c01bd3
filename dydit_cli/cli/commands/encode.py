"""Write a VAE's latents of pictures once, to train from with --data latents:OUT.

The same command again continues after a kill; `accelerate launch -m dydit_cli encode ...` shares it over processes.

Example: `dydit encode images/train runs/latents --vae sd-vae-ft-ema`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.cli.planning import Planned, planned
from dydit_cli.options import Arg, Opt

SHARED = PLANNED = True


def encode(
    typed: Typed,
    images: Annotated[Path, Arg("IMAGES", "A folder with a folder of pictures for each class.")],
    out: options.OutArgument,
    vae: Annotated[str, Opt("The VAE: the folder or hub id of a diffusers autoencoder.", metavar="PATH")],
    size: Annotated[int, Opt("Pixels a side that pictures are cropped to.", metavar="N", min=1)] = 256,
    frames: Annotated[
        int | None,
        Opt(
            "For models of videos: IMAGES holds clips, in each class folder a folder of frames; those of under N frames are "
            "left out.",
            metavar="N",
            min=1,
        ),
    ] = None,
    batch: Annotated[int, Opt("Pictures at once, each with its mirror image.", metavar="N", min=1)] = 8,
    shard_size: Annotated[
        int | None, Opt("Pictures, or clips, in a shard.", metavar="N", min=1, default="5000; of clips 20")
    ] = None,
    dtype: Annotated[Literal["fp32", "fp16"], Opt("Keep the latents in fp32, or in fp16: half the disk.")] = "fp32",
    latent_stats: Annotated[
        str,
        Opt(
            "How training normalises them: as the VAE's configuration says (`vae`), by their own mean and std (`measure`), or "
            "as another's file does: latents_stats.pt, the folder of a set of latents or of a checkpoint, or `sd`.",
            metavar="FILE",
        ),
    ] = "vae",
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.data.dataset import Skipped
    from dydit_cli.data.encode import encode as run
    from dydit_cli.data.imagefolder import describe_skipped

    if planned():
        from dydit_cli.costs.others import encoding_plan

        raise Planned(encoding_plan(images, out, vae, size, frames, batch, shard_size, dtype, device, force))
    with typed.continues(), console.stages() as work:
        done = run(
            images, out, vae, size=size, frames=frames, batch=batch, shard_size=shard_size, dtype=dtype,
            latent_stats=latent_stats, device=device, force=force, on_stage=work.begin, on_progress=work.advance,
        )  # fmt: skip
    if done is None:  # the main process prints for all
        return
    index = done.index
    if index.skipped:
        console.note(describe_skipped([Skipped(file, reason) for file, reason in index.skipped]))
    if json:
        more = {"out": str(out), "encoded": done.encoded, "processes": done.processes, "seconds": done.seconds}
        console.as_json({**index.model_dump(), **more})
    else:
        shape, what = "x".join(str(side) for side in index.shape), "images" if frames is None else "clips"
        console.say(
            f"{index.count} {what} of {len(index.classes)} classes as {shape} latents in {out}, "
            f"{done.encoded} of them encoded now, in {units.seconds(done.seconds)}"
        )
        console.say(f"next: dydit finetune CKPT --recipe RECIPE --data latents:{out} --out DIR")

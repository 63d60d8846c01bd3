"""Write a checkpoint in a format that other people's code reads.

Example: `dydit export digits-dit digits-dit.pt --format dit`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli import console, options
from dydit_cli.options import Arg, DtypeName, Opt


def export(
    checkpoint: options.Ckpt,
    destination: Annotated[Path, Arg("DST", "A .pt file, or a folder (diffusers, native).")],
    format: Annotated[str, Opt("A family's own .pt (dit, sit), dydit (with routers), diffusers or native.", metavar="WORD")],
    *,
    dtype: Annotated[DtypeName | None, Opt("fp32, bf16 or fp16.", default="as it is")] = None,
    complete: Annotated[bool, Opt("Of a DyDiT: its all-on static model.")] = False,
    any_variant: Annotated[bool, Opt("Write even where the format's own code would compute another function.")] = False,
    loading: LoadOptions,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.checkpoint.export import export as run

    written = run(
        checkpoint, destination, format=format, dtype=dtype, complete=complete, any_variant=any_variant,
        reading=loading, force=force,
    )  # fmt: skip
    variant = written.config.to_dict().get("timestep_variant")
    if any_variant:
        console.note(f"the model computes the {variant} function; code that reads {destination} may compute another")
    if json:
        dtypes = {str(w.dtype).removeprefix("torch.") for w in written.weights.values()}
        console.as_json(
            {
                "source": checkpoint,
                "found": written.found,
                "destination": str(destination),
                "format": format,
                "kind": written.config.kind,
                "size": written.config.size_name,
                "parameters": sum(w.numel() for w in written.weights.values()),
                "dtype": "/".join(sorted(dtypes)),
                "timestep_variant": variant,
                "complete": complete,
            }
        )
    else:
        console.say(f"{destination}: {written.config.size_name} as {format}, read from {written.found}")

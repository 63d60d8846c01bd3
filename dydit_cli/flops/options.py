"""What a transformer of diffusers is counted for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from dydit_cli.errors import DyditError
from dydit_cli.options import Opt


def parse_size(text: str) -> tuple[int, int]:
    """`1024`, or `HEIGHTxWIDTH`; raises `DyditError` for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text)
    if not found:
        raise DyditError(f"--size {text}: write pixels a side, such as 1024, or HEIGHTxWIDTH, such as 480x832")
    return int(found[1]), int(found[2] or found[1])


@dataclass(frozen=True)
class CountOptions:
    """The inputs of one call, batch 1; None for the class's usual ones. `size` is of the picture, in pixels, height and width;
    `frames` are those of the latents."""

    size: Annotated[
        tuple[int, int] | None,
        Opt(
            "Pixels a side, or HEIGHTxWIDTH.", metavar="N", default="the config's, else the class's usual one", parse=parse_size
        ),
    ] = None
    text_tokens: Annotated[int | None, Opt("Tokens of the text.", metavar="N", min=1, default="the class's usual number")] = (
        None
    )
    frames: Annotated[
        int | None, Opt("Of video: frames of the latents.", metavar="N", min=1, default="the class's usual number")
    ] = None
    factor: Annotated[
        int | None, Opt("Pixels a side of a latent pixel, the VAE's.", metavar="N", min=1, default="the class's usual one")
    ] = None
    setting: Annotated[
        Sequence[str], Opt("Replace one value of the configuration, such as num_layers=12.", ("--set",), metavar="KEY=VALUE")
    ] = ()
    inputs: Annotated[
        Sequence[str],
        Opt(
            "Give one input by its shape, such as encoder_hidden_states=1x300x4096, or 1x300:int for whole numbers; of a class "
            "whose inputs are not known, all of them.",
            ("--input",),
            metavar="NAME=SHAPE",
        ),
    ] = ()
    depth: Annotated[int, Opt("How deep the parts go.", metavar="N", min=1)] = 2

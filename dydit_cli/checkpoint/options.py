"""What a reader is told beside the path, and the words of the formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from dydit_cli.errors import DyditError
from dydit_cli.model.options import TimestepVariant
from dydit_cli.options import Opt

WhichWeights = Literal["ema", "model"]

FormatName = Literal["dit", "dydit", "diffusers", "native"]


@dataclass(frozen=True)
class LoadOptions:
    """What a reader is told beside the path.

    `weights` chooses among a training checkpoint's two sets; `num_heads` and `input_size` are for weights that do not
    tell them; `timestep_variant` says which code the weights were trained with where their format would say otherwise;
    `family` is a name in `model.families`.
    """

    weights: Annotated[WhichWeights, Opt("Which weights of a training checkpoint.")] = "ema"
    num_heads: Annotated[int | None, Opt("Attention heads, where weights alone do not tell them.", metavar="N")] = None
    input_size: Annotated[int | None, Opt("Latent pixels a side, where weights alone do not tell it.", metavar="N")] = None
    timestep_variant: Annotated[
        TimestepVariant | None,
        Opt(
            "Which code the weights were trained with. A diffusers folder is read as diffusers runs it; weights that began "
            "at the DiT authors' release want `original`.",
            default="what the format implies",
        ),
    ] = None
    family: Annotated[str | None, Opt("The family of the weights, where they could be several's.", metavar="NAME")] = None

    def __post_init__(self) -> None:
        if self.weights not in get_args(WhichWeights):
            raise DyditError(f"weights {self.weights!r}; choose ema or model")
        if self.timestep_variant not in (None, *get_args(TimestepVariant)):
            raise DyditError(f"timestep variant {self.timestep_variant!r}; choose original or diffusers")
        for name, value in (("heads", self.num_heads), ("input size", self.input_size)):
            if value is not None and value < 1:
                raise DyditError(f"{name} {value}; it must be 1 or more")

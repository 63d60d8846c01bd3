"""What a reader is told beside the path, and the words of the formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from dydit_cli.errors import DyditError
from dydit_cli.model.options import FlowPath, FlowPrediction, TimestepVariant
from dydit_cli.options import Opt

WhichWeights = Literal["ema", "model"]

NATIVE, DIFFUSERS, ROUTED = "native", "diffusers", "dydit"  # formats; any other is a family's name, for its public files


@dataclass(frozen=True)
class LoadOptions:
    """What a reader is told beside the path.

    `weights` chooses among a training checkpoint's two sets; `num_heads` and `input_size` are for weights that do not
    tell them; `timestep_variant` says which code the weights were trained with where their format would say otherwise;
    `family` is a name in `model.families`; `flow_path`, `prediction` and `noise_at` are what a model of flow matching was
    trained with, where its weights do not say it; `flops_ratio` makes a DyDiT of a range one of this single ratio;
    `latent_stats` is what `latent_stats.read_norm` reads; `adapter` is the folder of one that is merged into the weights.
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
    flow_path: Annotated[
        FlowPath | None,
        Opt("How a flow-matching model's noise and data are mixed.", default="as stored with the weights, else linear"),
    ] = None
    prediction: Annotated[
        FlowPrediction | None,
        Opt("What a flow-matching model predicts.", default="as stored with the weights, else velocity"),
    ] = None
    noise_at: Annotated[
        int | None,
        Opt("The end of t at which a flow-matching model's input is noise, 0 or 1.", metavar="T", default="the family's"),
    ] = None
    flops_ratio: Annotated[
        float | None,
        Opt(
            "Of a DyDiT of a range: the FLOPs ratio to run at.",
            ("--flops-ratio", "--lambda"),
            metavar="R",
            default="the largest",
        ),
    ] = None
    latent_stats: Annotated[
        str | None,
        Opt(
            "How the model's latents were normalised, where its file does not tell: latents_stats.pt, the folder of a set of "
            "latents or of a checkpoint, or `sd`.",
            metavar="FILE",
        ),
    ] = None

    adapter: Annotated[
        str | None,
        Opt("A LoRA adapter to merge into the weights: the folder of a run with --adapter-only, or peft's.", metavar="DIR"),
    ] = None

    def __post_init__(self) -> None:
        if self.weights not in get_args(WhichWeights):
            raise DyditError(f"weights {self.weights!r}; choose ema or model")
        for what, said, choices in (("path", self.flow_path, FlowPath), ("prediction", self.prediction, FlowPrediction)):
            if said not in (None, *get_args(choices)):
                raise DyditError(f"{what} {said!r}; choose one of {', '.join(get_args(choices))}")
        if self.noise_at not in (None, 0, 1):
            raise DyditError(f"noise at t = {self.noise_at}; t of flow matching runs from 0 to 1, and one of them is noise")
        if self.timestep_variant not in (None, *get_args(TimestepVariant)):
            raise DyditError(f"timestep variant {self.timestep_variant!r}; choose original or diffusers")
        for name, value in (("heads", self.num_heads), ("input size", self.input_size)):
            if value is not None and value < 1:
                raise DyditError(f"{name} {value}; it must be 1 or more")

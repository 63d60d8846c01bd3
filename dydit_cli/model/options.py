"""What options say about a model and how it is run."""

from __future__ import annotations

from typing import Annotated, Literal

from dydit_cli.options import Opt

TimestepVariant = Literal["original", "diffusers"]

FlowPath = Literal["linear", "gvp", "vp"]

FlowPrediction = Literal["velocity", "score", "noise"]

FlowWeight = Literal["none", "velocity", "likelihood"]

FlowEnd = Literal[0, 1]  # of t

GuidanceChannels = Literal["3", "all"]

Execution = Literal["sparse", "masked", "complete"]

WeightAccess = Literal["views", "copies"]

PlanMemory = Annotated[
    int | None,
    Opt(
        "The most that copies of weights take, and that a cache takes.",
        metavar="GB",
        default="a quarter of what is free; a cache all of it",
        of=float,
        parse=lambda gigabytes: int(gigabytes * 1e9),
    ),
]

Tome = Annotated[
    float | None,
    Opt(
        "Merge this share of a static model's tokens before every attention (ToMe), at most 0.75.",
        metavar="RATIO",
        default="none",
    ),
]

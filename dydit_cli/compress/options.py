"""How a static model is converted, and how one is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dydit_cli.options import Opt, Seed


@dataclass(frozen=True)
class ConvertOptions:
    """`ranking` orders heads and channels; the biases are the new routers' initial ones, by default what the width wants;
    `width_routing` and `token_routing` are kinds of routers; `seed` is of their weights and the random inputs of the check."""

    ranking: Annotated[str, Opt("How heads and channels are ordered: magnitude, or none to leave them.")] = "magnitude"
    router_bias: Annotated[
        float | None, Opt("Initial bias of the head and channel routers.", default="15, under width 256: 5")
    ] = None
    token_router_bias: Annotated[float | None, Opt("Initial bias of the token routers.", default="35, under width 256: 10")] = (
        None
    )
    width_routing: Annotated[str, Opt("The kind of the head and channel routers.", metavar="KIND")] = "linear"
    token_routing: Annotated[
        str, Opt("The kind of the token routers: tokens, or layers, one decision for all tokens of an image.", metavar="KIND")
    ] = "tokens"
    seed: Seed = 0


@dataclass(frozen=True)
class PruneOptions:
    """`method` keeps the share `keep` of the blocks' MACs: of every block the heads and channels that `random` (under `seed`),
    `magnitude`, `taylor` or `diff` (Diff-Pruning) takes; or whole blocks, `depth`. The last three look at `batches` (16, 1 and
    4 by default) of `batch_size` images of `data`, by default what the checkpoint was trained on; `timesteps` and `threshold`
    are `diff`'s, see `CalibrationData`."""

    method: Annotated[
        str,
        Opt("What is kept of each block: by random, magnitude, taylor or diff (Diff-Pruning); or depth: which blocks."),
    ] = "magnitude"
    keep: Annotated[float, Opt("The share of the blocks' MACs to keep.", metavar="SHARE")] = 0.5
    data: Annotated[
        str | None,
        Opt(
            "What taylor, diff and depth look at: digits, fashion, idx:PATH, imagefolder:PATH or latents:PATH.",
            default="what CKPT was trained on",
        ),
    ] = None
    batches: Annotated[int | None, Opt("Batches that they look at.", metavar="N", default="taylor 16, diff 1, depth 4")] = None
    batch_size: Annotated[int, Opt("Images in a batch.", metavar="N")] = 64
    timesteps: Annotated[int, Opt("Timesteps at which diff looks at each batch.", metavar="N")] = 50
    threshold: Annotated[float, Opt("diff leaves out timesteps with less than this share of the largest loss.")] = 0.05
    seed: Seed = 0

"""`dydit profile --width-only`: heads and channel groups at all 1,000 timesteps, which need no images to be known.

The number of tokens that the MLPs see depends on the images, so MACs are given as bounds: no token, and every token.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dydit_cli.artifacts.width import WidthProfile
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output
from dydit_cli.flops.analytic import embed_and_head_macs, macs_of_counts, static_macs
from dydit_cli.model.config import DyDiTConfig
from dydit_cli.model.dydit import DyDiT
from dydit_cli.model.planning import width_masks
from dydit_cli.provenance import made_by
from dydit_cli.version import __version__

TIMESTEPS = 1000

EMBEDDER, ROUTER = "t_embedder.", re.compile(r"\.(attn|mlp)_rate\.")


def profile_width(checkpoint: Checkpoint, out: str | Path | None = None, *, force: bool = False) -> WidthProfile:
    """What TDW does, exactly, at every timestep. Raises `DyditError` for a static model."""
    if out is not None:
        check_output(out, force)
    config = checkpoint.config
    if not isinstance(config, DyDiTConfig):
        raise DyditError(f"{checkpoint.path}: is a static model, which has every head and group on; profile a DyDiT")
    # of XL half a percent of the weights: nothing else is read
    needed = {name: w.float() for name, w in checkpoint.weights.items() if name.startswith(EMBEDDER) or ROUTER.search(name)}
    with torch.device("meta"):
        model = DyDiT(config).eval()
    model.load_state_dict(needed, strict=False, assign=True)
    heads, groups = width_masks(model, range(TIMESTEPS))  # T L H
    active_heads, active_groups = heads.sum(dim=2).long(), groups.sum(dim=2).long()  # T L
    frame, static = embed_and_head_macs(config), static_macs(config)
    bounds = {}
    for name, count in (("no", 0), ("all", config.num_tokens)):
        tokens = torch.full_like(active_heads, count)
        blocks = macs_of_counts(active_heads, active_groups, tokens, config)
        bounds[name] = blocks.total.sum(dim=1) + frame  # T
    table = pd.DataFrame(
        {
            "timestep": np.arange(TIMESTEPS),
            "active_heads_share": heads.mean(dim=(1, 2)).numpy(),
            "active_groups_share": groups.mean(dim=(1, 2)).numpy(),
            "attention_macs": blocks.attention.sum(dim=1).numpy(),
            "dynamic_macs_no_tokens": bounds["no"].numpy(),
            "dynamic_macs_all_tokens": bounds["all"].numpy(),
            "static_macs": static,
        }
    )
    summary = {
        **WidthProfile.header(),
        **made_by(),
        "checkpoint": str(checkpoint.path),
        "model": config.to_dict(),
        "unit": "MAC (1 multiply-accumulate = 1 FLOP of fvcore and the papers), per forward and image",
        "timesteps": TIMESTEPS,
        "active_heads_share": float(table["active_heads_share"].mean()),
        "active_groups_share": float(table["active_groups_share"].mean()),
        "ratio_no_tokens": float(table["dynamic_macs_no_tokens"].mean()) / static,
        "ratio_all_tokens": float(table["dynamic_macs_all_tokens"].mean()) / static,
        "versions": {"dydit": __version__, "torch": torch.__version__},
    }
    result = WidthProfile(summary, table, heads.bool().numpy(), groups.bool().numpy())
    if out is not None:
        result.write(out)
    return result

"""`dydit profile --width-only`: heads and channel groups at all 1,000 timesteps, which need no images to be known.

The number of tokens that the MLPs see depends on the images, so MACs are given as bounds: no token, and every token.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pandas as pd
import torch

from dydit_cli.artifacts.width import WidthProfile
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.diffusion.process import process_of
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families import build_shapes
from dydit_cli.model.macs import macs_of_units, static_macs
from dydit_cli.model.planning import width_masks
from dydit_cli.provenance import made_by
from dydit_cli.version import __version__


def profile_width(checkpoint: Checkpoint, out: str | Path | None = None, *, force: bool = False) -> WidthProfile:
    """What TDW does, exactly, at every timestep. Raises `DyditError` for a static model."""
    if out is not None:
        check_output(out, force)
    config = checkpoint.config
    if not isinstance(config, RoutedConfig):
        raise DyditError(f"{checkpoint.path}: is a static model, which has every head and group on; profile a DyDiT")
    # of XL half a percent of the weights: nothing else is read
    needed = {
        name: w.float() for name, w in checkpoint.weights.items() if not config.blocks.match(name) or config.is_router(name)
    }
    model = cast(DynamicBackbone, build_shapes(config).eval())
    model.load_state_dict(needed, strict=False, assign=True)
    timesteps = process_of(config).every().tolist()
    heads, groups = width_masks(model, timesteps)  # T L H
    # as L x T, blocks first
    active_heads, channels = (
        config.site(structure).active_units(masks.transpose(0, 1))
        for structure, masks in (("heads", heads), ("groups", groups))
    )
    frame, static = config.embed_and_head_macs(), static_macs(config)
    bounds = {}
    for name, count in (("no", 0), ("all", config.num_tokens)):
        tokens = torch.full_like(active_heads, count)
        blocks = macs_of_units(active_heads, channels, tokens, config)
        bounds[name] = blocks.total.sum(dim=0) + frame  # T
    table = pd.DataFrame(
        {
            "timestep": timesteps,
            "active_heads_share": heads.mean(dim=(1, 2)).numpy(),
            "active_groups_share": groups.mean(dim=(1, 2)).numpy(),
            "attention_macs": blocks.attention.sum(dim=0).numpy(),
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
        "timesteps": len(timesteps),
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

"""A routing record counted into tables: by timestep, by block, by image. MACs are means per forward and image.

Legend: T sampling steps, L depth, M images, G guidance halves.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dydit_cli.flops.analytic import BlockMacs, attention_macs, frame_macs, mlp_macs, static_macs
from dydit_cli.model.config import DiTConfig
from dydit_cli.profiling.record import RoutingRecord

PARTS = ("attention", "mlp", "routers", "modulation", "norms")
PHASES = 4
HALVES = ("labelled", "unlabelled")


def timestep_table(record: RoutingRecord, config: DiTConfig) -> pd.DataFrame:
    """One row a sampling step: step, timestep, static_macs, dynamic_macs with its spread over images and halves, ratio,
    the share of heads, groups and tokens that is active, `routed_ratio` (attention and MLP alone, what fine-tuning
    steers), MACs by part, and with guidance `dynamic_macs` of each half."""
    static, frame = static_macs(config), frame_macs(config)
    everything = config.depth * (attention_macs(config) + mlp_macs(config))
    rows = []
    for step, timestep in enumerate(record.timesteps.tolist()):
        blocks = record.block_macs(step, config)
        total = blocks.total.sum(dim=0).double() + frame  # GM
        halves = total.view(record.token_counts.shape[2], -1).mean(dim=1).tolist()
        parts = {f"{part}_macs": _mean(blocks, part) for part in PARTS}
        rows.append(
            {
                "step": step,
                "timestep": timestep,
                "static_macs": static,
                "dynamic_macs": total.mean().item(),
                "dynamic_macs_std": total.std(correction=0).item(),
                "dynamic_macs_min": int(total.min()),
                "dynamic_macs_max": int(total.max()),
                "ratio": total.mean().item() / static,
                "routed_ratio": (parts["attention_macs"] + parts["mlp_macs"]) / everything,
                "active_heads_share": float(record.heads[step].mean()),
                "active_groups_share": float(record.groups[step].mean()),
                "active_tokens_share": float(record.token_counts[step].mean()) / config.num_tokens,
                **parts,
                "frame_macs": frame,
                **({f"dynamic_macs_{half}": value for half, value in zip(HALVES, halves, strict=True)} if halves[1:] else {}),
            }
        )
    return pd.DataFrame(rows)


def block_table(record: RoutingRecord, config: DiTConfig) -> pd.DataFrame:
    """One row a sampling step, block and guidance half: active heads, groups and tokens (mean, spread and extremes over
    images) and MACs by part."""
    frames = []
    for step, timestep in enumerate(record.timesteps.tolist()):
        L, G, M = record.token_counts[step].shape
        tokens = record.token_counts[step].reshape(L * G, M).astype(np.int64)
        blocks = record.block_macs(step, config)
        frames.append(
            pd.DataFrame(
                {
                    "step": step,
                    "timestep": timestep,
                    "block": np.repeat(np.arange(L), G),
                    "half": list(HALVES[:G]) * L,
                    "active_heads": np.repeat(record.heads[step].sum(axis=1), G),
                    "active_groups": np.repeat(record.groups[step].sum(axis=1), G),
                    "active_tokens_mean": tokens.mean(axis=1),
                    "active_tokens_std": tokens.std(axis=1),
                    "active_tokens_min": tokens.min(axis=1),
                    "active_tokens_max": tokens.max(axis=1),
                    **{
                        f"{part}_macs": getattr(blocks, part).view(L * G, M).double().mean(dim=1).numpy()
                        for part in (*PARTS, "total")
                    },
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def image_table(record: RoutingRecord, config: DiTConfig, labels: NDArray[np.int64]) -> pd.DataFrame:
    """One row an image: its class, the MACs of generating it (all steps and halves), their ratio to the static model's,
    and the share of its tokens that the MLPs saw, by half."""
    T, _L, G, M = record.token_counts.shape
    macs = torch.zeros(M, dtype=torch.int64)
    for step in range(T):
        macs += record.block_macs(step, config).total.sum(dim=0).view(G, M).sum(dim=0) + G * frame_macs(config)
    shares = record.token_counts.mean(axis=(0, 1), dtype=np.float64) / config.num_tokens  # G M
    columns = {f"active_tokens_share_{half}": share for half, share in zip(HALVES, shares, strict=False)}
    return pd.DataFrame(
        {
            "image": np.arange(M),
            "label": labels,
            "macs_per_image": macs.numpy(),
            "ratio": macs.numpy() / (T * G * static_macs(config)),
            **columns,
        }
    )


def phase_table(table: pd.DataFrame, train_steps: int = 1000) -> pd.DataFrame:
    """Means of `timestep_table` over four equal phases of the schedule, the noisiest first; `phase` names timesteps."""
    width = train_steps // PHASES
    phase = (table["timestep"] // width).clip(upper=PHASES - 1)
    means = table.drop(columns=["step", "timestep"]).groupby(phase).mean().sort_index(ascending=False)
    means.insert(0, "phase", [f"{(i + 1) * width - 1} to {i * width}" for i in means.index])
    means.insert(1, "steps", table.groupby(phase).size().reindex(means.index))
    return means.reset_index(drop=True)


def _mean(blocks: BlockMacs, part: str) -> float:
    values: torch.Tensor = getattr(blocks, part)
    return values.sum(dim=0).double().mean().item()

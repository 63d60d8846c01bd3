"""A routing record counted into a table, one row a sampling step. Every column of MACs is a mean per forward and image."""

from __future__ import annotations

import pandas as pd

from dydit_cli.flops.analytic import block_macs, flops_ratio, frame_macs, static_macs
from dydit_cli.model.config import DiTConfig
from dydit_cli.profiling.record import RoutingRecord

PARTS = ("attention", "mlp", "routers", "modulation", "norms")
PHASES = 4


def timestep_table(record: RoutingRecord, config: DiTConfig) -> pd.DataFrame:
    """Columns: step, timestep, static_macs, dynamic_macs, ratio, the share of heads, groups and tokens that is active,
    `routed_ratio` (attention and MLP alone, what fine-tuning steers), and MACs by part."""
    static = static_macs(config)
    rows = []
    for step, timestep in enumerate(record.timesteps.tolist()):
        routing = record.routing(step)
        blocks = block_macs(routing, config)
        dynamic = blocks.total.sum(dim=0).double().mean().item() + frame_macs(config)
        parts = {f"{part}_macs": getattr(blocks, part).sum(dim=0).double().mean().item() for part in PARTS}
        rows.append(
            {
                "step": step,
                "timestep": timestep,
                "static_macs": static,
                "dynamic_macs": dynamic,
                "ratio": dynamic / static,
                "routed_ratio": flops_ratio(routing, config).double().mean().item(),
                "active_heads_share": float(record.heads[step].mean()),
                "active_groups_share": float(record.groups[step].mean()),
                "active_tokens_share": float(record.tokens[step].mean()),
                **parts,
                "frame_macs": frame_macs(config),
            }
        )
    return pd.DataFrame(rows)


def phase_table(table: pd.DataFrame, train_steps: int = 1000) -> pd.DataFrame:
    """Means of `timestep_table` over four equal phases of the schedule, the noisiest first; `phase` names timesteps."""
    width = train_steps // PHASES
    phase = (table["timestep"] // width).clip(upper=PHASES - 1)
    means = table.drop(columns=["step", "timestep"]).groupby(phase).mean().sort_index(ascending=False)
    means.insert(0, "phase", [f"{(i + 1) * width - 1} to {i * width}" for i in means.index])
    means.insert(1, "steps", table.groupby(phase).size().reindex(means.index))
    return means.reset_index(drop=True)

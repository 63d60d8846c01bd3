"""Several checkpoints profiled the same way, in one table: a static model, its DyDiTs at several FLOPs ratios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dydit_cli.files import atomic_file, write_json
from dydit_cli.profiling.profile import Profile

TABLE_FILE, SUMMARY_FILE = "compare.csv", "compare.json"
COLUMNS = {
    "flops_ratio_asked": "flops_ratio_asked",
    "macs_dynamic": "dynamic_macs",
    "macs_dynamic_per_image": "dynamic_macs_per_image",
    "ratio": "ratio",
    "routed_ratio": "routed_ratio",
    "active_heads_share": "active_heads_share",
    "active_groups_share": "active_groups_share",
    "active_tokens_share": "active_tokens_share",
    "dynamic_seconds": "dynamic_seconds",
    "speedup": "speedup",
    "realised_efficiency": "realised_efficiency",
}


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """A folder name for each checkpoint: the last part of its path, numbered where two are the same."""
    names: list[str] = []
    for checkpoint in checkpoints:
        stem = Path(checkpoint).name.removesuffix(".pt").removesuffix(".safetensors") or "checkpoint"
        taken = {name for name in names if name == stem or name.startswith(f"{stem}-")}
        names.append(f"{stem}-{len(taken) + 1}" if taken else stem)
    return names


def compare_table(profiles: Sequence[Profile]) -> pd.DataFrame:
    """One row a profile; MACs are means per forward and image, seconds too where they were taken."""
    rows = [
        {
            "checkpoint": profile.summary["checkpoint"],
            **{column: profile.summary[key] for key, column in COLUMNS.items() if key in profile.summary},
        }
        for profile in profiles
    ]
    return pd.DataFrame(rows)


def write_comparison(profiles: Sequence[Profile], folder: str | Path) -> pd.DataFrame:
    """Writes compare.csv and compare.json beside the profiles' own folders."""
    table = compare_table(profiles)
    with atomic_file(Path(folder) / TABLE_FILE) as temporary:
        table.to_csv(temporary, index=False)
    write_json(Path(folder) / SUMMARY_FILE, {"format": "dydit-comparison", "profiles": [p.summary for p in profiles]})
    return table

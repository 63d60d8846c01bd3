"""What `dydit profile` leaves of several checkpoints: their profiles' folders, and a table of all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli import marks
from dydit_cli.artifacts.base import Folder
from dydit_cli.artifacts.profile import Profile
from dydit_cli.files import atomic_file, write_json
from dydit_cli.provenance import made_by

TABLE_FILE = "compare.csv"

# of a profile's summary, what the table shows, and under which other name
SHOWN = (
    "checkpoint", "flops_ratio_asked", "macs_dynamic", "macs_dynamic_per_image", "ratio", "routed_ratio", "active_heads_share",
    "active_groups_share", "active_tokens_share", "dynamic_seconds", "speedup", "realised_efficiency",
)  # fmt: skip
RENAMED = {"macs_dynamic": "dynamic_macs", "macs_dynamic_per_image": "dynamic_macs_per_image"}


@dataclass(frozen=True)
class Comparison(Folder):
    """`summary` is compare.json, `table` compare.csv: a row a profile, MACs (and seconds where they were taken) means per
    forward and image; `profiles` are those in the folder, by their folders' names."""

    kind = "comparison"
    name = "a comparison"
    made_by = "dydit profile CKPT CKPT --out DIR"
    mark = marks.COMPARISON
    files = (mark, TABLE_FILE)
    format = "dydit-comparison"

    summary: dict[str, Any]
    table: pd.DataFrame
    profiles: dict[str, Profile]

    @classmethod
    def of(cls, profiles: dict[str, Profile]) -> Comparison:
        """Of profiles by their folders' names."""
        summaries = [profile.summary for profile in profiles.values()]
        table = pd.DataFrame([{key: summary[key] for key in SHOWN if key in summary} for summary in summaries])
        return cls({**cls.header(), **made_by(), "profiles": summaries}, table.rename(columns=RENAMED), profiles)

    def write(self, folder: str | Path) -> None:
        """Writes compare.csv and compare.json beside the profiles' own folders."""
        with atomic_file(Path(folder) / TABLE_FILE) as temporary:
            self.table.to_csv(temporary, index=False)
        write_json(Path(folder) / self.mark, self.summary)

    @classmethod
    def read(cls, path: str | Path) -> Comparison:
        folder = Path(path)
        summary = cls.read_summary(folder)
        with cls.reading(folder):
            table = pd.read_csv(folder / TABLE_FILE)
        profiles = {child.name: Profile.read(child) for child in sorted(folder.iterdir()) if Profile.fits(child)}
        return cls(summary, table, profiles)

"""What a study leaves to read and to draw from: study.csv, summary.csv, study.md, study.json, samples.npz."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dydit_cli.files import atomic_file, write_json, write_text
from dydit_cli.tradeoff.folder import StudyFolder
from dydit_cli.tradeoff.readable import markdown
from dydit_cli.tradeoff.recipe import StudyRecipe
from dydit_cli.tradeoff.rows import STATIC, Row

TABLE_FILE, SUMMARY_FILE, PROTOCOL_FILE = "study.csv", "summary.csv", "study.json"
MARKDOWN_FILE, SAMPLES_FILE = "study.md", "samples.npz"
FIGURES = (
    "macs", "ratio", "seconds_per_image", "speedup", "frechet", "recognised", "precision", "recall", "loss_ratio",
)  # fmt: skip
COLUMNS = ("method", "target", "seed", *FIGURES, "finetune_steps")


@dataclass(frozen=True)
class Tables:
    """`table`: `COLUMNS`, a line for each finished row. `summary`: method, target, how many seeds, and of every figure its
    mean and sample standard deviation (empty for one seed). MACs are of one forward and image, the mean over a sampling
    run; ratio is over the static model's; loss_ratio is of the held-out loss. `speedup` is over the static model's runs that
    were taken in turn with the row's, so that it says more than two rows' seconds, taken minutes apart."""

    folder: StudyFolder
    rows: list[Row]
    table: pd.DataFrame
    summary: pd.DataFrame
    protocol: dict[str, Any]

    def write(self) -> None:
        """Each file atomically."""
        path = self.folder.path
        for name, table in ((TABLE_FILE, self.table), (SUMMARY_FILE, self.summary)):
            with atomic_file(path / name) as temporary:
                table.to_csv(temporary, index=False)
        write_text(path / MARKDOWN_FILE, markdown(self.summary, self.protocol))
        samples = {row.what: pixels for row in self.rows if (pixels := self.folder.samples(row)) is not None}
        if samples:
            with atomic_file(path / SAMPLES_FILE) as temporary:
                np.savez_compressed(temporary, **samples)  # type: ignore[arg-type]
        write_json(path / PROTOCOL_FILE, {**self.protocol, "samples": list(samples)})


def make_tables(folder: StudyFolder, recipe: StudyRecipe, rows: list[Row], facts: dict[str, Any]) -> Tables:
    """The tables of the rows that are done."""
    done = [row for row in rows if folder.done(row)]
    found = {row: folder.read(row) for row in done}
    # the same weights and the same noise: every static row has the same loss
    loss = next((values["loss"] for row, values in found.items() if row.method == STATIC), None)
    times = {row: folder.time(row) for row in done if row.seed == recipe.seeds[0]}
    lines = []
    for row, values in found.items():
        time = times.get(row)
        line = {
            **{name: values.get(name) for name in COLUMNS},
            **{name: time[name]["median"] if time else None for name in ("seconds_per_image", "speedup")},
            "loss_ratio": values["loss"] / loss if loss and values["loss"] is not None else None,
        }
        lines.append(line)
    table = pd.DataFrame(lines, columns=list(COLUMNS)).astype(dict.fromkeys(FIGURES, "float64"))
    protocol = {
        "format": "dydit-study",
        **facts,
        "rows": len(rows),
        "rows_done": len(done),
        "rows_names": [row.name for row in done],
        "timing": {row.what: time for row, time in times.items() if time},
    }
    return Tables(folder, rows, table, summarised(table), protocol)


def summarised(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, in the order of the rows."""
    groups = table.groupby(["method", "target"], sort=False)
    parts: dict[str, Any] = {"seeds": groups["seed"].count()}
    for name in FIGURES:
        parts |= {f"{name}_mean": groups[name].mean(), f"{name}_sd": groups[name].std()}
    return pd.DataFrame(parts).reset_index()

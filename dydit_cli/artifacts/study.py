"""What `dydit study` leaves: a table of rows, how they came about, and samples of each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dydit_cli import marks
from dydit_cli.artifacts.base import Artifact, read_object_if_any
from dydit_cli.artifacts.samples import Pixels, read_arrays
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, write_json

TABLE_FILE, PROTOCOL_FILE, SAMPLES_FILE, RECIPE_FILE = "study.csv", marks.STUDY, "samples.npz", marks.RECIPE

NEEDED = ("method", "target", "seed", "macs", "ratio", "frechet")

KEYS = ("method", "target", "steps", "cache")  # rows that are alike in these differ by their seeds alone


def cache_of(cache: Any) -> str | None:
    """A row's cache, None where it has none."""
    return None if cache is None or pd.isna(cache) else str(cache)


def other_steps(steps: float | None, own: int | None) -> int | None:
    """A row's sampling steps where they are others than the study's `own`, which go without saying."""
    return None if steps is None or own is None or pd.isna(steps) or steps == own else int(steps)


@dataclass(frozen=True)
class StudyTable(Artifact):
    """`rows` is study.csv, a line for each method, target, number of steps, cache and seed; `protocol` study.json and `recipe`
    recipe.json, empty where there is none."""

    kind = "study"
    name = "a study"
    made_by = "dydit study RECIPE --out DIR"
    mark = TABLE_FILE

    folder: Path
    rows: pd.DataFrame
    protocol: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def keys(self) -> list[str]:
        """Those of `KEYS` that the table has: an older one has no steps and no cache, since all
        its rows have the same."""
        return [name for name in KEYS if name in self.rows.columns]

    @property
    def steps(self) -> int | None:
        """The study's own number of sampling steps; None where it is not known, or the solver chooses it."""
        steps = self.protocol.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def alike(self) -> pd.DataFrame:
        """The rows that are sampled with the study's own number of steps, and without a cache."""
        rows = self.rows if "cache" not in self.rows.columns else self.rows[self.rows["cache"].isna()]
        if "steps" not in rows.columns:
            return rows
        return rows[[other_steps(steps, self.steps) is None for steps in rows["steps"]]]

    @property
    def other_judges(self) -> list[str]:
        """Beside the main one, whose columns bear no name."""
        return [name.removeprefix("frechet_") for name in self.rows.columns if name.startswith("frechet_")]

    def samples(self) -> dict[str, Pixels]:
        """M S S C by the rows' names without seeds, empty where none were kept; raises `DyditError` where damaged."""
        file = self.folder / SAMPLES_FILE
        return dict(read_arrays(file)) if file.is_file() else {}

    def write(self, samples: Mapping[str, Pixels]) -> None:
        """Writes study.csv, samples.npz where there are any, and study.json, each atomically; the recipe is there already."""
        with atomic_file(self.folder / TABLE_FILE) as temporary:
            self.rows.to_csv(temporary, index=False)
        if samples:
            with atomic_file(self.folder / SAMPLES_FILE) as temporary:
                np.savez_compressed(temporary, **samples)  # type: ignore[arg-type]
        write_json(self.folder / PROTOCOL_FILE, {**self.protocol, "samples": list(samples)})

    @classmethod
    def read(cls, path: str | Path) -> StudyTable:
        folder = Path(path)
        if not cls.fits(folder):
            raise cls.refusal(folder, f"it has no {TABLE_FILE}")
        with cls.reading(folder):
            rows = pd.read_csv(folder / TABLE_FILE)
            protocol, recipe = (read_object_if_any(folder / name) or {} for name in (PROTOCOL_FILE, RECIPE_FILE))
        missing = [name for name in NEEDED if name not in rows.columns]
        if missing:
            raise cls.refusal(folder / TABLE_FILE, f"it has no column {missing[0]!r}")
        if rows.empty:
            raise DyditError(f"{folder / TABLE_FILE}: holds no row yet; run the study on")
        return cls(folder, rows, protocol, recipe)

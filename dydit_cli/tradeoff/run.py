"""`dydit study`: all rows, then their times, then the tables; every finished row is on disk and is never run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli.checkpoint.read import read
from dydit_cli.data.load import load_data
from dydit_cli.devices import pick_device, world_size
from dydit_cli.errors import DyditError
from dydit_cli.tradeoff.folder import TABLES, StudyFolder
from dydit_cli.tradeoff.methods import Start
from dydit_cli.tradeoff.progress import Interrupted, OnStage, OnWork
from dydit_cli.tradeoff.protocol import FREE, asked, facts, make_yardstick
from dydit_cli.tradeoff.recipe import StudyRecipe, read_study
from dydit_cli.tradeoff.rows import rows_of
from dydit_cli.tradeoff.runner import Runner
from dydit_cli.tradeoff.tables import Tables, make_tables


@dataclass(frozen=True)
class Study:
    """What a study found so far. `table` has a line for each finished row, `summary` one for each method and target,
    `protocol` is study.json; `left` counts the rows that are not done, which other processes may be at."""

    table: pd.DataFrame
    summary: pd.DataFrame
    protocol: dict[str, Any]
    left: int
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows, summary = (table.astype(object).where(table.notna(), None) for table in (self.table, self.summary))
        return {
            "rows": rows.to_dict("records"),
            "summary": summary.to_dict("records"),
            "left": self.left,
            "interrupted": self.interrupted,
            "protocol": self.protocol,
        }


def _silent(*what: Any) -> None:
    pass


def study(
    recipe: str | Path | StudyRecipe,
    out: str | Path,
    *,
    time: bool = True,
    device: str = "auto",
    force: bool = False,
    on_stage: OnStage = _silent,
    on_work: OnWork = _silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Study:
    """Runs a study into the folder `out`, or goes on with the one in it; `time` takes times when all rows are done.

    Several processes may be given the same study at once: each takes rows that no other one is at. What a row holds
    depends on the row alone, not on who ran it or when. Raises `DyditError` for a recipe that cannot be run, a folder
    with another study in it (without `force`), and where a row fails.
    """
    recipe = recipe if isinstance(recipe, StudyRecipe) else read_study(recipe)
    if world_size() > 1:
        raise DyditError("several processes share a study by the same command, started several times without a launcher")
    place = pick_device(device).type
    static = read(recipe.model)
    if static.config.kind != "dit":
        raise DyditError(f"{recipe.model}: is a DyDiT; a study begins with the static model")
    load_data(recipe.data, static.config).check(static.config)
    start, yardstick = Start.of(static, recipe, place), make_yardstick(recipe, static, place)
    folder, rows = StudyFolder(Path(out)), rows_of(recipe)
    folder.open(asked(start), force, FREE)
    about = facts(start, yardstick)

    def write_tables() -> Tables:
        with folder.claim(TABLES, wait=True):
            tables = make_tables(folder, recipe, rows, about)
            tables.write()
        return tables

    runner = Runner(start, yardstick, folder, rows, on_stage, on_work, should_stop)
    interrupted = False
    try:
        runner.run_rows(write_tables)
        if time and all(folder.done(row) for row in rows):
            runner.take_times()
    except Interrupted:
        interrupted = True
    tables = write_tables()
    left = sum(not folder.done(row) for row in rows)
    return Study(tables.table, tables.summary, tables.protocol, left, interrupted)

"""What `dydit study` leaves: a table of rows, and how they came about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli.errors import DyditError

TABLE_FILE, PROTOCOL_FILE = "study.csv", "study.json"

NEEDED = ("method", "target", "seed", "macs", "ratio", "frechet")

WHOLE = ("static", "control")  # methods that leave nothing out, and so have one point

HINT = "make one with: dydit study RECIPE --out DIR"


@dataclass(frozen=True)
class StudyTable:
    """`rows` is study.csv, a line for each method, target and seed; `protocol` study.json, empty where there is none."""

    rows: pd.DataFrame
    protocol: dict[str, Any]


def read_study(folder: str | Path) -> StudyTable:
    """Raises `DyditError` in one line where `folder` is no study, is damaged, or has no row yet."""
    folder = Path(folder)
    file, protocol = folder / TABLE_FILE, folder / PROTOCOL_FILE
    if not file.is_file():
        raise DyditError(f"{folder}: not a study: it has no {TABLE_FILE}; {HINT}")
    try:
        rows = pd.read_csv(file)
        facts = json.loads(protocol.read_text(encoding="utf-8")) if protocol.is_file() else {}
    except (OSError, ValueError) as error:
        raise DyditError(f"{folder}: damaged study ({str(error).splitlines()[0]}); run the study again") from None
    missing = [name for name in NEEDED if name not in rows.columns]
    if missing:
        raise DyditError(f"{file}: not a study's table: it has no column {missing[0]!r}; {HINT}")
    if rows.empty:
        raise DyditError(f"{file}: holds no row yet; run the study on")
    return StudyTable(rows, facts if isinstance(facts, dict) else {})

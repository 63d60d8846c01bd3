"""What figures read of a study's folder, and how its methods look: one colour, marker and line for each, everywhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli.errors import DyditError
from dydit_cli.figures.style import BLUE, GREEN, GREY, ORANGE

TABLE_FILE, PROTOCOL_FILE = "study.csv", "study.json"
NEEDED = ("method", "target", "seed", "macs", "ratio", "frechet")
WHOLE = ("static", "control")  # methods that leave nothing out, and so have one point
HINT = "make one with: dydit study RECIPE --out DIR"


@dataclass(frozen=True)
class Look:
    """`label` is the method in words; `target` says what its number is."""

    label: str
    color: str
    marker: str
    line: str = "-"
    target: str = "{:g}"


LOOKS = {
    "static": Look("static DiT", "black", "*"),
    "control": Look("static DiT, fine-tuned as long", "black", "D"),
    "dydit": Look("DyDiT", BLUE, "o", "-", "lambda {:g}"),
    "magnitude": Look("magnitude pruning", ORANGE, "s", "--", "keep {:g}"),
    "taylor": Look("Taylor pruning", GREEN, "^", "-.", "keep {:g}"),
    "diff": Look("Diff pruning", "#CC79A7", "v", ":", "keep {:g}"),
    "random": Look("random pruning", GREY, "x", "--", "keep {:g}"),
    "tome": Look("ToMe", "#56B4E9", "P", "-.", "{:g} merged"),
}


@dataclass(frozen=True)
class StudyTable:
    """`rows` is study.csv, a line for each method, target and seed; `protocol` study.json, empty where there is none."""

    rows: pd.DataFrame
    protocol: dict[str, Any]


def look_of(method: str) -> Look:
    """How `method` is drawn; one that is not known is drawn in black under its own name."""
    return LOOKS.get(method, Look(method, "black", "."))


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


def row_label(method: str, target: float) -> str:
    """`DyDiT, lambda 0.5`; `static DiT`."""
    look = look_of(method)
    return look.label if method in WHOLE or pd.isna(target) else f"{look.label}, {look.target.format(target)}"

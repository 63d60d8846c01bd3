"""A study on disk: a file for each finished row, which several processes may fill side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.artifacts.base import read_object_if_any
from dydit_cli.artifacts.study import RECIPE_FILE
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, atomic_file, check_output, claim, write_json
from dydit_cli.provenance import made_by
from dydit_cli.studies.methods import Row

FORMAT = "dydit-study"

ROWS, TIMES, CHECKPOINTS, STARTS, CLAIMS = "rows", "times", "checkpoints", "starts", "claims"

TIMING = "timing"  # the claim of the stage that wants the machine for itself

TABLES = "tables"  # of writing them: an older one must not replace a newer


def begin_anew(held: Resumable, settings: dict[str, Any], claims: str) -> None:
    """Empties a folder that several processes may fill, and begins. Raises `DyditError` where one is at it: has a claim, which
    are files of the folder `claims` in it."""
    check_output(held.folder, force=True)
    with ExitStack() as stack:
        for file in sorted((held.folder / claims).glob("*")):
            if not stack.enter_context(claim(file)):
                raise DyditError(f"{held.folder}: another process is at {file.name}, so --force cannot start it anew")
        held.begin(settings, force=True)


@dataclass(frozen=True)
class StudyFolder:
    """The folder `path`. A row is finished when its file is there, and is never run again."""

    path: Path

    def open(self, settings: Mapping[str, Any], force: bool, free: Collection[str], new: Collection[str]) -> None:
        """Begins a study, or goes on with the one in the folder.

        Raises `DyditError` where that one has other settings, but for those named in `free`, on which no row depends, and
        those in `new` that it does not name; or where the folder holds something else.
        """
        study = Resumable(self.path, RECIPE_FILE, FORMAT, "a study")
        values = {"format": FORMAT, **settings}
        if force:
            begin_anew(study, {**values, **made_by()}, CLAIMS)
        else:
            study.check(values, free, new)
            before = read_object_if_any(self.path / RECIPE_FILE) or {}
            # the command that first asked for these settings stays, whichever one goes on with them
            if {**before, **values} != before:
                write_json(self.path / RECIPE_FILE, {**values, **made_by()})

    def command(self) -> dict[str, str]:
        """`{"command": ...}`, the one that first asked for the study as it is; empty where none did."""
        recipe = read_object_if_any(self.path / RECIPE_FILE) or {}
        return {"command": recipe["command"]} if "command" in recipe else {}

    def checkpoint(self, row: Row) -> Path:
        """Where the row's model is fine-tuned; kept, or removed when all rows that measure it are done."""
        return self.path / CHECKPOINTS / row.made.name

    def start(self, row: Row) -> Path:
        """Where the converted or pruned model is, until all rows that measure what became of it are done."""
        return self.path / STARTS / row.made.name

    def done(self, row: Row) -> bool:
        return self._file(row).is_file()

    def read(self, row: Row) -> dict[str, Any]:
        """Raises `DyditError` where the row's file is damaged."""
        return _read(self._file(row))

    def samples(self, row: Row) -> NDArray[np.uint8] | None:
        """M S S C, the kept samples of a finished row, or None."""
        file = self._file(row).with_suffix(".npz")
        if not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["samples"]

    def write(self, row: Row, values: dict[str, Any], samples: NDArray[np.uint8] | None) -> None:
        """Finishes the row: the samples first, since the row is done with its own file."""
        if samples is not None:
            with atomic_file(self._file(row).with_suffix(".npz")) as temporary:
                np.savez_compressed(temporary, samples=samples)
        write_json(self._file(row), values)

    def tidy(self, row: Row, keep: bool) -> None:
        """Removes what a finished row needed; with `keep` all but its checkpoint."""
        shutil.rmtree(self.start(row), ignore_errors=True)
        if not keep:
            shutil.rmtree(self.checkpoint(row), ignore_errors=True)

    def time(self, row: Row) -> dict[str, Any] | None:
        """What `write_time` wrote for the row's method, target and steps, or None."""
        file = self._time_file(row)
        return _read(file) if file.is_file() else None

    def write_time(self, row: Row, values: dict[str, Any]) -> None:
        write_json(self._time_file(row), values)

    def claim(self, name: str, wait: bool = False) -> AbstractContextManager[bool]:
        """Whether `name` is this process's for the length of the block; False where another one has it, unless it is to
        `wait` for that one."""
        return claim(self.path / CLAIMS / name, wait)

    def _file(self, row: Row) -> Path:
        return self.path / ROWS / f"{row.name}.json"

    def _time_file(self, row: Row) -> Path:
        return self.path / TIMES / f"{row.what}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DyditError(f"{file}: cannot be read ({error}); remove it, and the same command makes it anew") from None
    if not isinstance(values, dict):
        raise DyditError(f"{file}: not what dydit study writes; remove it, and the same command makes it anew")
    return values

"""A folder that the same command fills again after a kill, and that another command leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dydit_cli.errors import DyditError
from dydit_cli.files import check_output, write_json


@dataclass(frozen=True)
class Resumable:
    """A `folder` whose settings stand in its file `settings`, under a key "format"; it holds `what`, for messages,
    which call the folder `option`."""

    folder: Path
    settings: str
    format: str
    what: str
    option: str = "--out"

    def check(self, asked: dict[str, Any], free: Collection[str] = ()) -> None:
        """Raises `DyditError` where the folder holds anything but a run with the settings `asked`, those named in
        `free` left out; an empty folder may begin."""
        try:
            there = json.loads((self.folder / self.settings).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if not isinstance(there, dict) or there.get("format") != self.format:
            # a kill in the first moment leaves the settings under their temporary name
            begun = self.folder.is_dir() and all(path.name.startswith(f".{self.settings}.") for path in self.folder.iterdir())
            if not begun:
                check_output(self.folder)
            return
        for name, value in asked.items():
            if there.get(name) != value and name not in free:
                raise DyditError(
                    f"{self.folder}: holds {self.what} with {name} {_short(there.get(name))}, and now it is {_short(value)}; "
                    f"choose another {self.option}, or start anew with --force"
                )

    def begin(self, asked: dict[str, Any], force: bool) -> None:
        """Writes the settings that a later run has to repeat; with `force` into an empty folder."""
        if force and self.folder.is_dir():
            shutil.rmtree(self.folder)
        elif force:
            self.folder.unlink(missing_ok=True)
        if not (self.folder / self.settings).is_file():
            write_json(self.folder / self.settings, asked)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."

"""`dydit report`: one page of what runs left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dydit_cli.errors import DyditError
from dydit_cli.files import check_output, write_text
from dydit_cli.reporting.collect import collect
from dydit_cli.reporting.page import render

ENDINGS = (".html", ".htm")


def report(runs: str | Path | Sequence[str | Path], out: str | Path, *, title: str | None = None, force: bool = False) -> Path:
    """Writes the page of `runs`, folders and JSON files that dydit's commands wrote, as the one HTML file `out`.

    The same inputs give the same bytes. Raises `DyditError` for an input that is none of dydit's or damaged, another
    ending than .html, or an existing `out` (without `force`).
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise DyditError(f"{out}: a report is a page; end its name in .html")
    check_output(out, force)
    sections = collect([runs] if isinstance(runs, str | Path) else runs)
    write_text(out, render(sections, title))
    return out

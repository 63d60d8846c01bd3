"""The figures that a folder or file allows, drawn for the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dydit_cli.errors import DyditError
from dydit_cli.figures.catalogue import FIGURES, SOURCES, figures_of
from dydit_cli.figures.inline import inline_svg
from dydit_cli.profiling.profile import Profile
from dydit_cli.reporting.section import Drawn
from dydit_cli.reporting.wording import scrubbed


def drawn_of(path: Path, place: str) -> list[Drawn]:
    """Every figure of `path`, each source read once; `place` keeps identifiers of several inputs apart.

    A sample folder has none: its images are shown as they are.
    """
    loaded: dict[str, Any] = {}
    figures = []
    for name in figures_of(path):
        kind = FIGURES[name]
        if kind.takes == "samples" and (path / "samples.json").is_file():
            continue
        if kind.takes not in loaded:
            loaded[kind.takes] = without_paths(SOURCES[kind.takes].read([path]))
        try:
            figures.append(draw(name, loaded[kind.takes], place))
        except DyditError:
            continue  # readable, but holds too little for this one: the losses of a single model have no gap
    return figures


def draw(name: str, loaded: Any, place: str) -> Drawn:
    """The figure `name` of what its source's `read` returned."""
    kind = FIGURES[name]
    return Drawn(inline_svg(lambda: kind.draw(loaded), f"{place}-{name}"), kind.title, kind.caption)


def draw_samples(paths: Sequence[Path], place: str) -> Drawn | None:
    """The same seeds through several models, of several sample folders; None where they do not belong together."""
    if "samples" not in FIGURES:
        return None
    try:
        return draw("samples", SOURCES["samples"].read(list(paths)), place)
    except DyditError:
        return None


def without_paths(loaded: Any) -> Any:
    """What is drawn, with names in place of paths."""
    if isinstance(loaded, Profile):
        return replace(loaded, summary=scrubbed(loaded.summary))
    return scrubbed(loaded) if isinstance(loaded, dict) else loaded


def read_values(path: Path) -> dict[str, Any]:
    """A JSON object without paths in it; raises `DyditError` where the file holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DyditError(f"{path}: not readable as JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise DyditError(f"{path}: holds no JSON object; it is not what dydit wrote")
    return scrubbed(values)

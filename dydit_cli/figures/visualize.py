"""`dydit visualize`: a figure by its name, from files that a profile, a run, a study or a bench left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dydit_cli.artifacts.profile import Profile
from dydit_cli.errors import DyditError
from dydit_cli.figures import style
from dydit_cli.figures.catalogue import FIGURES, SOURCES, FigureKind
from dydit_cli.files import atomic_file, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Input = str | Path | Profile


def visualize(
    source: Input | Sequence[str | Path], figure: str, out: str | Path, *, data: bool = False, force: bool = False
) -> Path:
    """Draws `figure`, a name in `FIGURES`, of what `source` holds into the file `out`, PNG, SVG or PDF by ending.

    `source` is a folder of the kind that the figure takes (`FIGURES[figure].takes`), a bench's JSON file, or a profile in
    memory; `samples` takes several folders. `data` also writes the figure's numbers beside it, as CSV of the same name.

    Raises `DyditError` for an unknown figure or ending, an existing `out` (without `force`), or a source of another kind.
    """
    kind = find_figure(figure)
    out = prepare(out, force)
    numbers = check_output(out.with_suffix(".csv"), force) if data else None
    loaded = load(figure, source)
    save_as(lambda: kind.draw(loaded), out)
    if numbers is not None:
        with atomic_file(numbers) as temporary:
            kind.table(loaded).to_csv(temporary, index=False)
    return out


def find_figure(name: str) -> FigureKind:
    """The figure of this name; raises `DyditError` for an unknown one."""
    if name not in FIGURES:
        raise DyditError(f"no figure {name!r}; choose one of {', '.join(FIGURES)}")
    return FIGURES[name]


def load(figure: str, source: Input | Sequence[str | Path]) -> Any:
    """What `FIGURES[figure].table` and `.draw` take; raises `DyditError` where `source` does not hold it."""
    takes = find_figure(figure).takes
    if isinstance(source, Profile):
        if takes != "profile":
            raise DyditError(f"the {figure} figure is drawn from what `{SOURCES[takes].made_by}` writes, not from a profile")
        return source
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(part) for part in source]
    if len(paths) != 1 and takes != "samples":
        raise DyditError(f"the {figure} figure is drawn of one source and {len(paths)} were named; name one")
    return SOURCES[takes].read(paths)


def prepare(out: str | Path, force: bool) -> Path:
    """`out`, where a figure can be written; raises `DyditError` for another ending or an existing file."""
    style.check_ending(out)
    return check_output(out, force)


def save_as(draw: Callable[[], Figure], out: str | Path) -> None:
    """Draws in the house's style and writes."""
    with style.styled():
        style.save(draw(), out)

"""`dydit visualize`: a figure by its name, from files that a profile, a run, a study or a benchmark left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dydit_cli.artifacts.base import Artifact, kinds
from dydit_cli.errors import DyditError
from dydit_cli.figures import style
from dydit_cli.figures.base import find_figure
from dydit_cli.files import atomic_file, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Source = str | Path | Artifact


def visualize(
    source: Source | Sequence[str | Path], figure: str, out: str | Path, *, data: bool = False, force: bool = False
) -> Path:
    """Draws the figure of the name `figure` into the file `out`, PNG, SVG or PDF by ending.

    `source` is what the figure takes: a folder or a JSON file that a command wrote, or such an artifact in memory; a figure
    that shows `several` takes several folders. `data` also writes the figure's numbers beside it, as CSV of the same name.

    Raises `DyditError` for an unknown figure or ending, an existing `out` (without `force`), or a source of another kind.
    """
    chosen = find_figure(figure)
    out = prepare(out, force)
    numbers = check_output(out.with_suffix(".csv"), force) if data else None
    loaded = load(figure, source)
    save_as(lambda: chosen.draw(loaded), out)
    if numbers is not None:
        with atomic_file(numbers) as temporary:
            chosen.table(loaded).to_csv(temporary, index=False)
    return out


def load(figure: str, source: Source | Sequence[str | Path]) -> Any:
    """What the `table` and `draw` of the figure take; raises `DyditError` where `source` does not hold it."""
    chosen, every = find_figure(figure), kinds()
    wanted = [every[kind] for kind in chosen.takes]
    if isinstance(source, Artifact):
        if source.kind not in chosen.takes:
            made_by = ", ".join(f"`{kind.made_by}`" for kind in wanted)
            raise DyditError(f"the {figure} figure is drawn from what {made_by} writes, not from {source.name}")
        return [source] if chosen.several else source
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(part) for part in source]
    if chosen.several:
        return [_read(path, wanted) for path in paths]
    if len(paths) != 1:
        raise DyditError(f"the {figure} figure is drawn of one source and {len(paths)} were named; name one")
    return _read(paths[0], wanted)


def _read(path: Path, wanted: Sequence[type[Artifact]]) -> Artifact:
    """The artifact at `path`, of one of the kinds `wanted`."""
    fitting = [kind for kind in wanted if kind.fits(path)]
    if not fitting and len(wanted) > 1:
        names = " nor ".join(f"{kind.name} ({kind.mark})" for kind in wanted)
        raise DyditError(f"{path}: neither {names}; make one with: {' or '.join(kind.made_by for kind in wanted)}")
    return (fitting or wanted)[0].read(path)


def prepare(out: str | Path, force: bool) -> Path:
    """`out`, where a figure can be written; raises `DyditError` for another ending or an existing file."""
    style.check_ending(out)
    return check_output(out, force)


def save_as(draw: Callable[[], Canvas], out: str | Path) -> None:
    """Draws in the house's style and writes."""
    with style.styled():
        style.save(draw(), out)

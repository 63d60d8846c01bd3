"""One look for every figure: colour-blind safe, readable in grey, vector or PNG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")

# Okabe and Ito's palette; their greys are apart too
BLUE, ORANGE, GREEN, GREY, LIGHT = "#0072B2", "#E69F00", "#009E73", "#666666", "#E8E8E8"

HEAT = "cividis"

SETTINGS: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "dydit",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def check_ending(path: str | Path) -> None:
    """Raises `DyditError` unless `path` ends in .png, .svg or .pdf."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise DyditError(f"{path}: a figure's name ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")


@contextmanager
def styled() -> Iterator[None]:
    """The look, for the block alone; needs no display."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, SETTINGS)):
        yield


def new_figure(width: float, height: float, gap: float = 0.02) -> Figure:
    """A figure of `width` x `height` inches, without a window; `gap` parts columns, as a share of one."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=gap))


def bare(ax: Axes) -> None:
    """Leaves the picture alone: no ticks and no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def save(figure: Figure, path: str | Path) -> None:
    """Writes `figure` in the format of `path`'s ending, the same bytes each time."""
    path = Path(path)
    check_ending(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix.lower()]
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], metadata=metadata)

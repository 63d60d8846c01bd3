"""What a page is made of, as plain data: no HTML and no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

TIMES = "\N{MULTIPLICATION SIGN}"

Single = str | float | None

Value = Single | tuple[Single, Single]  # the pair is a mean and its standard deviation


@dataclass(frozen=True)
class Column:
    """Names and ordinals (steps, seeds, classes) have neither `unit` nor `scale`; a measured number has a unit always.

    `spec` is what `format` takes; a value is multiplied by `scale` before it is shown.
    """

    name: str
    unit: str = ""
    spec: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Table:
    """`rows` hold raw values, one for each column. A `folded` table is long, and opened on demand."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    folded: bool = False


@dataclass(frozen=True)
class SvgFigure:
    """A figure: an `<svg>` element, a heading and a caption."""

    svg: str
    title: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A PNG file's bytes, how many pixels wide and high it is, and what is to be seen."""

    data: bytes
    width: int
    height: int
    text: str


@dataclass(frozen=True)
class Gallery:
    """Pictures that belong together; one alone is shown at its own width."""

    caption: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Metric:
    """A number to see first: `recognised`, `99.8 %`, `of 256 samples`. `unit` says what the number is of, or its unit."""

    label: str
    text: str
    unit: str


@dataclass(frozen=True)
class Frame:
    """What a slider shows at one of its stops: the number there, and the figures, pictures and metrics of it."""

    stop: float
    metrics: Sequence[Metric]
    figures: Sequence[SvgFigure]
    galleries: Sequence[Gallery]


@dataclass(frozen=True)
class Slider:
    """One thing at several settings, `dial` by name, in rising order."""

    name: str
    dial: str
    frames: Sequence[Frame]


@dataclass(frozen=True)
class Film:
    """What a sampling run did, step by step. `texts` say each step in words; `strip` has a column for each of them, and each of
    the `screens`, which are rows of pictures, all steps of its picture one below the other."""

    name: str
    dial: str
    texts: Sequence[str]
    strip: Picture
    screens: Sequence[Sequence[Picture]]
    caption: str


@dataclass(frozen=True)
class Origin:
    """How something was made: `steps` are the commands that made the model, oldest first, `commands` those that made the
    rest, and `unstored` names what has none."""

    steps: Sequence[str] = ()
    commands: Sequence[str] = ()
    unstored: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """What one input holds. `name` is its folder's or file's name, `about` what it is, `summary` plain sentences; `files` are
    recipes by name. `budget` is the FLOPs ratio that the model, one of a range, is set to, behind the model's name."""

    name: str
    about: str
    summary: str
    metrics: Sequence[Metric] = ()
    protocol: dict[str, str] = field(default_factory=dict)
    figures: Sequence[SvgFigure] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    notes: Sequence[str] = ()
    versions: dict[str, str] = field(default_factory=dict)
    origin: Origin = Origin()
    files: dict[str, str] = field(default_factory=dict)
    budget: tuple[str, float] | None = None
    film: Film | None = None

    def as_part(self) -> Section:
        """Of a folder that belongs to another, whose summary and command cover it."""
        return replace(self, summary="", metrics=(), origin=Origin(), files={})

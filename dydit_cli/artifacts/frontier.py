"""What `dydit frontier` leaves: mixes of ratio, steps, sampler and cache, their cost, distances to the complete model, and what
judges say of their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dydit_cli import marks
from dydit_cli.artifacts.base import Folder
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, write_json
from dydit_cli.model.caching import NONE

if TYPE_CHECKING:
    import pandas as pd

TABLE_FILE = "frontier.csv"

Over = Literal["cost", "seconds_per_image"]  # what a front is over

OVERS: dict[str, Over] = {"macs": "cost", "seconds": "seconds_per_image"}

JUDGED = ("frechet_", "precision_", "recall_")  # how columns of judges begin

DISTANCE = "distance"  # what nearness is measured by, unless it is a judge


@dataclass(frozen=True)
class Mix:
    """A way to sample: `checkpoint` by its short name, `flops_ratio` of one of a range, `cache` as lists spell it."""

    checkpoint: str
    flops_ratio: float | None
    sampler: str
    steps: int
    cache: str

    @property
    def model(self) -> str:
        """`digits-range at 0.5`."""
        return self.checkpoint if self.flops_ratio is None else f"{self.checkpoint} at {self.flops_ratio:g}"

    @property
    def parts(self) -> dict[str, str]:
        """`digits-range at 0.5`, `ddim`, `10 steps` and `fora:3`, by name; without a cache no such part."""
        parts = {"model": self.model, "sampler": self.sampler, "steps": f"{self.steps} steps", "cache": self.cache}
        return parts if self.cache != NONE else {name: part for name, part in parts.items() if name != "cache"}

    @property
    def label(self) -> str:
        """All of it."""
        return ", ".join(self.parts.values())

    @property
    def file_name(self) -> str:
        return self.label.replace(", ", "-").replace(" ", "-").replace(":", "-") + ".json"


@dataclass(frozen=True)
class MeasuredMix(Mix):
    """`distance` is the mean squared one of samples to the reference's, and `distance_error` its standard error over images,
    None for one; `cost` is the MACs per image over the static model's with the reference's steps. Seconds are None until they
    are taken. One that is `dropped` was measured on the first images alone, which showed that it cannot be on a front.

    `judged` has by judge the Fréchet distance of the mix's samples to a reference (`frechet`), its standard deviation over
    draws of samples (`frechet_sd`), `precision` and `recall`.
    """

    macs_per_image: float
    cost: float
    distance: float
    distance_error: float | None
    images: int
    seconds_per_image: float | None = None
    dropped: bool = False
    judged: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    def apart(self, by: str = DISTANCE) -> float | None:
        """How far its samples are, by the distance, or by a judge; None where that one has not judged them."""
        return self.distance if by == DISTANCE else self.judged.get(by, {}).get("frechet")


def front_of(mixes: Sequence[MeasuredMix], over: Over, by: str = DISTANCE) -> list[MeasuredMix]:
    """Those than which none is both cheaper and nearer by the distance or a judge, the cheapest first; without those that were
    dropped, not timed or not judged."""
    return within(mixes, over, by, 1, strictly=True)


def within(
    mixes: Sequence[MeasuredMix], over: Over, by: str = DISTANCE, times: float = 1, strictly: bool = False
) -> list[MeasuredMix]:
    """Those on the front, and those that are at most so many `times` as far as the front is at their cost; where `strictly`,
    of mixes that are alike in both only one."""
    known = [(getattr(mix, over), mix.apart(by), i) for i, mix in enumerate(mixes) if not mix.dropped]
    found: list[MeasuredMix] = []
    nearest = float("inf")
    for _, apart, i in sorted((cost, apart, i) for cost, apart, i in known if cost is not None and apart is not None):
        if apart < nearest or (not strictly and apart <= times * nearest):
            found.append(mixes[i])
        nearest = min(nearest, apart)
    return found


@dataclass(frozen=True)
class Frontier(Folder):
    """`summary` is frontier.json but for its mixes, `mixes` all that were measured. A front that is stored with a checkpoint
    has its mixes alone."""

    kind = "frontier"
    name = "a front"
    made_by = "dydit frontier CKPT --out DIR"
    mark = marks.FRONTIER
    files = (mark,)
    format = "dydit-frontier"

    summary: dict[str, Any]
    mixes: list[MeasuredMix]

    def front(self, over: Over, by: str = DISTANCE) -> list[MeasuredMix]:
        """As `front_of`."""
        return front_of(self.mixes, over, by)

    @property
    def judges(self) -> list[str]:
        """Those that judged any mix, the main one first."""
        return list(dict.fromkeys(judge for mix in self.mixes for judge in mix.judged))

    @property
    def main(self) -> str:
        """What says best how good a mix is: the first judge, or without one the distance."""
        return next(iter(self.judges), DISTANCE)

    def label(self, mix: Mix) -> str:
        """What tells the mix from the others: the model and the sampler where there are several."""
        same = {name for name in ("model", "sampler") if len({one.parts[name] for one in self.mixes}) == 1}
        return ", ".join(part for name, part in mix.parts.items() if name not in same)

    @property
    def table(self) -> pd.DataFrame:
        """One row a mix, by rising MACs, and on which fronts it is."""
        import pandas as pd

        fronts = {
            f"on_front_of_{name}" + ("" if by == DISTANCE else f"_{by}"): self.front(over, by)
            for by in (DISTANCE, *self.judges)
            for name, over in OVERS.items()
        }
        rows = []
        for mix in self.mixes:
            values = asdict(mix)
            for judge, figures in values.pop("judged").items():
                for name, value in figures.items():
                    figure, _, ending = name.partition("_")
                    values["_".join(part for part in (figure, judge, ending) if part)] = value
            rows.append({**values, **{name: mix in front for name, front in fronts.items()}})
        table = pd.DataFrame(rows)
        flags = [*fronts]
        table = table[[name for name in table.columns if name not in flags] + flags]  # of the first rows none may be judged
        optional = ["flops_ratio", "distance_error", "seconds_per_image", *(n for n in table.columns if n.startswith(JUDGED))]
        table = table.astype(dict.fromkeys(optional, float))
        return table.sort_values("macs_per_image", kind="stable").reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """frontier.json."""
        return {**self.header(), **self.summary, "mixes": [asdict(mix) for mix in self.mixes]}

    def of(self, checkpoint: str, **facts: Any) -> Frontier:
        """The front of one checkpoint's mixes, with more `facts`."""
        return Frontier({**self.summary, **facts}, [mix for mix in self.mixes if mix.checkpoint == checkpoint])

    def write(self, folder: str | Path) -> None:
        """Writes frontier.csv and frontier.json, each atomically."""
        with atomic_file(Path(folder) / TABLE_FILE) as temporary:
            self.table.to_csv(temporary, index=False)
        self.store(folder)

    def store(self, folder: str | Path) -> None:
        """Writes frontier.json alone."""
        write_json(Path(folder) / self.mark, self.to_dict())

    @classmethod
    def read(cls, path: str | Path) -> Frontier:
        folder = Path(path)
        summary = cls.read_summary(folder)
        with cls.reading(folder / cls.mark):
            mixes = [MeasuredMix(**values) for values in summary.pop("mixes")]
            needed = [summary[name] for name in ("reference", "settings", "images", "device")]
        if not mixes or not needed:
            raise DyditError(f"{folder / cls.mark}: holds no mix yet; run the same command on")
        return cls({name: value for name, value in summary.items() if name not in cls.header()}, mixes)

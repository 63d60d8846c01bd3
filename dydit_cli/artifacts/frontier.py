"""What `dydit frontier` leaves: mixes of ratio, steps, sampler and cache, their cost, and distances to the complete model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    are taken. One that is `dropped` was measured on the first images alone, which showed that it cannot be on a front."""

    macs_per_image: float
    cost: float
    distance: float
    distance_error: float | None
    images: int
    seconds_per_image: float | None = None
    dropped: bool = False


def front_of(mixes: Sequence[MeasuredMix], over: Over) -> list[MeasuredMix]:
    """Those than which none is both cheaper and nearer, the cheapest first; without those that were dropped or not timed."""
    known = [(getattr(mix, over), mix.distance, i) for i, mix in enumerate(mixes) if not mix.dropped]
    front: list[MeasuredMix] = []
    for _, distance, i in sorted(one for one in known if one[0] is not None):
        if not front or distance < front[-1].distance:
            front.append(mixes[i])
    return front


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

    def front(self, over: Over) -> list[MeasuredMix]:
        """As `front_of`."""
        return front_of(self.mixes, over)

    def label(self, mix: Mix) -> str:
        """What tells the mix from the others: the model and the sampler where there are several."""
        same = {name for name in ("model", "sampler") if len({one.parts[name] for one in self.mixes}) == 1}
        return ", ".join(part for name, part in mix.parts.items() if name not in same)

    @property
    def table(self) -> pd.DataFrame:
        """One row a mix, by rising MACs, and on which fronts it is."""
        import pandas as pd

        fronts = {name: self.front(over) for name, over in (("macs", "cost"), ("seconds", "seconds_per_image"))}  # type: ignore[arg-type]
        on = [{f"on_front_of_{name}": mix in front for name, front in fronts.items()} for mix in self.mixes]
        rows = [{**asdict(mix), **flags} for mix, flags in zip(self.mixes, on, strict=True)]
        table = pd.DataFrame(rows).astype({"flops_ratio": float, "distance_error": float, "seconds_per_image": float})
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

"""A front on disk: a file for each finished mix, which several processes may fill side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dydit_cli import marks
from dydit_cli.artifacts.base import read_object
from dydit_cli.artifacts.frontier import Frontier, MeasuredMix, Mix
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, Shards, claim, write_json
from dydit_cli.provenance import made_by
from dydit_cli.studies.folder import CLAIMS, TIMES, begin_anew
from dydit_cli.studies.mixes import Candidate

MIXES, SAMPLES, JUDGED = "mixes", "samples", "judged"

SHARD_SIZE = 500  # samples in a file

# with others, mixes are added or left out, or judged anew
FREE = {"flops_ratios", "steps", "samplers", "caches", "features", "num", "reference", "near", "vae"}


@dataclass(frozen=True)
class FrontierFolder:
    """The folder `path`, which several processes may fill side by side."""

    path: Path

    def open(self, settings: Mapping[str, Any], force: bool) -> None:
        """Begins, or goes on with what is there. Raises `DyditError` where that has other settings, but for `FREE`."""
        resumable = Resumable(self.path, marks.RECIPE, Frontier.format, "a front")
        values = {"format": Frontier.format, **settings}
        if force:
            begin_anew(resumable, {**values, **made_by()}, CLAIMS)
        else:
            resumable.check(values, FREE)
            resumable.begin({**values, **made_by()}, force=False)

    def claim(self, name: str, wait: bool = False) -> AbstractContextManager[bool]:
        """Whether `name` is this process's for the length of the block."""
        return claim(self.path / CLAIMS / name, wait)

    def share(
        self,
        todo: list[Candidate],
        stage: str,
        done: Callable[[Candidate], bool],
        run: Callable[[Candidate], None],
        skip: Callable[[Candidate], None],
        wait: bool = False,
    ) -> None:
        """Runs those of `todo` that no other process is at, and goes over the rest again while there was one to run; those
        that are `done` by then are skipped. With `wait` the others' are waited for, and run where they gave them up."""
        ran = True
        while ran:
            ran = False
            for one in list(todo):
                with self.claim(f"{stage}{one.mix.file_name}", wait) as mine:
                    if not mine:
                        continue
                    todo.remove(one)
                    if done(one):
                        skip(one)
                    else:
                        run(one)
                        ran = True

    def done(self, mix: Mix) -> bool:
        return (self.path / MIXES / mix.file_name).is_file()

    def read(self, mix: Mix) -> tuple[MeasuredMix, float]:
        """What was measured, its seconds included where they are known, and the distance on the first images."""
        values = read_values(self.path / MIXES / mix.file_name)
        first = float(values.pop("first_distance"))
        times = self.path / TIMES / mix.file_name
        seconds = read_values(times)["seconds_per_image"] if times.is_file() else None
        return MeasuredMix(**{**values, "seconds_per_image": seconds}), first

    def write(self, mix: MeasuredMix, first_distance: float) -> None:
        write_json(self.path / MIXES / mix.file_name, {**asdict(mix), "first_distance": first_distance})

    def write_time(self, mix: Mix, seconds: float) -> None:
        write_json(self.path / TIMES / mix.file_name, {"seconds_per_image": seconds, "threads": torch.get_num_threads()})

    def timed(self, mix: Mix) -> bool:
        return (self.path / TIMES / mix.file_name).is_file()

    def samples(self, mix: Mix, count: int) -> Shards:
        """The files of so many of the mix's samples."""
        return Shards(self.path / SAMPLES / mix.file_name.removesuffix(".json"), count, SHARD_SIZE, ".npz")

    def judgement(self, mix: Mix, judge: str) -> dict[str, Any] | None:
        """What `write_judgement` wrote, or None."""
        file = self._judgement(mix, judge)
        return read_values(file) if file.is_file() else None

    def write_judgement(self, mix: Mix, judge: str, values: dict[str, Any]) -> None:
        write_json(self._judgement(mix, judge), values)

    def _judgement(self, mix: Mix, judge: str) -> Path:
        return self.path / JUDGED / judge / mix.file_name


def read_values(file: Path) -> dict[str, Any]:
    """The object in a file of a front's folder. Raises `DyditError` where it is damaged."""
    try:
        return read_object(file)
    except (OSError, ValueError) as error:
        raise DyditError(f"{file}: cannot be read ({error}); remove it, and the same command makes it anew") from None

"""Runs the rows of a study that are not done and that no other process is at, and in the end takes times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from dydit_cli.artifacts.bench import Spread
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.read import read
from dydit_cli.errors import DyditError
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import open_sampler
from dydit_cli.studies.folder import TIMING, StudyFolder
from dydit_cli.studies.measure import Evaluator, measure
from dydit_cli.studies.methods import STATIC, Row, Start
from dydit_cli.studies.progress import PER_ROW, Interrupted, OnStage, OnWork, RowWork
from dydit_cli.studies.recipe import TimingPart
from dydit_cli.train.run import finetune
from dydit_cli.train.run_folder import RunFolder
from dydit_cli.version import __version__

TUNING_SHARE = 0.6  # of the time that a fine-tuned row takes, roughly


def time_row(
    static: Checkpoint, model: Checkpoint, row: Row, timing: TimingPart, evaluator: Evaluator, work: RowWork
) -> dict[str, Any]:
    """Seconds per image of both, and the static model's over the row's, run by run; medians and quartiles.

    A run samples `timing.images` images at once. What it plans and computes ahead belongs to it: each begins with a new
    model.
    """
    images, whole = timing.images, Row(STATIC, 1.0, row.seed)
    pair = [(static, evaluator.sampling(whole, images)), (model, evaluator.sampling(row, images))]
    each = [images * sampling.settings.for_model(static.config).work for _, sampling in pair]
    advance = work.part("time", 1.0, (timing.repeats + 1) * sum(each))
    for (checkpoint, sampling), amount in zip(pair, each, strict=True):  # warm
        _run(checkpoint, sampling, images)
        advance(amount)
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(timing.repeats):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):  # neither always comes first
            seconds[side].append(_run(*pair[side], images) / images)
            advance(each[side])
    return {
        **asdict(row),
        "seconds_per_image": asdict(Spread.of(seconds[1])),
        "static_seconds_per_image": asdict(Spread.of(seconds[0])),
        "speedup": asdict(Spread.of([a / b for a, b in zip(*seconds, strict=True)])),
        "images": images,
        "repeats": timing.repeats,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def _run(checkpoint: Checkpoint, sampling: SamplingConfig, images: int) -> float:
    image_sampler = open_sampler(checkpoint, sampling)
    start = time.perf_counter()
    image_sampler.samples(0, images)  # ends on the cpu, so nothing is under way after it
    return time.perf_counter() - start


@dataclass(frozen=True)
class Runner:
    """The rows, what they begin with and are measured with, where they are written, and what follows their progress."""

    start: Start
    evaluator: Evaluator
    folder: StudyFolder
    rows: list[Row]
    on_stage: OnStage
    on_work: OnWork
    should_stop: Callable[[], bool]

    def run_rows(self, on_row: Callable[[], object]) -> None:
        """Goes over the rows again while there was one to run, for those that another process left; `on_row` is called
        after each. Rows that measure one model are run together, by one process. Raises `Interrupted` where it is to stop."""
        todo: list[tuple[Row, list[Row]]] = []
        for made, rows in groupby(self.rows, lambda row: row.made):
            left = [row for row in rows if not self.folder.done(row)]
            if left:
                todo.append((made, left))
            else:
                self.folder.tidy(made, self._keeps(made))  # a kill may have come between
        if todo:
            self.on_stage("study", sum(len(left) for _, left in todo), "rows", PER_ROW)
        ran = True
        while ran:
            ran = False
            for one in list(todo):
                made, left = one
                with self.folder.claim(made.name) as mine:
                    if not mine:
                        continue
                    todo.remove(one)
                    for row in left:
                        work = self._work(row.name)
                        if not self.folder.done(row):
                            self.run_row(row, work)
                            ran = True
                            on_row()
                        work.finish()
                    self.folder.tidy(made, self._keeps(made))

    def run_row(self, row: Row, work: RowWork) -> None:
        """Makes and measures one row, and writes it."""
        if self.should_stop():
            raise Interrupted
        try:
            made, facts = self.make(row, work)
            measured = measure(made, row, self.evaluator, work)
        except DyditError as error:
            raise DyditError(f"{row.name}: {error}") from None
        values = {
            "format": "dydit-study-row",
            **asdict(row),
            **measured.values,  # the number of steps among them
            **facts,
            "device": self.start.device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dydit": __version__,
        }
        self.folder.write(row, values, measured.samples[: self.evaluator.config.kept] if self._first(row) else None)

    def make(self, row: Row, work: RowWork) -> tuple[Checkpoint, dict[str, Any]]:
        """The row's model, and what making it was; what an interruption left is gone on with.

        A model whose checkpoint was removed before the row was asked for is made again, as it was.
        """
        recipe = self.start.tuning(row)
        if recipe is None:
            return self.start.checkpoint, {"finetune_steps": 0}
        run = RunFolder(self.folder.checkpoint(row))
        facts: dict[str, Any] = {"finetune_steps": recipe.train.steps}
        step = work.tuned(TUNING_SHARE, recipe.train.steps)
        if not run.finished(recipe):
            result = finetune(
                self.start.begin(row, self.folder.start(row)),
                run.path,
                recipe=recipe,
                device=self.start.device,
                force=not run.states.exists(),
                on_step=lambda metrics: step(),
                should_stop=self.should_stop,
            )
            if result.interrupted:
                raise Interrupted
            facts |= {"finetune_seconds": result.seconds, "skipped_steps": result.skipped}
        made = read(run.path)
        if recipe.routing.calibrate and row.tuning == "dynamic":
            facts["calibration_shift"] = made.lineage[-1].get("shift", 0.0)  # none where the ratio was right
        return self.start.at_target(row, made), facts

    def take_times(self) -> None:
        """Takes the times that are not there yet, in this process alone: two would disturb each other."""
        with self.folder.claim(TIMING) as mine:
            todo = [row for row in self.rows if self._first(row) and self.folder.time(row) is None]
            if not mine or not todo:
                return
            self.on_stage("time", len(todo), "rows", PER_ROW)
            for row in todo:
                static = self.start.checkpoint
                model = static if row.tuning is None else self.start.at_target(row, read(self.folder.checkpoint(row)))
                work = self._work(row.what)
                values = time_row(static, model, row, self.start.recipe.timing, self.evaluator, work)
                self.folder.write_time(row, values)
                work.finish()

    def _first(self, row: Row) -> bool:
        """Whether it is of the seed whose samples and checkpoints are kept and whose times are taken."""
        return row.seed == self.start.recipe.seeds[0]

    def _keeps(self, row: Row) -> bool:
        return self.start.recipe.keep_checkpoints or self._first(row)

    def _work(self, name: str) -> RowWork:
        return RowWork(name, self.on_work, self.should_stop)

"""What `pretrain` and `finetune` show while they run, and how Ctrl-C saves."""

from __future__ import annotations

import shlex
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dydit_cli import units
from dydit_cli.cli import console
from dydit_cli.cli.build import Typed
from dydit_cli.cli.planning import Planned, planned
from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    from dydit_cli.artifacts.run import StepMetrics
    from dydit_cli.train.loop import TrainResult
    from dydit_cli.train.run_folder import RunSpec

RATE_STEPS = 20  # the rate shown is that of the last so many


class Stop:
    """Set by the first Ctrl-C (or SIGTERM); the second ends the program at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        from dydit_cli.distributed import is_main

        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if is_main():
            console.note("stopping after this step; what was learned is saved (again to quit at once)")


@contextmanager
def interruptible() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_next(folder: Path, trained_on: str | None, more: str = "") -> None:
    """The command that fine-tunes `folder` next; without a recipe where the data set has one of its own."""
    from dydit_cli.data.load import default_recipe

    training = "" if trained_on and default_recipe(trained_on) else " --recipe RECIPE --data DATA"
    console.say(f"next: dydit finetune {folder}{more}{training} --out DIR")


def only_resume(typed: Typed, *allowed: str) -> None:
    """Raises `DyditError` where an option stands beside --resume, which would change what the run was asked for."""
    if option := typed.other_than("--resume", "--device", "--track", "--json", *allowed):
        raise DyditError(f"--resume continues a run as it was asked for; leave {option} out, or start a new one with --out")


class Display:
    """The progress of a run: steps, losses, images a second and, on a GPU, memory."""

    def __init__(self, what: str, spec: RunSpec, out: Path, work: console.Stages) -> None:
        self._what, self._recipe, self._out, self._work = what, spec.recipe.train, out, work
        self._past: deque[tuple[int, float]] = deque(maxlen=RATE_STEPS + 1)

    def begin(self, step: int) -> None:
        if step:
            console.note(f"continuing {self._out} after step {step} of {self._recipe.steps}")
        self._work.begin(self._what, self._recipe.steps - step, "steps")

    def step(self, metrics: StepMetrics) -> None:
        self._past.append((metrics.step, metrics.seconds))
        (first, start), (last, end) = self._past[0], self._past[-1]
        rate = (last - first) * self._recipe.batch_size / (end - start) if end > start else None
        self._work.advance(1, describe(metrics, rate))


def train(what: str, spec: RunSpec, out: Path, device: str, force: bool, track: str | None, stop: Stop) -> TrainResult:
    """`run_training` with its progress shown, until it ends or `stop` is set."""
    from dydit_cli.costs.training import check_room, training_plan
    from dydit_cli.train.run import run_training

    if planned():
        raise Planned(training_plan(spec, out, device, force))
    check_room(spec, device)
    with console.stages() as work:
        display = Display(what, spec, out, work)
        return run_training(
            spec, out, device=device, force=force, track=track,
            on_begin=display.begin, on_note=console.note, on_step=display.step, should_stop=stop,
        )  # fmt: skip


def describe(metrics: StepMetrics, rate: float | None = None) -> str:
    """`loss 0.081, ratio 0.52 (target 0.50), 310 images/s`."""
    text = f"loss {metrics.mse + metrics.vb:.4f}"
    if metrics.ratio is not None:
        text += f", ratio {metrics.ratio:.3f} (target {metrics.target:.3f})"
    if rate is not None:
        text += f", {rate:.3g} images/s" if rate < 100 else f", {rate:.0f} images/s"
    if metrics.peak_memory is not None:
        text += f", {metrics.peak_memory / 2**30:.1f} GiB"
    return text + (", step skipped" if metrics.skipped else "")


def finish(what: str, result: TrainResult, out: Path, stop: Stop, json: bool, **more: Any) -> None:
    """The closing figures; an interrupted run shows how to continue and leaves with 128 + the signal's number."""
    last = result.last
    again = f"dydit {what} --resume {shlex.quote(str(out))}" if result.interrupted else None
    rate = result.images / result.seconds if result.seconds else 0.0
    memory = last.peak_memory if last else None
    if result.main and json:
        console.as_json(
            {
                "out": str(out),
                "steps": result.steps,
                "skipped": result.skipped,
                "seconds": result.seconds,
                "images_per_second": rate,
                "peak_memory": memory,
                "interrupted": result.interrupted,
                "resume": again,
                "loss": last.mse + last.vb if last else None,
                **more,
            }
        )
    elif result.main:
        steps_rate = result.steps / result.seconds if result.seconds else 0.0
        skipped = f", {result.skipped} of them skipped by the gradient guard" if result.skipped else ""
        state = "interrupted, saved" if result.interrupted else "done"
        most = f", {memory / 2**30:.1f} GiB at most" if memory is not None else ""
        console.say(
            f"{state}: {out}, {result.steps} steps in {units.seconds(result.seconds)} "
            f"({steps_rate:.2f} steps/s, {rate:.0f} images/s{most}){skipped}"
        )
        if again:
            console.say(f"continue with: {again}")
    if result.main and result.unreadable:
        console.note(result.unreadable)
    if stop.signal is not None or result.interrupted:  # the signal may have come to another process
        raise SystemExit(128 + (stop.signal or signal.SIGTERM))

"""What `pretrain` and `finetune` show while they run, and how Ctrl-C saves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from dydit_cli import units
from dydit_cli.cli import console

if TYPE_CHECKING:
    from pathlib import Path

    from dydit_cli.train.loop import StepMetrics, TrainResult


class Stop:
    """Set by the first Ctrl-C (or SIGTERM); the second ends the program at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
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


def describe(metrics: StepMetrics) -> str:
    """`loss 0.081, ratio 0.52 (target 0.50)`."""
    text = f"loss {metrics.mse + metrics.vb:.4f}"
    if metrics.ratio is not None:
        text += f", ratio {metrics.ratio:.3f} (target {metrics.target:.3f})"
    return text + (", step skipped" if metrics.skipped else "")


def finish(result: TrainResult, out: Path, stop: Stop, json: bool, more: dict[str, Any]) -> None:
    """The closing figures; an interrupted run leaves with 128 + the signal's number."""
    last = result.last
    figures = {
        "out": str(out),
        "steps": result.steps,
        "skipped": result.skipped,
        "seconds": result.seconds,
        "interrupted": result.interrupted,
        "loss": last.mse + last.vb if last else None,
        **more,
    }
    if json:
        console.as_json(figures)
    else:
        rate = result.steps / result.seconds if result.seconds else 0.0
        skipped = f", {result.skipped} of them skipped by the gradient guard" if result.skipped else ""
        state = "interrupted, saved" if result.interrupted else "done"
        console.say(f"{state}: {out}, {result.steps} steps in {units.seconds(result.seconds)} ({rate:.2f} steps/s){skipped}")
    if stop.signal is not None:
        raise typer.Exit(128 + stop.signal)

"""A run's figures where people watch them while it runs: TensorBoard, Weights & Biases or Trackio, by accelerate's trackers.

A tracker is an entry in `TRACKERS`; its package is imported when a run asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    from dydit_cli.artifacts.run import StepMetrics

FILE = "tracking.json"  # in the run's folder: the name that the tracker knows the run by

PROJECT = "dydit"


@dataclass(frozen=True)
class Tracker:
    """`settings(out, run, step)` is what accelerate's tracker of the same name is made with: for the run in the folder `out`,
    known by `run`, after `step` steps. `package` has to be installed."""

    package: str
    settings: Callable[[Path, str, int], dict[str, Any]]


TRACKERS = {
    # into the folder itself; what was written after the step that is continued from is hidden
    "tensorboard": Tracker(
        "tensorboard",
        lambda out, run, step: {"run_name": "tensorboard", "logging_dir": str(out), "purge_step": step + 1},
    ),
    "wandb": Tracker(
        "wandb",
        lambda out, run, step: {"run_name": PROJECT, "name": out.name, "id": run, "resume": "allow", "dir": str(out)},
    ),
    "trackio": Tracker("trackio", lambda out, run, step: {"run_name": PROJECT, "name": run, "resume": "allow"}),
}


def check_tracker(name: str) -> None:
    """Raises `DyditError` for an unknown tracker, and where accelerate or the tracker's package is missing."""
    tracker = TRACKERS.get(name)
    if tracker is None:
        raise DyditError(f"no tracker {name!r}; choose one of {', '.join(TRACKERS)}")
    missing = [package for package in ("accelerate", tracker.package) if find_spec(package) is None]
    if missing:
        raise DyditError(f"--track {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


@contextmanager
def tracking(
    name: str, out: Path, step: int, recipe: Mapping[str, Any], on_note: Callable[[str], None]
) -> Iterator[Callable[[StepMetrics], None]]:
    """Yields what passes a step's figures on, for the run in `out` after `step` steps, whose flat `recipe` is shown too.

    A run that is continued goes on in the same place. A tracker that fails later ends the tracking, with a note, and not the
    run. Raises `DyditError` where it does not start.
    """
    import uuid

    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from dydit_cli.devices import world_size
    from dydit_cli.files import read_json, write_json

    if world_size() == 1:
        PartialState(cpu=True)  # which accelerate's trackers ask for; under a launcher it is there
    if step == 0 or not (out / FILE).is_file():
        write_json(out / FILE, {"run": f"{out.name}-{uuid.uuid4().hex[:8]}"})
    run = str(read_json(out / FILE)["run"])
    working = True

    def trying(action: Callable[[], object]) -> None:
        nonlocal working
        try:
            if working:
                action()
        except Exception as error:  # of the tracker's own, or of its network
            working = False
            on_note(f"--track {name}: stopped, and the run goes on: {_line(error)}")

    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](**TRACKERS[name].settings(out, run, step))
        tracker.main_process_only = False  # this is the main one, and accelerate need not ask
        if hasattr(tracker, "start"):  # older ones start as they are made
            tracker.start()
        if step == 0:
            plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in recipe.items()}
            tracker.store_init_configuration(plain)
    except Exception as error:
        raise DyditError(f"--track {name}: does not start ({_line(error)}); mend that, or leave it out") from None
    try:
        yield lambda metrics: trying(lambda: tracker.log(_figures(metrics), step=metrics.step))
    finally:
        trying(tracker.finish)


def _figures(metrics: StepMetrics) -> dict[str, float]:
    """Those that a step has, as metrics.jsonl names them."""
    return {key: float(value) for key, value in metrics.to_dict().items() if value is not None and key != "step"}


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

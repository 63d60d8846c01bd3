"""`--track`: a tracker is passed what metrics.jsonl holds, goes on where a run does, and never costs one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from dydit_cli.artifacts.run import METRICS_FILE
from dydit_cli.train.tracking import TRACKERS, Tracker
from tests.cli.conftest import FAST
from tests.processes import dydit, start_two


class Fake(GeneralTracker):  # type: ignore[misc]
    """Writes down what it is told; `fails` names the call that raises."""

    name = "fake"
    requires_logging_directory = False
    told: ClassVar[list[tuple[str, Any]]] = []
    fails: ClassVar[str] = ""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._tell("made", settings)

    def _tell(self, call: str, value: Any) -> None:
        self.told.append((call, value))
        if self.fails == call:
            raise ConnectionError("no network")

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._tell("start", None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._tell("recipe", values)

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self._tell("log", {"step": step, **values})

    def finish(self) -> None:
        self._tell("finish", None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """One more tracker in accelerate's registry and in ours, of a package that is always there."""
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", Fake)
    monkeypatch.setitem(TRACKERS, "fake", Tracker("json", lambda out, run, step: {"out": out, "run": run, "step": step}))
    Fake.told, Fake.fails = [], ""
    return Fake


def tuned(room: Path, out: Path, *more: object) -> Any:
    few = ["--steps", 3, "--batch-size", 8, "--set", "train.keep_state=true", "--set", "routing.noise_off_steps=0"]
    return dydit("finetune", room / "converted", "--lambda", 0.5, *few, "--out", out, *more, *FAST)


def figures(folder: Path) -> list[dict[str, float]]:
    lines = (folder / METRICS_FILE).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if value is not None} for line in lines]


def test_a_tracker_is_told_every_figure_and_goes_on_with_the_run(room: Path, tmp_path: Path, fake: type[Fake]) -> None:
    done = tuned(room, tmp_path / "run", "--track", "fake")
    assert done.exit_code == 0, done.output
    (_, made), *between, (last, _) = fake.told
    assert [call for call, _ in between] == ["start", "recipe", "log", "log", "log"]
    assert last == "finish"
    assert between[1][1]["routing.flops_ratio"] == 0.5
    assert between[1][1]["train.grad_limit"] == 200.0
    assert [value for call, value in between if call == "log"] == figures(tmp_path / "run")
    assert (made["out"], made["step"]) == (tmp_path / "run", 0)
    assert made["run"].startswith("run-")

    fake.told.clear()
    more = dydit("finetune", "--resume", tmp_path / "run", "--steps", 5, "--track", "fake", *FAST)
    assert more.exit_code == 0, more.output
    assert fake.told[0] == ("made", {**made, "step": 3})  # the same run of the tracker's
    assert [call for call, _ in fake.told[1:]] == ["start", "log", "log", "finish"]
    assert [value for call, value in fake.told if call == "log"] == figures(tmp_path / "run")[3:]


def test_a_tracker_changes_nothing_and_its_failure_ends_itself_alone(room: Path, tmp_path: Path, fake: type[Fake]) -> None:
    assert tuned(room, tmp_path / "plain").exit_code == 0
    for fails in ("log", "finish"):
        fake.told, fake.fails = [], fails
        done = tuned(room, tmp_path / fails, "--track", "fake")
        assert done.exit_code == 0, done.output
        assert done.stderr.count("--track fake: stopped, and the run goes on: no network") == 1
        assert len([call for call, _ in fake.told if call == "log"]) == (1 if fails == "log" else 3)
        weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "plain", tmp_path / fails)]
        assert weights[0] == weights[1]


def test_a_tracker_that_does_not_start_is_one_line(room: Path, tmp_path: Path, fake: type[Fake]) -> None:
    fake.fails = "start"
    done = tuned(room, tmp_path / "run", "--track", "fake")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: --track fake: does not start (no network); mend that, or leave it out\n"
    assert tuned(room, tmp_path / "run").exit_code == 0  # and the same command without it begins


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_what_is_missing_is_said_before_anything_is_written(
    command: str, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", Tracker("no_such_package", TRACKERS["wandb"].settings))
    start = room / "converted" if command == "finetune" else "digits/pretrain"
    done = dydit(command, start, "--out", tmp_path / "run", "--track", "wandb")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: --track wandb needs no_such_package: pip install no_such_package\n"
    assert not (tmp_path / "run").exists()
    unknown = dydit(command, start, "--out", tmp_path / "run", "--track", "paper")
    assert "'paper' is not one of 'tensorboard', 'wandb', 'trackio'" in unknown.stderr


def test_tensorboard_has_every_step_of_two_processes(room: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    few = ["--steps", "3", "--batch-size", "8", "--lambda", "0.5", *FAST]
    for process in start_two(["finetune", str(room / "converted"), *few, "--out", str(out), "--track", "tensorboard"]):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    for name in ("mse", "ratio", "lr"):
        shown = events.Scalars(name)
        assert [event.step for event in shown] == [1, 2, 3]
        assert [event.value for event in shown] == pytest.approx([step[name] for step in figures(out)])

"""Training in several processes is training in one: gloo on the cpu, as `accelerate launch` and `torchrun` start them."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dydit_cli.checkpoint.read import read
from dydit_cli.cli.app import app
from dydit_cli.files import locked
from tests.kill_resume import make_start
from tests.processes import start_two

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = ["--steps", 8, "--batch-size", 8, "--device", "cpu"]
# a moving target, noise, the complete pass on a part of the batch, micro-batches, and the start model as a target
SETTINGS = {
    "train.accumulation": 2,
    "train.ema_decay": 0.1,
    "routing.router_lr": 1e-3,
    "routing.hold_steps": 0,
    "routing.warmup_steps": 4,
    "routing.weight": 20.0,
    "routing.complete_steps": 6,
    "routing.complete_share": 0.25,
    "train.teacher_weight": 0.5,
    "train.block_weight": 0.5,
}


def arguments(start: Path, out: Path, *more: object, **settings: object) -> list[str]:
    chosen = [part for key, value in {**SETTINGS, **settings}.items() for part in ("--set", f"{key}={value}")]
    return [str(part) for part in ("finetune", start, "--out", out, *COMMON, *chosen, *more)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "start")


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: Path, b: Path) -> None:
    """Losses and weights to 1e-6."""
    assert len(metrics(a)) == len(metrics(b))
    for one, two in zip(metrics(a), metrics(b), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"seconds"}:
            assert (one[name] is None) == (two[name] is None), name
            assert one[name] is None or one[name] == pytest.approx(two[name], abs=1e-6, rel=1e-6), (one["step"], name)
    weights, others = read(a).weights, read(b).weights
    assert max((weights[name] - others[name]).abs().max().item() for name in weights) < 1e-6


def test_two_processes_and_micro_batches_train_as_one(start: Path, tmp_path: Path) -> None:
    processes = start_two(arguments(start, tmp_path / "two", "--json"))
    plain = CliRunner().invoke(app, arguments(start, tmp_path / "one", **{"train.accumulation": 1}))
    assert plain.exit_code == 0, plain.output
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert json.loads(ended[0][0])["steps"] == 8
    assert ended[1] == ("", "")  # the main process is_main for all
    assert_same(tmp_path / "one", tmp_path / "two")
    seen = metrics(tmp_path / "one")
    assert len({m["ratio"] for m in seen}) == 8
    assert [m["complete_loss"] is not None for m in seen] == [True] * 6 + [False] * 2
    assert not (tmp_path / "two" / "state").exists()


def test_a_signal_to_one_process_stops_all_and_one_can_finish(start: Path, tmp_path: Path) -> None:
    steps = {"train.steps": 80}
    processes = start_two(arguments(start, tmp_path / "two", **steps))
    plain = CliRunner().invoke(app, arguments(start, tmp_path / "one", **steps))
    assert plain.exit_code == 0, plain.output
    until, log = time.monotonic() + 60, tmp_path / "two" / "metrics.jsonl"
    while time.monotonic() < until and not (log.is_file() and log.read_text().count("\n") > 2):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], ended
    assert "interrupted, saved" in ended[0][0]
    there = len(metrics(tmp_path / "two"))
    assert 2 < there < 80
    finished = CliRunner().invoke(app, ["finetune", "--resume", str(tmp_path / "two"), "--device", "cpu"])
    assert finished.exit_code == 0, finished.output
    assert f"after step {there} of 80" in finished.stderr
    assert_same(tmp_path / "one", tmp_path / "two")


def test_a_run_that_another_command_writes_is_refused_by_all(start: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "two"):
        processes = start_two(arguments(start, tmp_path / "two"))
        ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], ended
    (_, first), (_, second) = ended
    assert "two: another process of dydit is writing it; wait for that one, or choose another place" in first
    assert second == "error: process 1 of 2: another one has ended, whose own message says why\n"
    assert list(tmp_path.iterdir()) == []


def test_several_processes_need_accelerate(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert CliRunner().invoke(app, [*arguments(start, tmp_path / "one"), "--steps", "1"]).exit_code == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, arguments(start, tmp_path / "two"))
    assert result.exit_code == 2
    assert "WORLD_SIZE=2: several processes need accelerate: pip install accelerate" in result.stderr
    assert not (tmp_path / "two").exists()

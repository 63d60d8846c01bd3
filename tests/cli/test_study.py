"""`dydit study`: what it prints, how it goes on, and users' mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.model.families.dit import DiT
from tests.conftest import ROOT, randomize
from tests.processes import dydit
from tests.unit.test_tradeoff import SMALL

RECIPE = """
model = "{model}"
seeds = [0, 1]
[finetune]
steps = 2
[methods]
dydit = [0.5]
tome = [0.25]
[evaluation]
images = 12
steps = 2
held_out = 2
[timing]
images = 2
repeats = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write(Checkpoint.of(randomize(DiT(SMALL), scale=0.05), lineage=[]), tmp_path / "model")
    (tmp_path / "study.toml").write_text(RECIPE.format(model=tmp_path / "model"))
    return tmp_path / "study.toml"


def test_a_study_prints_its_table_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    command = ["study", recipe, "--out", tmp_path / "out", "--device", "cpu", "--set", "seeds=[0]"]
    first = dydit(*command)
    assert first.exit_code == 0, first.output
    for text in ("dydit 0.5", "tome 0.25", "control", "ratio", "speed-up", "Fréchet", "4 of 4 rows"):
        assert text in " ".join(first.stdout.split())
    assert all(len(line) <= 80 for line in first.stdout.splitlines() if line[:1] in "┃│")
    assert "study: 4/4 rows" in first.stderr
    again = dydit(*command, "--json")
    assert again.exit_code == 0, again.output
    assert "study:" not in again.stderr
    found = json.loads(again.stdout)
    assert [row["method"] for row in found["rows"]] == ["static", "control", "dydit", "tome"]
    assert (found["left"], found["interrupted"], found["resume"]) == (0, False, None)
    assert found["summary"][2]["frechet_sd"] is None
    refused = dydit(*command, "--set", "evaluation.images=13")
    assert refused.exit_code == 2
    assert "evaluation.images 12, and now it is 13" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_mistakes_are_one_line(recipe: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["none.toml"], "none.toml: no such recipe"),
        ([recipe, "--set", "evaluation.image=3"], "--set: unknown key 'evaluation.image'; did you mean 'images'?"),
        ([recipe, "--set", "model=nowhere"], "nowhere: no such checkpoint"),
        ([recipe, "--set", "data=cats"], "no data set 'cats'"),
        ([recipe, "--set", "finetune.dynamic=digits/none"], "digits/none: no such recipe"),
    ):
        result = dydit("study", *arguments, "--out", tmp_path / "out")
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dydit_cli", "study", str(recipe), "--out", str(out), "--no-time", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(out: Path) -> int:
    return len(list(out.glob("rows/*.json")))


def wait_for_a_row(process: subprocess.Popen[str], out: Path) -> None:
    before = rows(out)
    while process.poll() is None and rows(out) == before:
        time.sleep(0.02)


def test_ctrl_c_says_how_to_go_on_and_two_processes_do(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with start(recipe, out) as stopped:
        wait_for_a_row(stopped, out)
        stopped.send_signal(signal.SIGINT)
        _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, err
    assert f"continue with: dydit study {recipe} --out {out} --no-time --device cpu" in err
    assert 1 <= rows(out) < 8
    assert len(pd.read_csv(out / "study.csv")) == rows(out)

    with start(recipe, out) as other:
        wait_for_a_row(other, out)
        here = dydit("study", recipe, "--out", out, "--no-time", "--device", "cpu")
        _, err = other.communicate(timeout=120)
    assert (here.exit_code, other.returncode) == (0, 0), here.output + err
    table = pd.read_csv(out / "study.csv")
    assert list(table["method"]) == ["static", "control", "dydit", "tome"] * 2
    assert table["loss_ratio"].notna().all()

"""--tome on the command line: sample, evaluate, profile, bench."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.cli.app import app
from dydit_cli.model.families.dit import DiT, DyDiT

QUICK = ["--steps", "2", "--device", "cpu"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def static(tmp_path: Path, tiny_static: DiT) -> Path:
    write(Checkpoint.of(tiny_static, []), tmp_path / "static")
    return tmp_path / "static"


@pytest.fixture
def dynamic(tmp_path: Path, tiny_dynamic: DyDiT) -> Path:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    return tmp_path / "dynamic"


def test_samples_of_another_ratio_are_not_mixed(static: Path, tmp_path: Path) -> None:
    sample = ["sample", static, "--num", 4, "--shard-size", 2, "--npz", *QUICK]
    merged, plain = tmp_path / "merged", tmp_path / "plain"
    assert run(*sample, "--tome", 0.5, "--out", merged)[0] == 0
    assert run(*sample, "--tome", 0, "--out", plain)[0] == 0
    assert json.loads((merged / "samples.json").read_text())["tome"] == 0.5
    assert json.loads((plain / "samples.json").read_text())["tome"] is None
    arrays = [np.load(folder / "samples.npz")["arr_0"] for folder in (merged, plain)]
    assert not np.array_equal(*arrays)
    for ratio, there, now in ((0.25, merged, "0.25"), (0, merged, "null"), (0.25, plain, "0.25")):
        code, _, error = run(*sample, "--tome", ratio, "--out", there)
        assert code == 2
        assert f"holds samples with tome {'0.5' if there == merged else 'null'}, and now it is {now}" in error
    assert run(*sample, "--tome", 0.5, "--out", merged)[0] == 0  # the same again goes on


@pytest.mark.parametrize("form", [["--npz"], []], ids=["npz", "pictures"])
def test_what_cannot_be_merged_leaves_nothing(static: Path, dynamic: Path, tmp_path: Path, form: list[str]) -> None:
    out = tmp_path / "out"
    for checkpoint, ratio, message in (
        (static, 0.9, "error: tome 0.9: merges 14 of 16 tokens; it must be from 1 to 12 of them (one of every 2x2 stays)"),
        (dynamic, 0.2, "error: tome 0.2: merging is for a static model, and a DyDiT routes tokens itself; leave tome out"),
    ):
        code, _, error = run("sample", checkpoint, "--tome", ratio, "--num", 2, "--out", out, *form, *QUICK)
        assert (code, error.strip()) == (2, message)
        assert not out.exists()


def test_evaluate_says_how_it_was_drawn(tmp_path: Path) -> None:
    evaluate = ["evaluate", "digits-dit", "--features", "digits", "--num", 4, "--json", *QUICK]
    code, out, error = run(*evaluate, "--tome", 0.5)
    assert code == 0, error
    assert json.loads(out)["protocol"]["tome"] == 0.5
    assert run("sample", "digits-dit", "--tome", 0.25, "--num", 2, "--out", tmp_path / "drawn", *QUICK)[0] == 0
    code, out, _ = run("evaluate", tmp_path / "drawn", "--features", "digits", "--json", "--device", "cpu")
    assert json.loads(out)["protocol"]["tome"] == 0.25
    code, _, error = run("evaluate", tmp_path / "drawn", "--features", "digits", "--tome", 0.5)
    assert (code, "--tome is for a checkpoint to sample from" in error) == (2, True)


def test_profile_with_merging(static: Path, tmp_path: Path) -> None:
    code, out, error = run("profile", static, "--tome", 0.5, "--images", 2, "--out", tmp_path / "out", *QUICK)
    assert code == 0, error
    assert "ToMe 0.5: every attention sees 8 of 16 tokens, every MLP all" in out
    assert "to the digit what the formula gives" in out
    assert "does everything" not in out
    for option, message in (("--card", "tells of the checkpoint as it is"), ("--width-only", "counts heads and groups alone")):
        code, _, error = run("profile", static, "--tome", 0.5, option, "--out", tmp_path / "no", *QUICK)
        assert (code, error.strip()) == (2, f"error: {option} {message}; leave --tome out")
    assert not (tmp_path / "no").exists()


def test_bench_with_merging(static: Path, tmp_path: Path) -> None:
    quick = ["--batch", 2, "--steps", 4, "--measure", 1, "--repeats", 1, "--device", "cpu"]
    figure = tmp_path / "time.svg"
    code, out, error = run("bench", static, "--tome", 0.5, *quick, "--json", "--figure", figure)
    assert code == 0, error
    values = json.loads(out)
    assert {"speedup", "flops_ratio", "realised_efficiency"} <= values.keys()
    assert (values["tome"], set(values["seconds"])) == (0.5, {"static", "tome"})
    assert "ToMe" in figure.read_text()
    _, text, _ = run("bench", static, "--tome", 0.5, *quick)
    assert "Where the time goes [s]" in text
    assert "speed-up of tome" in text
    assert "over static, ToMe 0.5; FLOPs ratio" in text
    assert "distinct sets" not in text

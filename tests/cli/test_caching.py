"""--cache on the command line: sample, evaluate, profile, bench, and what it says to a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.model.families.dit import DiT, DyDiT
from tests.conftest import FAMILIES, randomize
from tests.processes import dydit, start_two

QUICK = ["--steps", "6", "--device", "cpu"]
TAYLOR = ["--cache", "taylorseer:3:1"]


@pytest.fixture
def dynamic(tmp_path: Path, tiny_dynamic: DyDiT) -> Path:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    return tmp_path / "dynamic"


@pytest.fixture
def static(tmp_path: Path, tiny_static: DiT) -> Path:
    write(Checkpoint.of(tiny_static, []), tmp_path / "static")
    return tmp_path / "static"


def test_samples_of_another_cache_are_not_mixed(dynamic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample = ["sample", dynamic, "--num", 4, "--shard-size", 2, "--npz", "--out", out, *QUICK]
    first = dydit(*sample, *TAYLOR)
    assert first.exit_code == 0, first.output
    assert "cache taylorseer:3:1: 3 of 6 steps are computed; keeps 2 of the outputs of 6 attentions and MLPs" in first.stderr
    record = json.loads((out / "samples.json").read_text())
    assert [record[name] for name in ("cache", "cache_first", "cache_last", "cache_at")] == [
        "taylorseer:3:1", 2, 0, "sublayers",
    ]  # fmt: skip
    for more, name in (([], "cache"), (["--cache", "fora:3"], "cache"), ([*TAYLOR, "--cache-at", "model"], "cache_at")):
        refused = dydit(*sample, *more)
        assert refused.exit_code == 2
        assert f"holds samples with {name} " in refused.stderr
    assert dydit(*sample, *TAYLOR).exit_code == 0  # the same again goes on


@pytest.mark.usefixtures("one_thread")
def test_two_processes_draw_the_same(dynamic: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        more = ["--num", 6, "--shard-size", 2, "--batch", 2, "--npz", "--json", "--out", out]
        return [str(part) for part in ("sample", dynamic, *TAYLOR, *QUICK, *more)]

    one = dydit(*command(tmp_path / "one"))
    assert one.exit_code == 0, one.output
    team = start_two(command(tmp_path / "two"))
    ended = [process.communicate(timeout=240) for process in team]
    assert [process.returncode for process in team] == [0, 0], ended
    assert ended[1] == ("", "")
    one_array, two_array = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("one", "two"))
    assert np.array_equal(one_array, two_array)
    assert json.loads(ended[0][0])["processes"] == 2


def test_evaluate_says_how_it_was_drawn() -> None:
    few = ["--features", "digits", "--num", 4, "--json", *QUICK]
    result = dydit("evaluate", "digits-dit", *few, "--cache", "fora:3", "--cache-last", 2, "--cache-at", "model")
    assert result.exit_code == 0, result.output
    protocol = json.loads(result.stdout)["protocol"]
    assert [protocol[name] for name in ("cache", "cache_first", "cache_last", "cache_at")] == ["fora:3", 1, 2, "model"]


def test_profile_and_its_report(dynamic: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile"
    result = dydit("profile", dynamic, *TAYLOR, "--cache-last", 1, "--images", 2, "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "cache taylorseer:3:1: 4 of 6 model calls computed, 2 forecast; outputs of attention and MLP are kept" in text
    assert "per image of the static model without a cache" in text
    assert "to the digit what the formula gives" in text
    assert "warning" not in result.stderr
    header, *rows = (out / "timesteps.csv").read_text().splitlines()
    assert [row.split(",")[header.split(",").index("forecast")] for row in rows] == ["0", "0", "1", "1", "0", "0"]
    summary = json.loads((out / "profile.json").read_text())
    assert (summary["calls_computed"], summary["calls_forecast"], summary["counters_agree"]) == (4, 2, True)
    assert dydit("report", out, "--out", tmp_path / "report.html").exit_code == 0
    assert "taylorseer:3:1" in (tmp_path / "report.html").read_text()
    for option, message in (("--card", "tells of the checkpoint as it is"), ("--width-only", "counts heads and groups alone")):
        refused = dydit("profile", dynamic, *TAYLOR, option, "--out", tmp_path / "no", *QUICK)
        assert (refused.exit_code, refused.stderr) == (2, f"error: {option} {message}; leave --cache out\n")


def test_bench_with_a_cache(static: Path, tmp_path: Path) -> None:
    quick = ["--batch", 2, "--steps", 6, "--repeats", 1, "--device", "cpu", *TAYLOR]
    figure = tmp_path / "time.svg"
    result = dydit("bench", static, *quick, "--json", "--figure", figure)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["cache"]["cache"], set(values["seconds"]), values["subject"]) == (
        "taylorseer:3:1", {"static", "cached"}, "cached",
    )  # fmt: skip
    assert 0 < values["flops_ratio"] < 0.6
    assert "cached" in figure.read_text()
    kept = "cache taylorseer:3:1: 3 of 6 steps are computed; keeps 2 of the outputs of 6 attentions and MLPs, 0.0369 MB for 2"
    assert result.stderr.startswith(f"{kept} samples at once\n")
    refused = dydit("bench", static, *quick, "--plan-memory", "0.00001")
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "cache taylorseer:3:1: keeps 0.0369 MB of 2 samples at once, and has 0.01 MB; lower the batch" in refused.stderr
    shown = " ".join(dydit("bench", static, *quick).stdout.split())
    assert "cache taylorseer:3:1 at sublayers; FLOPs ratio" in shown
    assert "distinct sets" not in shown


@pytest.mark.parametrize("form", [["--npz"], []], ids=["npz", "pictures"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cache fora:1", "cache fora:1: an interval of 1 computes every step; give 2 or more, or --cache none"),
        ("--cache foar:3", "cache foar:3: write none or fora:INTERVAL or taylorseer:INTERVAL:ORDER, for instance fora:3"),
        (
            "--cache taylorseer:4:3",
            "cache taylorseer:4:3: order 3 needs 4 computed steps, and 3 of 6 are; lower the order or the interval",
        ),
        (
            "--cache fora:3 --cache-first 5 --cache-last 2",
            "cache-first 5 and cache-last 2: the run has 6 steps, and no more can be computed; lower it",
        ),
        ("--cache-first 5", "cache-first 5 is for a cache; choose one with --cache, or leave it out"),
        ("--cache fora:3 --cache-first 0", "cache-first 0; it must be 1 or more"),
        (
            "--cache fora:3 --plan-memory 0.000001",
            "cache fora:3: keeps 0.0369 MB of 4 samples at once, and has 0.001 MB; lower the batch or raise --plan-memory, or "
            "choose --cache-at model",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    static: Path, tmp_path: Path, arguments: str, message: str, form: list[str]
) -> None:
    out = tmp_path / "out"
    result = dydit("sample", static, *arguments.split(), "--num", 2, "--out", out, *form, *QUICK)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")
    assert not out.exists()


def test_reuse_of_skipped_outputs(dynamic: Path, static: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample = ["sample", dynamic, "--num", 2, "--npz", "--out", out, *QUICK]
    first = dydit(*sample, "--reuse-skipped")
    assert first.exit_code == 0, first.output
    assert "reuse-skipped: keeps the last outputs of 3 MLPs, 0.0184 MB for 4 samples at once" in first.stderr
    record = json.loads((out / "samples.json").read_text())
    assert (record["cache"], record["reuse_skipped"]) == (None, True)
    refused = dydit(*sample)
    assert "holds samples with reuse_skipped true, and now it is null" in refused.stderr
    timed = dydit("bench", dynamic, "--batch", 2, "--steps", 2, "--repeats", 1, "--device", "cpu", "--reuse-skipped")
    assert "skipped outputs reused; FLOPs ratio" in " ".join(timed.stdout.split()), timed.output
    for command, more in (("sample", ["--out", tmp_path / "no"]), ("evaluate", ["--features", "digits"]), ("bench", [])):
        result = dydit(command, static, "--reuse-skipped", *more, *QUICK)
        message = "error: reuse-skipped: a static model has no tokens that skip an MLP; leave it out\n"
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", message)
    front = [
        "--steps",
        "3",
        "--cache",
        "reuse,fora:2+reuse",
        "--reference-steps",
        3,
        "--images",
        2,
        "--no-time",
        "--device",
        "cpu",
    ]
    done = dydit("frontier", static, dynamic, *front, "--json", "--out", tmp_path / "front")
    assert done.exit_code == 0, done.output
    mixes = {(mix["checkpoint"], mix["cache"]) for mix in json.loads(done.stdout)["mixes"]}
    assert mixes == {("dynamic", "reuse"), ("dynamic", "fora:2+reuse")}


def test_adaptive_steps_are_refused(tmp_path: Path) -> None:
    from dydit_cli.model.families import build_model

    write(Checkpoint.of(randomize(build_model(FAMILIES["sit"])), []), tmp_path / "sit")
    for command in ("sample", "profile"):
        adaptive = ["--sampler", "dopri5", "--cache", "fora:3", "--device", "cpu"]
        result = dydit(command, tmp_path / "sit", *adaptive, "--out", tmp_path / "out")
        message = "error: cache fora:3: sampler dopri5 chooses its own steps; choose one of fixed steps\n"
        assert (result.exit_code, result.stderr) == (2, message)
        assert not (tmp_path / "out").exists()

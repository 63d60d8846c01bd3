"""Benchmarks: the random model's ratio, interleaving, the breakdown's arithmetic, the commands. No test times anything."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dydit_cli.artifacts.bench import BenchResult, Spread
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.bench.bench import bench
from dydit_cli.bench.breakdown import PARTS, Stopwatch
from dydit_cli.bench.random_model import random_dydit
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.cli.app import app
from dydit_cli.diffusion.options import spaced_timesteps
from dydit_cli.errors import DyditError
from dydit_cli.figures.time import draw_breakdown
from dydit_cli.figures.visualize import save_as
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.execution import SparseModel, static_twin
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT
from dydit_cli.model.families.lightningdit import LightningDiTConfig
from dydit_cli.model.macs import flops_ratio
from dydit_cli.model.weight_cache import SliceStats
from tests.conftest import inputs

SIZES: dict[str, Any] = {"input_size": 8, "patch_size": 1, "hidden_size": 48, "depth": 4, "num_heads": 8, "num_classes": 10}
SMALL = DiTConfig(**SIZES)
GATED = LightningDiTConfig(**SIZES, in_channels=4, rope=False, mlp_width=132)  # groups of 17 and 16 channels


@pytest.mark.parametrize("config", [SMALL, GATED], ids=lambda config: config.family)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 1.0])
def test_a_random_model_runs_at_its_ratio(config: DiTConfig, ratio: float) -> None:
    timesteps = spaced_timesteps(50)
    model = SparseModel(random_dydit(config, ratio, timesteps))
    x, _, y = inputs(config, 2)
    found = [model(x, torch.full((2,), t), y, return_routing=True)[1] for t in timesteps]
    ratios = torch.stack([flops_ratio(routing, config).mean() for routing in found])
    assert ratios.mean().item() == pytest.approx(ratio, abs=0.06)
    if ratio < 1:
        assert len({routing.heads.sum().item() for routing in found}) > 5


def test_a_ratio_below_the_always_on_head_is_refused() -> None:
    with pytest.raises(DyditError, match=r"FLOPs ratio 0.1: with 8 heads, one of them always on, it must be over 0.125"):
        random_dydit(SMALL, 0.1, [0])


def test_the_static_twin_is_the_complete_model(any_dynamic: DynamicBackbone) -> None:
    x, t, y = inputs(any_dynamic.config)
    with torch.no_grad():
        assert torch.equal(static_twin(any_dynamic)(x, t, y), any_dynamic(x, t, y, complete=True))


def test_a_part_inside_another_is_taken_off_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("dydit_cli.bench.breakdown.time.perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    with watch.region("outer"), watch.region("inner"):
        pass
    assert watch.seconds == {"outer": 1.0 + 4.0, "inner": 2.0}


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_measured_steps_are_spread_over_the_schedule() -> None:
    assert BenchSettings(steps=50, measured=3).measured_of(spaced_timesteps(50)) == [999, 510, 0]
    assert BenchSettings(steps=2, measured=10).measured_of([999, 0]) == [999, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 0}, "batch 0; it must be 1 or more"),
        ({"repeats": 0}, "repeats 0; it must be 1 or more"),
        ({"dtype": "fp8"}, "no dtype 'fp8'; choose one of fp32, bf16, fp16"),
        ({"steps": 1001}, "ask for 1 to 1000"),
    ],
)
def test_settings_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(DyditError, match=message):
        BenchSettings(**values)  # type: ignore[arg-type]


def test_bench_of_a_checkpoint(tmp_path: Path, tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    settings = BenchSettings(batch=2, steps=4, measured=2, repeats=2)
    work: list[int] = []
    result = bench(tmp_path / "dynamic", settings=settings, device="cpu", on_work=lambda amount, note: work.append(amount))
    assert set(result.seconds) == {"static", "masked", "sparse"}
    assert sum(work) == 3 * (1 + 2 * 2)
    assert tuple(result.parts) == PARTS
    values = result.to_dict()
    (tmp_path / "bench.json").write_text(json.dumps(values))
    assert BenchResult.read(tmp_path / "bench.json") == result
    assert values["realised_efficiency"] == pytest.approx(values["speedup"] * values["flops_ratio"])
    write(Checkpoint.of(tiny_static, []), tmp_path / "static")
    with pytest.raises(DyditError, match="is a static model; convert it first: dydit convert"):
        bench(tmp_path / "static", settings=settings, device="cpu")


def test_bench_command(tmp_path: Path, tiny_dynamic: DyDiT) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    quick = ["--batch", "2", "--steps", "4", "--measure", "2", "--repeats", "2", "--device", "cpu"]
    figure = tmp_path / "time.svg"
    result = CliRunner().invoke(app, ["bench", str(tmp_path / "dynamic"), *quick, "--json", "--figure", str(figure)])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert {"speedup", "flops_ratio", "realised_efficiency"} <= values.keys()
    assert figure.read_bytes().startswith(b"<?xml")
    text = CliRunner().invoke(app, ["bench", str(tmp_path / "dynamic"), *quick, "--access", "copies"], env={"COLUMNS": "80"})
    assert "realised efficiency" in text.stdout
    assert "gather and scatter" in text.stdout
    again = CliRunner().invoke(app, ["bench", str(tmp_path / "dynamic"), *quick, "--figure", str(figure)])
    assert (again.exit_code, "already exists" in again.stderr) == (2, True)


def test_a_trace_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["bench", "--trace", str(tmp_path / "file" / "trace.json")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"cannot be written: {tmp_path / 'file'} is a file; choose another place" in result.stderr


@pytest.mark.parametrize("subject", ["sparse", "tome"])
def test_a_trace_has_every_step_of_both_executions(tmp_path: Path, tiny_dynamic: DyDiT, tiny_static: DiT, subject: str) -> None:
    write(Checkpoint.of(tiny_dynamic if subject == "sparse" else tiny_static, []), tmp_path / "model")
    quick = ["--batch", "2", "--steps", "4", "--measure", "2", "--repeats", "1", "--no-masked", "--device", "cpu"]
    command = ["bench", str(tmp_path / "model"), *quick, "--trace", str(tmp_path / "trace.json")]
    command += ["--tome", "0.5"] if subject == "tome" else []
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    spans = [event for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if event.get("dur")]
    names = Counter(span["name"] for span in spans)
    blocks = tiny_static.config.depth
    assert (names["static"], names[subject], names["plan"], names["t = 999"], names["t = 0"]) == (1, 1, 2, 2, 2)
    assert names["attention"] >= 2 * 2 * blocks
    assert names["aten::addmm"]
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'trace.json'}: already exists; choose another name or replace it with --force" in again.stderr


@pytest.mark.parametrize("sparse", [0.1, 1.0, 50.0])
def test_the_breakdown_is_drawn_whoever_is_faster(tmp_path: Path, sparse: float) -> None:
    """The test run's warnings are errors, and a figure whose text leaves its axes warns."""
    seconds = {"static": [1.5, 1.6], "sparse": [sparse + 0.1] * 2}
    parts = {"attention": {"static": 1.0, "sparse": sparse}, "rest": {"static": 0.5, "sparse": 0.1}}
    result = BenchResult.of(
        "DiT-S/2", BenchSettings(), torch.device("cpu"), seconds, "sparse", 0.5, slices=SliceStats(), peaks={}, parts=parts
    )
    save_as(lambda: draw_breakdown(result), tmp_path / "time.png")
    assert (tmp_path / "time.png").stat().st_size > 10_000

"""A small SiT through every command: timesteps that are no whole numbers, and noise at the other end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dydit_cli.artifacts.profile import Profile
from dydit_cli.artifacts.samples import SOLVED
from dydit_cli.checkpoint.read import read
from tests.processes import dydit

CPU = ["--device", "cpu", "--json"]
SIZES = ("family=sit", "input_size=8", "patch_size=4", "hidden_size=24", "depth=2", "num_heads=3")


def figures(*arguments: object) -> dict[str, Any]:
    result = dydit(*arguments)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def refused(*arguments: object) -> str:
    result = dydit(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    return result.stderr


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """static -> converted -> tuned -> profile and losses, made by the commands themselves."""
    room = tmp_path_factory.mktemp("flow")
    sizes = [part for size in SIZES for part in ("--set", f"model.{size}")]
    drawn = ["--set", "train.timestep_draw=lognormal", "--set", "train.cosine_weight=0.5", "--set", "train.batch_size=4"]
    figures("pretrain", "digits/pretrain", "--steps", 2, "--out", room / "static", *sizes, *drawn, *CPU)
    figures("convert", room / "static", room / "converted", "--json")
    tuning = ["--set", "routing.start=importance", "--set", "train.min_snr=5", "--set", "calibration.steps=3", "--calibrate"]
    few = ["--flops-ratio", 0.6, "--steps", 2, "--batch-size", 4]
    figures("finetune", room / "converted", *few, *tuning, "--out", room / "tuned", *CPU)
    few = ["--sampler", "heun", "--steps", 4, "--images", 3, "--batch", 2, "--time"]
    figures("profile", room / "tuned", *few, "--out", room / "profile", *CPU)
    few = ["--timesteps", 5, "--images", 3, "--map-noises", 1, "--map-images", 2]
    figures("losses", room / "tuned", room / "static", *few, "--out", room / "losses", *CPU)
    return room


def test_training_records_what_it_trained(flow: Path) -> None:
    lines = [json.loads(line) for line in (flow / "static" / "metrics.jsonl").read_text().splitlines()]
    assert [line["vb"] for line in lines] == [0, 0]
    for line in lines:
        assert line["loss"] == pytest.approx(line["mse"] + 0.5 * line["cosine_loss"])
    recipe = json.loads((flow / "tuned" / "recipe.json").read_text())
    assert (recipe["calibration"]["sampler"], recipe["calibration"]["cfg_channels"]) == ("euler", "3")
    assert read(flow / "tuned").config.kind == "dysit"


@pytest.mark.parametrize(
    ("sampler", "kind", "calls", "own"),
    [
        ("euler", "ODE", 3, {"time_shift": 0.3}),
        ("heun", "ODE", 6, {}),
        ("euler-maruyama", "SDE", 3, {"sde_form": "linear", "sde_norm": 0.5, "last_step": "mean"}),
        ("heun-sde", "SDE", 5, {"sde_form": "sigma", "sde_norm": 1.0, "last_step": "tweedie"}),
    ],
)
def test_every_sampler_says_what_it_solved(
    flow: Path, tmp_path: Path, sampler: str, kind: str, calls: int, own: dict[str, Any]
) -> None:
    typed = [part for name, value in own.items() for part in (f"--{name.replace('_', '-')}", value)]
    drawn = figures(
        "sample", flow / "tuned", "--sampler", sampler, "--steps", 3, *typed, "--num", 2, "--out", tmp_path / "a", *CPU
    )
    assert {name: drawn[name] for name in SOLVED if name in drawn} == {
        "kind": kind, "solver": sampler, "model_calls": calls, **own,
    }  # fmt: skip
    assert (drawn["steps"], drawn["cfg_interval"], drawn["spacing"]) == (3, [0.0, 1.0], None)
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["model_calls"] == calls


def test_an_image_depends_on_its_index_alone(flow: Path, tmp_path: Path) -> None:
    """In a resumed array too; and the interval of guidance is in the model's own t."""
    common = [
        "--npz",
        "--sampler",
        "euler-maruyama",
        "--steps",
        3,
        "--cfg-interval",
        "0.4,1",
        "--shard-size",
        2,
        "--batch",
        1,
        *CPU,
    ]
    figures("sample", flow / "tuned", "--num", 3, *common, "--out", tmp_path / "grown")
    again = figures("sample", flow / "tuned", "--num", 5, *common, "--out", tmp_path / "grown")
    assert (again["drawn"], again["cfg_interval"]) == (2, [0.4, 1])
    figures("sample", flow / "tuned", "--num", 5, *common, "--out", tmp_path / "whole")
    assert (tmp_path / "grown" / "samples.npz").read_bytes() == (tmp_path / "whole" / "samples.npz").read_bytes()


def test_a_solver_that_chooses_its_timesteps(flow: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed: pip install 'dydit[ode]'")
    drawn = figures("sample", flow / "tuned", "--sampler", "dopri5", "--num", 2, "--out", tmp_path / "a", *CPU)
    assert (drawn["kind"], drawn["steps"], drawn["model_calls"]) == ("ODE", None, None)
    profiled = figures("profile", flow / "tuned", "--sampler", "dopri5", "--images", 2, "--out", tmp_path / "p", *CPU)
    assert profiled["counters_agree"]  # whose widths were planned as they came
    timesteps = Profile.read(tmp_path / "p").record.timesteps
    assert profiled["model_calls"] == len(timesteps) > 6
    assert (timesteps == timesteps.astype(np.float32)).all()
    batches = ["--images", 3, "--batch", 2, "--out", tmp_path / "no"]
    assert "dopri5 chooses other timesteps for every batch" in refused(
        "profile", flow / "tuned", "--sampler", "dopri5", *batches
    )


def test_without_its_library_a_sampler_says_what_to_install(
    flow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dydit_cli.diffusion.solvers.find_spec", lambda name: None)
    said = refused("sample", flow / "tuned", "--sampler", "dopri5", "--out", tmp_path / "no")
    assert said == "error: sampler dopri5 needs torchdiffeq: pip install 'dydit[ode]'\n"
    assert not (tmp_path / "no").exists()


def test_a_profile_of_heun_has_a_row_a_call(flow: Path) -> None:
    profile = Profile.read(flow / "profile")
    table = profile.table
    assert table["timestep"].to_list() == [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]
    assert profile.phases["phase"].to_list() == ["0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1"]
    assert profile.phases["steps"].to_list() == [1, 2, 2, 3]
    assert (table["static_seconds"] > 0).all()
    assert profile.summary["counters_agree"]
    assert profile.summary["forwards_per_image"] == 16


def test_figures_say_which_way_t_runs(flow: Path, tmp_path: Path) -> None:
    for source, names in (("profile", ("architecture", "flops", "tokens")), ("losses", ("loss-gap", "loss-maps"))):
        for name in names:
            done = dydit("visualize", flow / source, "--figure", name, "--out", tmp_path / f"{name}.svg", "--data")
            assert done.exit_code == 0, done.output
    for name in ("architecture", "flops", "loss-gap"):
        assert "timestep t (0: pure noise, 1: data; sampling runs left to right)" in (tmp_path / f"{name}.svg").read_text()
    assert "mse_of_the_velocity" in pd.read_csv(tmp_path / "loss-gap.csv").columns
    summary = json.loads((flow / "losses" / "losses.json").read_text())
    assert summary["loss"] == "mean squared error of the predicted velocity over channels and pixels"
    assert summary["map_timesteps"] == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.9, 0.98])


@pytest.mark.parametrize("method", ["magnitude", "taylor", "diff"])
def test_pruning_measures_the_flow_loss(flow: Path, tmp_path: Path, method: str) -> None:
    few = [] if method == "magnitude" else ["--batches", 1]
    pruned = figures("prune", flow / "static", tmp_path / "pruned", "--keep", 0.5, "--method", method, *few, *CPU)
    assert pruned["method"] == method
    assert read(tmp_path / "pruned").config.kind == "sit"


def test_evaluation_bench_and_report(flow: Path, tmp_path: Path) -> None:
    digits = ["--features", "digits", "--reference", "digits", *CPU]
    evaluated = figures("evaluate", flow / "tuned", "--sampler", "heun-sde", "--steps", 3, "--num", 2, *digits)
    protocol = evaluated["protocol"]
    assert [protocol[name] for name in ("kind", "solver", "steps", "model_calls")] == ["SDE", "heun-sde", 3, 5]
    timed = figures("bench", flow / "tuned", "--batch", 2, "--steps", 3, "--repeats", 1, *CPU)
    (tmp_path / "bench.json").write_text(json.dumps(timed))
    figures("profile", flow / "tuned", "--width-only", "--out", tmp_path / "width", *CPU[2:])
    figures("sample", flow / "tuned", "--steps", 3, "--num", 2, "--out", tmp_path / "samples", *CPU)
    sources = [
        flow / "profile",
        flow / "losses",
        flow / "tuned",
        tmp_path / "width",
        tmp_path / "samples",
        tmp_path / "bench.json",
    ]
    done = dydit("report", *sources, "--out", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text()
    for words in ("MSE of the velocity", "0.75 to 1", "equation", "ODE", "model calls", "of the predicted velocity"):
        assert words in page
    assert "999 to 750" not in page


def test_what_does_not_fit_is_one_line(flow: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "no"]
    five = "euler, heun, dopri5, euler-maruyama, heun-sde"
    for arguments, words in (
        (["--sampler", "ddim"], f"sampler ddim is not for SiT-2x24/4, whose process is flow; choose one of {five}"),
        (["--spacing", "leading"], "spacing leading is not for sampler euler, but for another process; leave it out"),
        (["--sde-form", "linear"], "sde_form linear is not for sampler euler, but for euler-maruyama, heun-sde; leave it out"),
        (["--sampler", "dopri5", "--steps", 9], "9 steps: sampler dopri5 chooses its own; leave the number out"),
        (["--cfg-interval", "0.5,2"], "guidance interval 0.5 to 2; give two timesteps from 0 to 1, the lower first"),
        (["--sampler", "euler-maruyama", "--steps", 1], "1 sampling steps: sampler euler-maruyama needs 2 or more"),
        (["--sampler", "euler-maruyama", "--sde-form", "sbdm"], "sde_form sbdm is infinite at the start of the linear path"),
        (["--time-shift", 0], "time_shift 0.0; it must be over 0"),
    ):  # fmt: skip
        assert words in refused("sample", flow / "tuned", *arguments, *out)
    assert "sampler euler is not for DiT-" in refused("sample", "digits-dit", "--sampler", "euler", *out)
    said = refused("losses", flow / "static", "digits-dit", *out)
    assert "digits-dit does not predict what static does; measure them apart" in said
    done = dydit("finetune", "digits-dit", "--steps", 1, "--set", "train.timestep_draw=lognormal", *out)
    assert done.exit_code == 2
    assert "error: timestep_draw lognormal is for flow matching, and DiT-6x96/1 is none; leave it out" in done.stderr
    assert not (tmp_path / "no").exists()

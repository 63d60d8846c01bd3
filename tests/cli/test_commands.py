"""Each command end to end on small things."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import Result

from dydit_cli.checkpoint.checkpoint import Checkpoint, with_classes
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.model.families.dit import DiT, DiTConfig
from dydit_cli.model.options import EXECUTIONS
from tests.cli.conftest import FAST
from tests.conftest import randomize
from tests.processes import dydit, start


def figures(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert isinstance(values, dict)
    return values


def test_convert_reports_its_proof(room: Path, tmp_path: Path) -> None:
    report = figures(dydit("convert", room / "static", tmp_path / "a", "--json", "--ranking", "none", "--router-bias", 9))
    assert isinstance(report["max_difference"], float)
    assert report["max_difference"] < 1e-4
    assert (report["ranking"], report["router_bias"]) == ("none", 9)
    text = dydit("convert", room / "static", tmp_path / "b").stdout
    assert "largest difference" in text
    assert "allowed: 1e-04" in text


def test_finetune_writes_a_checkpoint_metrics_and_its_recipe(room: Path) -> None:
    tuned = room / "tuned"
    assert [entry["action"] for entry in read(tuned).lineage] == ["pretrain", "convert", "finetune"]
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["target"] is not None and 0 < line["ratio"] <= 1 for line in lines)
    assert json.loads((tuned / "recipe.json").read_text())["train"]["batch_size"] == 8


def test_a_static_model_is_tuned_statically(room: Path, tmp_path: Path) -> None:
    result = dydit("finetune", room / "static", "--steps", 2, "--out", tmp_path / "control", "--json", *FAST)
    assert figures(result)["training_ratio"] is None
    assert "is a static model: tuning it as it is" in result.stderr
    assert read(tmp_path / "control").config.kind == "dit"


def test_finetune_is_deterministic_under_its_seed(room: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ["--steps", 2, "--batch-size", 8, "--seed", seed, "--out", tmp_path / name]
        assert dydit("finetune", room / "converted", *arguments, *FAST).exit_code == 0
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_pretrain_makes_a_static_model(tmp_path: Path) -> None:
    small = [f"model.{key}={value}" for key, value in (("hidden_size", 16), ("depth", 1), ("num_heads", 2), ("patch_size", 2))]
    options = [part for setting in [*small, "train.batch_size=4"] for part in ("--set", setting)]
    result = dydit("pretrain", "digits/pretrain", "--steps", 2, "--out", tmp_path / "new", "--json", *options, *FAST)
    assert figures(result)["steps"] == 2
    checkpoint = read(tmp_path / "new")
    assert (checkpoint.config.kind, checkpoint.config.hidden_size) == ("dit", 16)
    assert checkpoint.lineage[0]["action"] == "pretrain"


def test_profile_writes_its_files_and_a_table(room: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (room / "profile").iterdir())
    assert names == ["blocks.csv", "images.csv", "profile.json", "routing.npz", "timesteps.csv"]
    table = pd.read_csv(room / "profile" / "timesteps.csv")
    assert table["timestep"].to_list() == [999, 500, 0]
    result = dydit("profile", room / "tuned", "--out", tmp_path / "p", "--images", 2, "--steps", 2, "--sampler", "ddpm", *FAST)
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines() if "┃" in line or "│" in line) <= 80
    for word in ("static", "dynamic", "ratio", "heads", "groups", "tokens", "999 to 750", "MAC"):
        assert word in result.stdout
    summary = figures(dydit("profile", room / "tuned", "--out", tmp_path / "q", "--images", 2, "--steps", 2, "--json", *FAST))
    for key in ("macs_static", "macs_dynamic", "ratio", "sampler", "steps", "cfg", "images", "seed"):
        assert key in summary


def test_finetune_calibrates_when_asked(room: Path, tmp_path: Path) -> None:
    arguments = ["finetune", room / "converted", "--steps", 2, "--flops-ratio", 0.6, "--out", tmp_path / "run", *FAST]
    report = figures(dydit(*arguments, "--calibrate", "--json"))["calibration"]
    assert abs(report["ratio_after"] - 0.6) < abs(report["ratio_before"] - 0.6)
    assert read(tmp_path / "run").lineage[-1]["action"] == "calibrate"


def test_profile_of_a_static_model_says_so(room: Path, tmp_path: Path) -> None:
    result = dydit("profile", room / "static", "--out", tmp_path / "p", "--images", 1, "--steps", 2, *FAST)
    assert "a static model does everything at every timestep: its ratio is 1" in result.stdout
    assert "to the digit what the formula gives" in result.stdout


def test_profiles_of_several_checkpoints_share_a_table(room: Path, tmp_path: Path) -> None:
    several = ["profile", room / "static", room / "converted", room / "tuned", "--images", 1, "--steps", 2, "--time", *FAST]
    result = dydit(*several, "--out", tmp_path / "p")
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines() if "┃" in line or "│" in line) <= 80
    table = pd.read_csv(tmp_path / "p" / "compare.csv")
    assert table["ratio"].iloc[0] == 1
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "compare.csv", "compare.json", "converted", "static", "tuned",
    ]  # fmt: skip
    again = figures(dydit(*several, "--out", tmp_path / "p", "--force", "--json"))
    assert [summary["ratio"] for summary in again["profiles"]] == table["ratio"].to_list()


def test_published_sizes_without_a_checkpoint() -> None:
    shown = dydit("profile", "--table").stdout
    assert max(len(line) for line in shown.splitlines() if "┃" in line or "│" in line) <= 80
    for word in ("118.64", "118.69", "118.62", "DiT-S/8", "1 MAC = 1 FLOP", "norms x4"):
        assert word in shown
    assert "237.28" in dydit("profile", "--table", "--unit", "flop").stdout
    sizes = {size["model"]: size for size in figures(dydit("profile", "--table", "--json"))["sizes"]}
    assert list(sizes)[-1] == "SiT-XL/2-512"
    # what SiT's and Latte's papers count, the latter with adaLN once a frame or place where it is once a video here
    assert [round(sizes[name]["macs"] / 1e9) for name in ("SiT-XL/2", "SiT-XL/2-512", "Latte-XL/2")] == [119, 525, 1864]
    assert [sizes[name]["published_giga"] for name in ("SiT-XL/2", "SiT-XL/2-512", "Latte-XL/2")] == [119, 525, 1893]


def test_width_only_needs_no_images(room: Path, tmp_path: Path) -> None:
    result = dydit("profile", room / "tuned", "--width-only", "--out", tmp_path / "w")
    assert result.exit_code == 0
    assert len(pd.read_csv(tmp_path / "w" / "width.csv")) == 1000
    assert "all 1,000 timesteps, exact" in result.stdout
    summary = figures(dydit("profile", room / "tuned", "--width-only", "--out", tmp_path / "w", "--force", "--json"))
    assert 0 < summary["ratio_no_tokens"] < summary["ratio_all_tokens"] <= 1.1


def test_units_are_shown(room: Path, tmp_path: Path) -> None:
    arguments = ["profile", room / "tuned", "--out", tmp_path / "p", "--images", 1, "--steps", 2, "--force", *FAST]
    assert "FLOPs" not in dydit(*arguments).stdout.replace("1 FLOP of fvcore", "")
    assert "1 multiply-accumulate = 2 FLOPs" in dydit(*arguments, "--unit", "flop").stdout


def test_export_and_back(room: Path, tmp_path: Path) -> None:
    assert dydit("export", room / "tuned", tmp_path / "tuned.pt", "--format", "dydit").exit_code == 0
    report = figures(dydit("inspect", tmp_path / "tuned.pt", "--family", "dit", "--json"))
    assert report["found"] == "DyDiT weights (.pt)"
    exact = read(room / "tuned").weights
    again = read(tmp_path / "tuned.pt", LoadOptions(family="dit"))
    assert all(torch.equal(w, exact[name]) for name, w in again.weights.items())
    complete = ["--format", "diffusers", "--complete", "--any-variant", "--dtype", "bf16"]
    result = dydit("export", room / "tuned", tmp_path / "all-on", *complete)
    assert "computes the original function; code that reads" in result.stderr
    assert figures(dydit("inspect", tmp_path / "all-on", "--json"))["dtype"] == "bfloat16/float32"


def test_another_number_of_classes_keeps_the_null_row(room: Path, tmp_path: Path) -> None:
    checkpoint = read(room / "static")
    other = with_classes(checkpoint, 4, seed=0)
    table, old = (c.weights[c.config.label_table] for c in (other, checkpoint))
    assert table.shape == (5, 32)
    assert torch.equal(table[-1], old[-1])
    assert not torch.equal(table[0], old[0])
    assert other.build().config.num_classes == 4
    assert other.lineage[-1]["action"] == "re-initialise the label table"
    write(other, tmp_path / "four")
    result = dydit("finetune", tmp_path / "four", "--num-classes", 10, "--steps", 1, "--out", tmp_path / "ten", *FAST)
    assert "the label table is drawn anew for 10 classes; the null class keeps its row" in result.stderr
    assert read(tmp_path / "ten").config.num_classes == 10


def test_profile_adds_its_figures_to_the_card(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "tuned", tmp_path / "tuned")
    for images in (1, 2):
        arguments = ["--images", images, "--steps", 2, "--card", "--out", tmp_path / "p", "--force"]
        assert dydit("profile", tmp_path / "tuned", *arguments, *FAST).exit_code == 0
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert card.count("## Figures") == 1
    assert "2 images, seed 0, float32, cpu" in card
    assert "## Licence" in card


def test_what_was_found_is_said(room: Path, tmp_path: Path) -> None:
    assert dydit("export", room / "tuned", tmp_path / "tuned.pt", "--format", "dydit").exit_code == 0
    result = dydit(
        "sample", tmp_path / "tuned.pt", "--family", "dit", "--num", 1, "--steps", 1, "--out", tmp_path / "out", *FAST
    )
    found = "DyDiT weights (.pt); DiT-2x32/2; 4 heads from 3 router rows; input size 8 from 16 positions"
    assert f"tuned.pt: {found}" in result.stderr


def test_visualize_draws(room: Path, tmp_path: Path) -> None:
    result = dydit("visualize", room / "profile", "--figure", "flops", "--out", tmp_path / "f.svg")
    assert result.exit_code == 0
    assert (tmp_path / "f.svg").stat().st_size > 1000


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_sample_writes_a_grid_and_single_images(room: Path, tmp_path: Path, execution: str) -> None:
    out = tmp_path / "samples"
    arguments = ["--num", 4, "--classes", "0,7-8", "--steps", 2, "--execution", execution, "--out", out, "--json", *FAST]
    summary = figures(dydit("sample", room / "tuned", *arguments))
    assert summary["execution"] == execution
    names = sorted(path.name for path in out.iterdir())
    assert names == ["00000-class0.png", "00001-class7.png", "00002-class8.png", "00003-class0.png", "grid.png", "samples.json"]


def test_sample_is_deterministic_under_its_seed(room: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ["--num", 2, "--steps", 2, "--sampler", "ddpm", "--seed", seed, "--out", tmp_path / name]
        assert dydit("sample", room / "static", *arguments, *FAST).exit_code == 0
    grids = {name: (tmp_path / name / "grid.png").read_bytes() for name in "abc"}
    assert grids["a"] == grids["b"] != grids["c"]


def test_sample_decodes_latents_with_a_vae(tmp_path: Path) -> None:
    """A tiny AutoencoderKL that diffusers builds and saves."""
    from diffusers import AutoencoderKL

    config = DiTConfig(input_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    write(Checkpoint.of(randomize(DiT(config), scale=0.1), []), tmp_path / "latent")
    vae: Any = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(tmp_path / "vae")
    arguments = ["sample", tmp_path / "latent", "--num", 2, "--steps", 2, "--out", tmp_path / "out", *FAST]
    refused = dydit(*arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "makes latents of 4 channels; give the VAE that decodes them with --vae DIR" in refused.stderr
    assert dydit(*arguments, "--vae", tmp_path / "vae").exit_code == 0
    assert (tmp_path / "out" / "grid.png").is_file()
    bad = dydit(*arguments, "--force", "--vae", tmp_path / "latent" / "nowhere")
    assert (bad.exit_code, "not a VAE; give a diffusers AutoencoderKL folder" in bad.stderr) == (2, True)
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    whole = dydit(*arguments, "--force", "--vae", tmp_path / "pipeline")
    assert (whole.exit_code, whole.stderr.count("\n")) == (2, 1)
    assert f"pipeline: a whole pipeline; give its VAE: {tmp_path / 'pipeline' / 'vae'}" in whole.stderr


def test_inspect_tells_kind_size_and_lineage(room: Path) -> None:
    report = figures(dydit("inspect", room / "tuned", "--json"))
    assert report["kind"] == "dydit"
    assert report["tokens"] == 16
    text = dydit("inspect", room / "tuned").stdout
    for word in ("DyDiT (dynamic)", "depth 2, width 32, 4 heads", "parameters", "routers", "convert", "finetune", "not read"):
        assert word in text
    assert "all finite" in dydit("inspect", room / "tuned", "--check").stdout


def test_force_replaces(room: Path, tmp_path: Path) -> None:
    for force in ([], ["--force"]):
        assert dydit("convert", room / "static", tmp_path / "out", *force).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_what_was_learned(room: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    arguments = ["finetune", room / "converted", "--steps", 100000, "--batch-size", 8, "--out", out, *FAST]
    with start([str(argument) for argument in arguments]) as process:
        until = time.monotonic() + 60
        while not (out / "metrics.jsonl").is_file() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "interrupted, saved" in stdout
    assert "stopping after this step" in stderr
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert read(out).lineage[-1]["steps"] == len(lines)


def test_version_and_module() -> None:
    done = subprocess.run([sys.executable, "-m", "dydit_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dydit 0.")

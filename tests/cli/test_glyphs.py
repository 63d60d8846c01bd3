"""The commands on the data set `glyphs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.cli.app import app
from dydit_cli.model.families.dit import DiT
from tests.conftest import TINY, randomize

FAST = ["--device", "cpu", "--json"]


def dydit(*args: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def test_train_and_evaluate(tmp_path: Path) -> None:
    small = ("model.hidden_size=16", "model.depth=1", "model.num_heads=2", "train.batch_size=4")
    options = [part for setting in small for part in ("--set", setting)]
    assert dydit("pretrain", "glyphs/pretrain", "--steps", 2, "--out", tmp_path / "new", *options, *FAST)["steps"] == 2
    config = read(tmp_path / "new").config
    assert (config.input_size, config.in_channels, config.num_classes) == (16, 1, 62)

    # the data set's own recipe
    again = ["--steps", 2, "--set", "train.batch_size=4", "--out", tmp_path / "tuned"]
    assert dydit("finetune", tmp_path / "new", "--data", "glyphs", *again, *FAST)["steps"] == 2
    recipe = json.loads((tmp_path / "tuned" / "recipe.json").read_text())
    assert (recipe["data"], recipe["routing"]["flops_ratio"]) == ("glyphs", 0.5)
    assert [entry["data"] for entry in read(tmp_path / "tuned").lineage] == ["glyphs", "glyphs"]

    drawing = ["--features", "glyphs", "--num", 4, "--steps", 2, "--reference", "glyphs:held-out"]
    figures = dydit("evaluate", tmp_path / "tuned", *drawing, *FAST)
    assert set(figures) == {"frechet", "recognised", "precision", "recall", "protocol", "notes", "command"}
    assert figures["frechet"] > 10  # two steps teach nothing
    protocol = figures["protocol"]
    assert protocol["judge"] == "support-vector classifier of the real glyphs"
    assert (protocol["reference"], protocol["reference_images"], protocol["side"]) == ("glyphs:held-out", 2604, 16)
    assert protocol["judge_accuracy"] >= 0.98 <= protocol["features_accuracy"]


def test_a_model_is_tuned_pruned_and_measured_on_what_it_was_trained_on(tmp_path: Path) -> None:
    few = ["--set", "train.batch_size=4", "--steps", 1]
    assert dydit("convert", "glyphs-dit", tmp_path / "dynamic", "--json")["trained_on"] == "glyphs"
    dydit("finetune", tmp_path / "dynamic", "--out", tmp_path / "tuned", *few, *FAST)
    assert json.loads((tmp_path / "tuned" / "recipe.json").read_text())["data"] == "glyphs"
    pruned = dydit("prune", "glyphs-dit", tmp_path / "pruned", "--method", "taylor", "--batches", 1, *FAST)
    assert "images of glyphs" in pruned["seen"]
    found = dydit(
        "losses", tmp_path / "tuned", "--timesteps", 1, "--maps-at", 9, "--map-noises", 1, "--out", tmp_path / "l", *FAST
    )
    assert found["data"] == "glyphs"


def test_convert_and_prune_say_how_to_go_on(tmp_path: Path) -> None:
    model = randomize(DiT(TINY), scale=0.05)
    write(Checkpoint.of(model, [{"action": "pretrain", "data": "latents:gone"}]), tmp_path / "other")
    for command, ratio in (("convert", " --flops-ratio 0.5"), ("prune", "")):
        for source, more in (("glyphs-dit", ""), (tmp_path / "other", " --recipe RECIPE --data DATA")):
            said = CliRunner().invoke(app, [command, str(source), str(tmp_path / "out"), "--force"]).output
            assert f"/out{ratio}{more} --out DIR" in "".join(said.split("\n")), said
    result = CliRunner().invoke(app, ["finetune", str(tmp_path / "other"), "--out", str(tmp_path / "tuned")])
    assert result.exit_code == 2
    assert "data set latents:gone has no recipe of its own; name one with --recipe" in result.output

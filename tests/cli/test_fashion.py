"""The commands on the data set `fashion`: on noise of its size, so that its files need not be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.data.fashion import CLASSES
from dydit_cli.model.families.dit import DiT
from dydit_cli.train.recipe import read_recipe
from tests.conftest import TINY, randomize
from tests.processes import dydit

FAST = ["--device", "cpu", "--json"]


def figures(*arguments: object) -> dict[str, Any]:
    result = dydit(*arguments)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def test_train_and_evaluate(tmp_path: Path, small_fashion: None) -> None:
    small = ("model.hidden_size=16", "model.depth=1", "model.num_heads=2", "train.batch_size=4")
    options = [part for setting in small for part in ("--set", setting)]
    assert figures("pretrain", "fashion/pretrain", "--steps", 2, "--out", tmp_path / "new", *options, *FAST)["steps"] == 2
    new = read(tmp_path / "new")
    assert (new.config.input_size, new.config.in_channels, new.config.num_classes) == (28, 1, 10)
    assert new.labels == dict(enumerate(CLASSES))

    # the data set's own recipe
    again = ["--steps", 2, "--set", "train.batch_size=4", "--out", tmp_path / "tuned"]
    assert figures("finetune", tmp_path / "new", "--data", "fashion", *again, *FAST)["steps"] == 2
    recipe = json.loads((tmp_path / "tuned" / "recipe.json").read_text())
    assert (recipe["data"], recipe["routing"]["flops_ratio"]) == ("fashion", 0.5)
    assert [entry["data"] for entry in read(tmp_path / "tuned").lineage] == ["fashion", "fashion"]

    drawing = ["--features", "fashion", "--num", 4, "--steps", 2, "--reference", "fashion:held-out"]
    found = figures("evaluate", tmp_path / "tuned", *drawing, *FAST)
    assert set(found) == {"frechet", "recognised", "precision", "recall", "protocol", "notes", "command"}
    protocol = found["protocol"]
    assert protocol["judge"] == "the head of the network of the features"
    assert (protocol["reference"], protocol["reference_images"], protocol["side"]) == ("fashion:held-out", 5, 28)
    assert protocol["judge_accuracy"] == protocol["features_accuracy"] == 0.9154


def test_a_model_is_tuned_pruned_and_measured_on_what_it_was_trained_on(tmp_path: Path, small_fashion: None) -> None:
    few = ["--set", "train.batch_size=4", "--set", "routing.calibrate=false", "--steps", 1]
    assert figures("convert", "fashion-dit", tmp_path / "dynamic", "--json")["trained_on"] == "fashion"
    figures("finetune", tmp_path / "dynamic", "--out", tmp_path / "tuned", *few, *FAST)
    recipe = json.loads((tmp_path / "tuned" / "recipe.json").read_text())
    shipped = read_recipe("fashion/finetune").train
    assert (recipe["data"], recipe["train"]["lr"]) == ("fashion", shipped.lr)
    assert recipe["train"]["teacher_weight"] == shipped.teacher_weight
    pruned = figures("prune", "fashion-dit", tmp_path / "pruned", "--method", "taylor", "--batches", 1, *FAST)
    assert "images of fashion" in pruned["seen"]
    found = figures(
        "losses", tmp_path / "tuned", "--timesteps", 1, "--maps-at", 9, "--map-noises", 1, "--out", tmp_path / "l", *FAST
    )
    assert (found["data"], found["held_out"], found["data_images"]) == ("fashion", True, 5)


def test_convert_and_prune_say_how_to_go_on(tmp_path: Path) -> None:
    model = randomize(DiT(TINY), scale=0.05)
    write(Checkpoint.of(model, [{"action": "pretrain", "data": "latents:gone"}]), tmp_path / "other")
    for command, ratio in (("convert", " --flops-ratio 0.5"), ("prune", "")):
        for source, more in (("fashion-dit", ""), (tmp_path / "other", " --recipe RECIPE --data DATA")):
            said = dydit(command, source, tmp_path / "out", "--force").output
            assert f"/out{ratio}{more} --out DIR" in "".join(said.split("\n")), said
    result = dydit("finetune", tmp_path / "other", "--out", tmp_path / "tuned")
    assert result.exit_code == 2
    assert "data set latents:gone has no recipe of its own; name one with --recipe" in result.output

"""A data set that is registered in one place, and the commands that take it by its name; what its classes are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.data.dataset import ImageData
from dydit_cli.data.load import default_data, default_recipe, load_data
from dydit_cli.data.registry import SOURCES, SupportVectors, dataset
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.classifier import classifier
from dydit_cli.evaluate.images import real_images
from dydit_cli.model.families.dit import DiT, DiTConfig
from tests.conftest import randomize
from tests.datasets import class_folders
from tests.processes import dydit

FAST = ["--device", "cpu", "--json"]
NAMES = ("bright", "dark, black", "grey")
CONFIG = DiTConfig(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=3)


@pytest.fixture
def toy() -> Iterator[str]:
    """Three classes of brightness; 24 pictures to train on, 9 held out."""

    @dataset("toy", classifier=SupportVectors(c=1.0, gamma=0.1))
    def load_toy(held_out: bool = False) -> ImageData:
        count = 9 if held_out else 24
        labels = torch.arange(count) % 3
        noise = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(count))
        images = torch.tensor([0.8, -0.8, 0.0])[labels][:, None, None, None] + noise / 20
        return ImageData("toy", images.clamp(-1, 1), labels, 3, NAMES)

    yield "toy"
    del SOURCES["toy"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(Checkpoint.of(randomize(DiT(CONFIG), scale=0.1), []), tmp_path / "static")
    return tmp_path / "static"


def figures(*arguments: object) -> dict[str, Any]:
    result = dydit(*arguments, *FAST)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def test_every_command_takes_a_registered_set(toy: str, model: Path, tmp_path: Path) -> None:
    few = ["--recipe", "digits/finetune", "--data", toy, "--steps", 1, "--batch-size", 4]
    figures("finetune", model, "--out", tmp_path / "tuned", *few)
    assert read(tmp_path / "tuned").labels == dict(enumerate(NAMES))
    shape = [f"model.{name}={getattr(CONFIG, name)}" for name in ("input_size", "patch_size", "hidden_size", "depth")]
    settings = [f"data={toy}", *shape, "model.num_heads=2", "model.num_classes=3", "train.batch_size=4"]
    new = [part for setting in settings for part in ("--set", setting)]
    figures("pretrain", "digits/pretrain", "--steps", 1, "--out", tmp_path / "new", *new)
    assert read(tmp_path / "new").trained_on == toy
    pruned = figures("prune", tmp_path / "new", tmp_path / "pruned", "--method", "taylor", "--batches", 1)
    assert "images of toy" in pruned["seen"]
    quick = ["--timesteps", 1, "--maps-at", 9, "--map-noises", 1, "--map-images", 1]
    losses = figures("losses", tmp_path / "tuned", "--out", tmp_path / "losses", *quick)
    assert (losses["data"], losses["held_out"], losses["data_images"]) == (toy, True, 9)
    found = figures("evaluate", "toy:held-out", "--reference", toy, "--features", "digits")
    assert (found["protocol"]["images"], found["protocol"]["reference_images"]) == (9, 24)
    assert classifier(toy).accuracy == 1
    again = dydit("finetune", tmp_path / "tuned", "--out", tmp_path / "more")
    assert "data set toy has no recipe of its own; name one with --recipe" in again.stderr


def test_classes_are_chosen_by_name(toy: str, model: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled"
    write(replace(read(model), labels=dict(enumerate(NAMES))), labelled)
    one = ["--num", 2, "--steps", 1]
    by_name = figures("sample", labelled, "--classes", "black,0", "--out", tmp_path / "named", *one)
    by_number = figures("sample", labelled, "--classes", "1,0", "--out", tmp_path / "numbered", *one)
    assert by_name["classes"] == by_number["classes"] == [1, 0]
    assert {path.name for path in (tmp_path / "named").iterdir()} >= {"00000-class1.png", "00001-class0.png"}
    evaluated = figures("evaluate", labelled, "--classes", "Grey", "--reference", toy, "--features", "digits", *one)
    assert evaluated["protocol"]["classes"] == "2"
    profiled = figures("profile", labelled, "--classes", "bright,grey", "--images", 3, "--steps", 1, "--out", tmp_path / "p")
    assert profiled["classes"] == [0, 2]
    assert "classes" not in figures("profile", labelled, "--images", 1, "--steps", 1, "--out", tmp_path / "all")
    for source, text, message in (
        (labelled, "drak", "--classes drak: no class has the name 'drak'; did you mean 'dark'?"),
        (model, "dark", "--classes dark: 'dark' is no class number; write for instance 0,1,5-7"),
    ):
        refused = dydit("sample", source, "--classes", text, "--out", tmp_path / "no", "--device", "cpu")
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert message in refused.stderr


def test_a_folders_class_names_stay_with_the_model_and_older_ones_are_kept(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "images")
    pixels = replace(CONFIG, in_channels=3, input_size=8)
    write(Checkpoint.of(randomize(DiT(pixels), scale=0.1), []), tmp_path / "static")
    few = ["--recipe", "imagenet/base", "--data", f"imagefolder:{folder}", "--steps", 1, "--batch-size", 4]
    figures("finetune", tmp_path / "static", "--out", tmp_path / "tuned", *few)
    names = {0: "a10", 1: "a2", 2: "b"}
    assert read(tmp_path / "tuned").labels == names
    shown = json.loads(dydit("inspect", tmp_path / "tuned", "--json").stdout)
    assert list(shown["labels"].values()) == list(names.values())
    known = {0: "goldfish, Carassius auratus", 1: "tench", 2: "crane"}
    write(replace(read(tmp_path / "static"), labels=known), tmp_path / "named")
    figures("finetune", tmp_path / "named", "--out", tmp_path / "more", *few)
    assert read(tmp_path / "more").labels == known
    figures("finetune", tmp_path / "named", "--num-classes", 3, "--out", tmp_path / "anew", *few)
    assert read(tmp_path / "anew").labels == names


def test_what_is_asked_of_a_set_that_it_has_not(tmp_path: Path) -> None:
    write(Checkpoint.of(randomize(DiT(replace(CONFIG, in_channels=4)), scale=0.1), []), tmp_path / "latent")
    for command in (["losses", tmp_path / "latent", "--out"], ["prune", tmp_path / "latent", "--method", "taylor"]):
        refused = dydit(*command, tmp_path / "no", "--device", "cpu")
        assert refused.exit_code == 2
        assert "the model has no record of what it was trained on; name data with --data: digits, fashion, " in refused.stderr
    with pytest.raises(DyditError, match="data set fashion has no classifier"):
        classifier("fashion")
    with pytest.raises(
        DyditError, match=r"imagefolder:x is cropped to its model's size, and there is no model; give the folder"
    ):
        real_images("imagefolder:x")
    with pytest.raises(DyditError, match="no data set 'nothing:x'; choose one of"):
        real_images("nothing:x", held_out=True)
    with pytest.raises(ValueError, match="there is a data set 'digits' already"):
        dataset("digits")(load_data)  # type: ignore[type-var]


def test_recipes_and_data_by_default() -> None:
    assert default_recipe("fashion") == "fashion/finetune"
    assert default_recipe("latents:x") is None
    assert default_recipe("imagenet") is None  # a folder of recipes, and no data set
    digits = replace(CONFIG, input_size=8, num_classes=10)
    assert [default_data(trained_on, digits) for trained_on in (None, "fashion")] == ["digits", "fashion"]

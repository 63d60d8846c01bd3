"""The bundled model is as good as its card says, and the demo runs to its table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dydit_cli
from dydit_cli.bundled import MODELS, WEIGHTS
from dydit_cli.checkpoint.read import read
from dydit_cli.cli.app import app
from dydit_cli.data.digits import load_digits_split
from dydit_cli.diffusion.sampler import SamplerSettings
from dydit_cli.evaluate.classifier import classifier as classifier_of
from dydit_cli.evaluate.classifier import classify_samples
from dydit_cli.model.dit import DiT
from dydit_cli.studies.demo import demo
from dydit_cli.train.recipe import read_recipe, with_settings, with_steps


def test_the_classifier_is_right_on_held_out_digits() -> None:
    classifier = classifier_of("digits")
    held_out = load_digits_split(held_out=True)
    assert classifier.accuracy >= 0.97
    assert classifier.class_accuracy(held_out.images, held_out.labels) == classifier.accuracy
    assert classifier.class_accuracy(held_out.images, (held_out.labels + 1) % 10) < 0.05


@pytest.mark.parametrize("data", [name.removesuffix("-dit") for name in MODELS])
def test_the_bundled_model_is_recognised(data: str) -> None:
    """The card's figure is for 1,000 samples and 50 steps; one of each class and 12 are enough to see that it is whole."""
    model = dydit_cli.load(f"{data}-dit")
    assert isinstance(model, DiT)
    classified = classify_samples(model, images=62, data=data, settings=SamplerSettings(steps=12))
    assert classified.class_accuracy >= 0.95


@pytest.mark.parametrize("data", [name.removesuffix("-dit") for name in MODELS])
def test_the_card_says_what_the_model_is(data: str) -> None:
    name = f"{data}-dit"
    folder, checkpoint = WEIGHTS / name, read(name)
    card, pretraining = (folder / "README.md").read_text(), checkpoint.lineage[0]
    assert f"{pretraining['steps']:,} steps" in card
    assert f"{checkpoint.build().num_parameters():,} parameters" in card
    share = re.search(r"(\d+\.\d) % of 1,000 samples", card)
    assert share
    assert float(share.group(1)) >= 95
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000


def test_demo_runs_to_its_table(tmp_path: Path) -> None:
    recipe = with_settings(with_steps(read_recipe("digits/finetune"), 2), {"train.batch_size": 8})
    result = demo(tmp_path / "demo", images=4, settings=SamplerSettings(steps=2), recipe=recipe, device="cpu")
    written = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert written == result
    for model in ("static", "dynamic"):
        assert set(written[model]) == {"macs", "recognised", "seconds"}
    assert written["ratio"] == written["dynamic"]["macs"] / written["static"]["macs"]
    assert written["finetune_share"] <= 0.03
    pictures = ("architecture.png", "tokens.png", "flops.png", "samples.png")
    for name in (*pictures, "converted", "finetuned", "profile", "report.html"):
        assert (tmp_path / "demo" / name).exists()


def test_the_demos_recipe_stays_under_three_percent_of_pretraining() -> None:
    assert read_recipe("digits/finetune").train.steps <= 0.03 * read("digits-dit").lineage[0]["steps"]


def test_demo_is_a_command() -> None:
    assert "--images" in CliRunner().invoke(app, ["demo", "--help"]).output

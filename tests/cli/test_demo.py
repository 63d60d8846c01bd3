"""The bundled model is as good as its card says, and the demo runs to its table."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import dydit_cli
from dydit_cli.artifacts.profile import Profile
from dydit_cli.bundled import MODELS, WEIGHTS
from dydit_cli.checkpoint.read import read
from dydit_cli.cli.app import app
from dydit_cli.data.digits import load_digits_split
from dydit_cli.diffusion.generate import cycle_labels
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.classifier import classifier as classifier_of
from dydit_cli.evaluate.registry import FEATURES
from dydit_cli.model.families.dit import DiT
from dydit_cli.pixels import to_pixels
from dydit_cli.sampling.sampler import run_sampler
from dydit_cli.studies import demo as demo_module
from dydit_cli.studies.demo import demo
from dydit_cli.train.recipe import read_recipe, with_settings, with_steps
from dydit_cli.train.run_folder import RunFolder
from tests.json_keys import check_keys


def test_the_classifier_is_right_on_held_out_digits() -> None:
    classifier = classifier_of("digits")
    held_out = load_digits_split(held_out=True)
    assert classifier.accuracy >= 0.97
    assert classifier.class_accuracy(held_out.images, held_out.labels) == classifier.accuracy
    assert classifier.class_accuracy(held_out.images, (held_out.labels + 1) % 10) < 0.05


# the least share of samples taken for the class asked for, by data set; of real pictures of clothes it is 91.5 %
RECOGNISED = {"digits": 0.95, "fashion": 0.85}


@pytest.mark.parametrize("name", MODELS)
def test_the_bundled_model_is_recognised(name: str) -> None:
    """By the network that its data set's features come from.

    The card's figure is for 1,000 samples and more steps; six of each class and 12 are enough to see that it is whole.
    """
    model, data = dydit_cli.load(name), name.partition("-")[0]
    assert isinstance(model, DiT)
    labels = cycle_labels(list(range(10)), 60)
    samples = run_sampler(model, labels, SamplerSettings(steps=12), 0, 64, 0, None)
    probabilities = FEATURES[data].open(None, torch.device("cpu")).extract(to_pixels(samples.numpy())).probabilities
    assert probabilities is not None
    assert np.mean(probabilities.argmax(axis=1) == labels.numpy()) >= RECOGNISED[data]


@pytest.mark.parametrize("name", MODELS)
def test_the_card_says_what_the_model_is(name: str) -> None:
    folder, checkpoint = WEIGHTS / name, read(name)
    card, pretraining = (folder / "README.md").read_text(), checkpoint.lineage[0]
    assert f"{pretraining['steps']:,} steps" in card
    assert f"{checkpoint.build().num_parameters():,} parameters" in card
    share = re.search(r"(\d+\.\d) % of 1,000 samples", card)
    assert share
    assert float(share.group(1)) >= 100 * RECOGNISED[name.partition("-")[0]]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000


SETTINGS = SamplerSettings(steps=2)


def a_demo(out: Path, **options: Any) -> dict[str, Any]:
    settings = {"train.batch_size": 8, "train.save_every": 1}
    recipe = with_settings(with_steps(read_recipe("digits/finetune"), 3), settings)
    return demo(out, images=4, settings=SETTINGS, recipe=recipe, device="cpu", **options)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that nobody disturbs."""
    out = tmp_path_factory.mktemp("calm") / "demo"
    result = a_demo(out)
    assert json.loads((out / "demo.json").read_text()) == result
    return out


def figures_of(out: Path) -> dict[str, Any]:
    """demo.json without times."""
    written = json.loads((out / "demo.json").read_text())
    assert written.pop("seconds") > 0
    assert written.pop("finetune_seconds") > 0
    for model in ("static", "dynamic", "cached"):
        assert written[model].pop("seconds") > 0
    return written


def test_demo_runs_to_its_table(calm: Path) -> None:
    written = json.loads((calm / "demo.json").read_text())
    check_keys("demo", {**written, "command": "dydit demo --json"})
    for model in ("static", "dynamic"):
        assert set(written[model]) == {"macs", "recognised", "seconds"}
    assert set(written["cached"]) == {"macs", "recognised", "seconds", "cache"}
    assert written["cached"]["macs"] == Profile.read(calm / "profile-cached").summary["macs_dynamic"]
    assert "taylorseer:4:1" in (calm / "report.html").read_text()
    assert written["ratio"] == written["dynamic"]["macs"] / written["static"]["macs"]
    assert written["finetune_share"] <= 0.03
    pictures = ("architecture.png", "tokens.png", "flops.png", "samples.png")
    folders = ("converted", "finetuned", "profile", "profile-cached")
    assert {path.name for path in calm.iterdir()} == {*pictures, *folders, "demo.json", "recipe.json", "report.html"}


class Killed(BaseException):
    """As no handler expects it."""


def test_a_demo_that_is_killed_in_stage_after_stage_continues(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is whole is not made again, and training goes on from its last step."""
    out, done, at = tmp_path / "demo", dict[str, int](), ""

    def on_stage(what: str, total: int, unit: str) -> None:
        nonlocal at
        at = what

    def until(stage: str, amount: int) -> Callable[[int, str], None]:
        def on_work(more: int, note: str) -> None:
            done[at] = done.get(at, 0) + more
            if at == stage and done[at] >= amount:
                raise Killed

        return on_work

    for stage, amount in (("fine-tune", 2), ("profile", 1), ("sample static", 1), ("sample dynamic", 1), ("report", 1)):
        done.clear()
        with pytest.raises(Killed):
            a_demo(out, on_stage=on_stage, on_work=until(stage, amount))
        assert list(done)[-1] == stage
        with pytest.raises(DyditError, match="an unfinished demo with images 4, and now it is 5; choose another --out"):
            demo(out, images=5, device="cpu")
        if stage == "fine-tune":
            assert RunFolder(out / "finetuned").states.steps() == [1]  # the second step was not saved yet
        if stage == "sample static":  # all that is before it was whole, and so is not made any more
            for name in ("convert", "finetune", "profile"):
                monkeypatch.delattr(demo_module, name)
    monkeypatch.delattr(demo_module, "classify_samples")
    a_demo(out)
    assert figures_of(out) == figures_of(calm)
    for file in ("finetuned/model.safetensors", "samples.png", "profile/timesteps.csv"):
        assert (out / file).read_bytes() == (calm / file).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in calm.iterdir()}


def test_a_finished_demo_is_left_alone_without_force(calm: Path, tmp_path: Path) -> None:
    before = (calm / "demo.json").read_bytes()
    with pytest.raises(DyditError, match="already exists; choose another name or replace it with --force"):
        a_demo(calm)
    assert (calm / "demo.json").read_bytes() == before

    def kill(amount: int, note: str) -> None:
        raise Killed

    shutil.copytree(calm, tmp_path / "demo")
    with pytest.raises(Killed):
        a_demo(tmp_path / "demo", force=True, on_work=kill)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["converted", "recipe.json", "unfinished.json"]


def test_the_demos_recipe_stays_under_three_percent_of_pretraining() -> None:
    assert read_recipe("digits/finetune").train.steps <= 0.03 * read("digits-dit").lineage[0]["steps"]


def test_demo_is_a_command() -> None:
    assert "--images" in CliRunner().invoke(app, ["demo", "--help"]).output

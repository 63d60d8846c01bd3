"""The trade-off study: its recipe, its rows on disk, what several processes share, and its tables by hand."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dydit_cli.artifacts.study import StudyTable
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.compress import methods
from dydit_cli.compress.convert import convert
from dydit_cli.data.digits import load_digits_split
from dydit_cli.diffusion.objective import loss_terms
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.diffusion.schedule import linear_schedule
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.evaluate import find_extractor
from dydit_cli.evaluate.features import DISTANCE_ONLY, Extractor, Features
from dydit_cli.figures.steps import steps_table
from dydit_cli.figures.visualize import visualize
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.execution import executor
from dydit_cli.model.families.dit import DiT
from dydit_cli.profiling.profile import profile
from dydit_cli.reports.report import collect
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import open_sampler
from dydit_cli.studies import measure as measuring
from dydit_cli.studies import runner
from dydit_cli.studies.folder import StudyFolder
from dydit_cli.studies.measure import held_out_loss, measure
from dydit_cli.studies.methods import METHODS, Method, Row, Start, rows_of
from dydit_cli.studies.recipe import StudyRecipe, read_study
from dydit_cli.studies.study import Study, study
from dydit_cli.studies.tables import make_tables
from dydit_cli.train import run as training
from dydit_cli.train.recipe import read_recipe, with_settings, with_steps
from dydit_cli.train.run import finetune
from tests.conftest import TINY, randomize

SMALL = replace(TINY, input_size=8, patch_size=2, depth=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "model"
    write(Checkpoint.of(randomize(DiT(SMALL), scale=0.05), lineage=[]), folder)
    return folder


def recipe(model: Path, **changed: Any) -> StudyRecipe:
    """Five rows, of which one is fine-tuned to a DyDiT and one pruned."""
    values: dict[str, Any] = {
        "model": str(model),
        "seeds": [3],
        "finetune": {"steps": 2},
        "methods": {"dydit": [0.5], "prune": ["magnitude"], "tome": [0.5]},
        "evaluation": {"images": 12, "steps": 2, "profiled": 2, "held_out": 4, "kept": 5},
        "timing": {"images": 2, "repeats": 1},
    }
    for key, value in changed.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return StudyRecipe.model_validate(values)


def run(recipe: StudyRecipe, out: Path, **options: Any) -> Study:
    return study(recipe, out, device="cpu", **options)


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two seeds, with times."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert run(recipe(model, seeds=[3, 4]), out).left == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted((folder / "rows").iterdir())}


# the recipe


def test_the_rows_of_a_recipe(model: Path) -> None:
    rows = rows_of(recipe(model, seeds=[0, 1], methods={"dydit": [0.7, 0.5], "prune": ["random", "diff"], "tome": [0.25]}))
    kinds = ["static", "control", "dydit-0.7", "dydit-0.5", "random-0.7", "diff-0.7", "random-0.5", "diff-0.5", "tome-0.25"]
    assert [row.name for row in rows] == [f"{kind}-seed{seed}" for seed in (0, 1) for kind in kinds]
    assert [row.tuning for row in rows[:3]] == [None, "static", "dynamic"]
    assert (rows[4].tuning, rows[8].tuning) == ("static", None)
    assert [row.tome for row in rows[7:9]] == [None, 0.25]
    alone = rows_of(recipe(model, methods={"control": False, "dydit": [], "prune": ["random"], "keep": [0.4], "tome": []}))
    assert [row.what for row in alone] == ["static", "random-0.4"]


FINE = 'model = "digits-dit"\n[finetune]\nsteps = 2\n'


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (FINE + "[evaluation]\nimage = 5", [], "study.toml: unknown key 'evaluation.image'; did you mean 'images'?"),
        (FINE + "[methods]\ndydit = [1.5]", [], "study.toml: 'methods.dydit.0': input should be less than or equal to 1"),
        (
            FINE + "[methods]\nprune = ['taylr']",
            [],
            "study.toml: 'methods.prune.0': input should be 'random', 'magnitude'",
        ),
        (FINE + "[methods]\nprune = ['diff']", [], "methods.prune needs shares to keep: methods.keep, or the lambdas"),
        (FINE + "[methods]\ndydit = [0.5, 0.50]", [], "methods.dydit names a value twice"),
        (FINE + "[methods]\nsteps = [0]", [], "'methods.steps.0': input should be greater than or equal to 1"),
        (
            FINE + "[evaluation]\nfeatures = ['digits', 'digits']",
            [],
            "'evaluation.features': input should name each judge once",
        ),
        ("[finetune]\nsteps = 2", [], "study.toml: 'model' is missing"),
        ('model = "digits-dit"', [], "study.toml: 'finetune' is missing"),
        (FINE, ["finetune.step=3"], "--set: unknown key 'finetune.step'; did you mean 'steps'?"),
        (FINE, ["finetune.steps=0"], "--set: 'finetune.steps': input should be greater than 0"),
        (FINE, ["model.size=3"], "--set model.size: 'model' is no section"),
        (FINE, ["steps"], "--set steps: write it as KEY=VALUE"),
        (FINE.replace("[", ""), [], "study.toml: not a readable TOML recipe"),
    ],
)
def test_a_fault_in_a_recipe_is_told_in_one_line(tmp_path: Path, text: str, settings: list[str], message: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(DyditError) as error:
        read_study(file, settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_may_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text(FINE + "[methods]\ndydit = [0.5]")
    (tmp_path / "top.toml").write_text("base = 'below.toml'\nseeds = [7]\n[finetune]\ncalibrate = true")
    found = read_study(tmp_path / "top.toml", ["methods.dydit=[0.25]", "seeds=[1, 2]"])
    assert (found.finetune.steps, found.finetune.calibrate, found.methods.dydit, found.seeds) == (2, True, (0.25,), (1, 2))


# rows, run and run again


def test_what_a_study_leaves(done: Path) -> None:
    table = pd.read_csv(done / "study.csv")
    assert " ".join(table.columns) == (
        "method target steps cache seed macs ratio routed_ratio forwards_per_image macs_per_image seconds_per_image speedup "
        "frechet recognised precision recall loss_ratio finetune_steps"
    )
    assert set(table["steps"]) == {2}
    assert set(table["forwards_per_image"]) == {4}  # with guidance, two a step
    assert table["macs_per_image"].to_list() == pytest.approx((4 * table["macs"]).to_list())
    assert list(table["method"]) == ["static", "control", "dydit", "magnitude", "tome"] * 2
    assert list(table["seed"]) == [3] * 5 + [4] * 5
    assert list(table["finetune_steps"]) == [0, 2, 2, 2, 0] * 2
    static = table[table["method"] == "static"]
    assert (static["ratio"] == 1).all()
    assert (static["loss_ratio"] == 1).all()
    assert (table.loc[table["method"] != "static", "loss_ratio"] != 1).all()
    assert (table.loc[table["method"] == "magnitude", "ratio"] < 0.7).all()
    assert table["frechet"].nunique() > 5
    first = table["seed"] == 3
    for timed in ("seconds_per_image", "speedup"):
        assert (table.loc[first, timed] > 0).all()
        assert table.loc[~first, timed].isna().all()
    protocol = json.loads((done / "study.json").read_text())
    assert (protocol["rows"], protocol["rows_done"], protocol["images"], protocol["steps"]) == (10, 10, 12, 2)
    assert len(protocol["reference_sha256"]) == len(protocol["model_sha256"]) == 64
    assert protocol["timing"]["dydit-0.5"]["repeats"] == 1
    with np.load(done / "samples.npz") as arrays:
        assert list(arrays) == protocol["samples"] == ["static", "control", "dydit-0.5", "magnitude-0.5", "tome-0.5"]
        assert {(arrays[name].dtype.name, arrays[name].shape) for name in arrays} == {("uint8", (5, 8, 8, 1))}
    kept = sorted(path.name for path in (done / "checkpoints").iterdir())
    assert kept == ["control-seed3", "dydit-0.5-seed3", "magnitude-0.5-seed3"]
    assert not list((done / "starts").iterdir())
    assert (done / "study.md").read_text().count("\n| ") == 6


def test_a_finished_row_is_never_run_again(model: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*what: Any) -> None:
        raise AssertionError("ran again")

    before = contents(done)
    monkeypatch.setattr(runner, "measure", never)
    monkeypatch.setattr(runner, "time_row", never)
    again = run(recipe(model, seeds=[3, 4]), done)
    assert (again.left, len(again.table)) == (0, 10)
    assert contents(done) == before


def test_a_row_depends_on_itself_alone(model: Path, done: Path, tmp_path: Path) -> None:
    fewer = recipe(model, seeds=[4], methods={"control": False, "prune": []})
    alone = run(fewer, tmp_path / "out", time=False).table.set_index("method").drop(columns=["seconds_per_image", "speedup"])
    table = pd.read_csv(done / "study.csv").query("seed == 4").set_index("method")[alone.columns]
    pd.testing.assert_frame_equal(alone, table.loc[alone.index], check_dtype=False, rtol=1e-12)


def test_rows_may_be_added_and_nothing_else_changed(model: Path, tmp_path: Path) -> None:
    small = {"control": False, "dydit": [], "prune": [], "tome": []}
    out = tmp_path / "out"
    run(recipe(model, methods=small), out, time=False)
    before = contents(out)
    more = run(recipe(model, seeds=[3, 5], methods=small), out, time=False)
    assert [row.name for row in rows_of(recipe(model, seeds=[3, 5], methods=small))] == more.protocol["rows_names"]
    assert contents(out) == before | {"rows/static-seed5.json": contents(out)["rows/static-seed5.json"]}
    for changed, message in (
        ({"evaluation": {"images": 13}}, "holds a study with evaluation.images 12, and now it is 13; choose another --out"),
        ({"finetune": {"steps": 3}}, "with finetune.steps 2, and now it is 3"),
        ({"finetune": {"static": "digits/0.7"}}, 'with finetune.static "digits/control", and now it is "digits/0.7"'),
        ({"seeds": [5, 3]}, "with first_seed 3, and now it is 5"),
    ):
        with pytest.raises(DyditError) as error:
            run(recipe(model, **{"methods": small, **changed}), out)
        assert message in str(error.value)
    assert len(run(recipe(model, methods=small, seeds=[5]), out, time=False, force=True).table) == 1


def test_a_folder_of_somebody_elses_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(DyditError, match=r"already exists|is a folder that dydit did not write"):
            run(recipe(model), tmp_path, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(("calls", "rows"), [(0, 0), (5, 0), (26, 1), (40, 1)])
def test_what_was_stopped_goes_on_to_the_same_rows(model: Path, done: Path, tmp_path: Path, calls: int, rows: int) -> None:
    """At once, in the first row, in the second one's fine-tuning, and after it."""
    left = calls

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    asked = recipe(model, methods={"control": False, "tome": [], "prune": []})
    stopped = run(asked, tmp_path / "out", time=False, should_stop=stop)
    assert (stopped.interrupted, stopped.left > 0) == (True, True)
    assert len(stopped.table) == 2 - stopped.left == rows
    assert (tmp_path / "out" / "checkpoints" / "dydit-0.5-seed3" / "state").exists() == (calls == 26)
    assert not (tmp_path / "out" / "times").exists()
    table = run(asked, tmp_path / "out", time=False).table.drop(columns=["seconds_per_image", "speedup"])
    expected = pd.read_csv(done / "study.csv").iloc[[0, 2]].reset_index(drop=True)[table.columns]
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-12)


def test_a_row_that_was_killed_before_calibrating_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(model, finetune={"calibrate": True}, methods={"control": False, "prune": [], "tome": []})

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "calibrate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(asked, tmp_path / "out", time=False)
    for file in ("recipe.json", "checkpoints/dydit-0.5-seed3/state/run.json"):  # as an older dydit wrote them
        values = json.loads((tmp_path / "out" / file).read_text())
        kept = {name: value for name, value in values.items() if "calibration." not in name and "routing.calib" not in name}
        (tmp_path / "out" / file).write_text(json.dumps(kept))
    run(asked, tmp_path / "out", time=False)
    values = json.loads((tmp_path / "out" / "rows" / "dydit-0.5-seed3.json").read_text())
    tuned = tmp_path / "out" / "checkpoints" / "dydit-0.5-seed3"
    assert read(tuned).lineage[-1]["shift"] == values["calibration_shift"] != 0
    written = json.loads((tuned / "recipe.json").read_text())
    sampling = {"sampler": "ddim", "steps": 2, "cfg": 1.5, "cfg_channels": "3", "time_shift": None}
    assert written["calibration"] == {**sampling, "images": 16}
    by_hand = with_settings(read_recipe("digits/finetune"), {"train.seed": 3})
    by_hand = with_settings(with_steps(by_hand, 2), {"routing.calibrate": True, "calibration.steps": 2})
    convert(read(model), tmp_path / "start")
    finetune(tmp_path / "start", tmp_path / "alone", recipe=by_hand, device="cpu")
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()


def test_a_model_that_was_never_calibrated_is_not_taken_for_the_rows(model: Path, tmp_path: Path) -> None:
    """As an older dydit left it, killed between its training and its calibration."""
    asked = recipe(model, finetune={"calibrate": True}, methods={"control": False, "prune": [], "tome": []})
    run(asked, tmp_path / "out", time=False)
    row, tuned = tmp_path / "out" / "rows" / "dydit-0.5-seed3.json", tmp_path / "out" / "checkpoints" / "dydit-0.5-seed3"
    before = json.loads(row.read_text())
    values = json.loads((tuned / "recipe.json").read_text())
    values["routing"]["calibrate"] = False
    (tuned / "recipe.json").write_text(json.dumps(values))
    row.unlink()
    run(asked, tmp_path / "out", time=False)
    timed = ("finetune_seconds", "sampling_seconds", "evaluation")
    assert {**json.loads(row.read_text()), **dict.fromkeys(timed)} == {**before, **dict.fromkeys(timed)}


def test_a_method_is_one_entry(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a criterion of pruning none: it is in the registry of those."""
    monkeypatch.setitem(METHODS, "as-it-is", Method(lambda part: [("as-it-is", ratio) for ratio in part.dydit]))
    monkeypatch.setitem(methods._methods, "toy", methods.find_method("magnitude"))
    found = run(recipe(model, methods={"control": False, "prune": ["toy"], "tome": []}), tmp_path / "out", time=False)
    assert list(found.table["method"]) == ["static", "dydit", "toy", "as-it-is"]
    static, _, toy, as_it_is = found.table["frechet"].to_list()
    assert as_it_is == static != toy
    assert "| toy, 0.5 |" in (tmp_path / "out" / "study.md").read_text()


def test_a_row_that_fails_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DyditError, match=r"^tome-0.9-seed3: tome 0\.9: merges 14 of 16 tokens"):
        run(recipe(model, methods={"control": False, "dydit": [], "prune": [], "tome": [0.9]}), tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "study.csv")) == 1


def test_what_no_study_can_begin_with(model: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DyditError, match="is a DyDiT; a study begins with the static model"):
        run(recipe(done / "checkpoints" / "dydit-0.5-seed3"), tmp_path / "out")
    with pytest.raises(DyditError, match="no features 'vgg'"):
        run(recipe(model, evaluation={"features": "vgg"}), tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DyditError, match="by the same command, started several times without a launcher"):
        run(recipe(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# fewer steps


HURRIED: dict[str, Any] = {
    "methods": {"control": False, "prune": [], "tome": [], "steps": [2, 1], "dydit_steps": [2, 1]},
    "evaluation": {"images": 12, "steps": 2, "profiled": 2, "held_out": 0, "kept": 5},
}


@pytest.fixture(scope="module")
def hurried(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two seeds, whose static model and DyDiT are measured with one step too."""
    out = tmp_path_factory.mktemp("hurried") / "out"
    assert run(recipe(model, seeds=[3, 4], **HURRIED), out).left == 0
    return out


def test_rows_of_other_numbers_of_steps_follow_their_models(model: Path) -> None:
    many = recipe(model, seeds=[0, 1], methods={"dydit": [0.7, 0.5], "prune": [], "steps": [4, 1], "dydit_steps": [3, 2, 1]})
    dydits = [f"dydit-{ratio}{steps}" for ratio in (0.7, 0.5) for steps in ("", "-3steps", "-1steps")]  # its own are 2
    kinds = ["static", "control", *dydits, "tome-0.5", "steps-4", "steps-1"]
    rows = rows_of(many)
    assert [row.name for row in rows] == [f"{kind}-seed{seed}" for seed in (0, 1) for kind in kinds]
    assert [row.made.name for row in rows[2:5]] == ["dydit-0.7-seed0"] * 3
    assert [row.steps for row in rows[2:11]] == [None, 3, 1, None, 3, 1, None, 4, 1]


def test_fewer_steps_are_fewer_forwards(model: Path, hurried: Path) -> None:
    table = pd.read_csv(hurried / "study.csv")
    assert list(table["method"]) == ["static", "dydit", "dydit", "steps"] * 2
    assert list(table["steps"]) == [2, 2, 1, 1] * 2
    assert list(table["forwards_per_image"]) == [4, 4, 2, 2] * 2
    assert table["macs_per_image"].to_list() == pytest.approx((table["macs"] * table["forwards_per_image"]).to_list())
    static, _, dynamic, steps = (line for _, line in table[table["seed"] == 3].iterrows())
    assert (steps["target"], steps["ratio"], steps["macs_per_image"]) == (1, 1, static["macs_per_image"] / 2)
    # what a DyDiT costs at those steps, and what it gives
    tuned, settings = hurried / "checkpoints" / "dydit-0.5-seed3", SamplerSettings(steps=1)
    summary = profile(tuned, images=2, settings=settings, seed=3, device="cpu").summary
    assert (dynamic["macs"], dynamic["macs_per_image"]) == (summary["macs_dynamic"], summary["macs_dynamic_per_image"])
    with np.load(hurried / "samples.npz") as arrays:
        assert list(arrays) == ["static", "dydit-0.5", "dydit-0.5-1steps", "steps-1"]
        expected = open_sampler(read(tuned), SamplingConfig(settings, seed=3, device="cpu"))
        assert (arrays["dydit-0.5-1steps"] == expected.pixels(expected.samples(0, 5))).all()
    assert (table.loc[table["seed"] == 3, "speedup"] > 0).all()
    summary_table = pd.read_csv(hurried / "summary.csv")
    assert list(summary_table["steps"]) == [2, 2, 1, 1]
    assert (summary_table["seeds"] == 2).all()
    text = (hurried / "study.md").read_text()
    for label in ("| static DiT |", "| DyDiT, lambda 0.5 |", "| DyDiT, lambda 0.5, 1 steps |", "| static DiT, 1 steps |"):
        assert text.count(label) == 1
    assert [path.name for path in (hurried / "checkpoints").iterdir()] == ["dydit-0.5-seed3"]


def test_steps_that_are_added_later_are_of_the_same_models(model: Path, hurried: Path, tmp_path: Path) -> None:
    """Also of a seed whose checkpoint was removed, and where a kill came between a DyDiT and its fewer steps."""
    without = {**HURRIED, "methods": {**HURRIED["methods"], "steps": [], "dydit_steps": []}}
    out = tmp_path / "out"
    run(recipe(model, seeds=[3, 4], **without), out, time=False)
    before = contents(out)
    assert len(before) == 6  # four rows, and the first seed's samples
    removed = out / "checkpoints" / "dydit-0.5-seed4"
    assert not removed.exists()
    stops = iter([False] * 3 + [True] * 1000)
    assert run(recipe(model, seeds=[3, 4], **HURRIED), out, time=False, should_stop=lambda: next(stops)).interrupted
    run(recipe(model, seeds=[3, 4], **HURRIED), out, time=False)
    assert not removed.exists()
    assert before.items() <= contents(out).items()
    found, expected = (pd.read_csv(folder / "study.csv") for folder in (out, hurried))
    timed = ["seconds_per_image", "speedup"]
    pd.testing.assert_frame_equal(found.drop(columns=timed), expected.drop(columns=timed), rtol=1e-12)


def test_a_model_stays_until_all_its_rows_are_measured(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def killed(loaded: Checkpoint, row: Row, *rest: Any) -> Any:
        if row.steps == 1:
            raise KeyboardInterrupt
        measured.append(row.name)
        return measure(loaded, row, *rest)

    asked = recipe(model, seeds=[3], keep_checkpoints=False, **HURRIED)
    monkeypatch.setattr(runner, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "out", time=False)
    assert measured == ["static-seed3", "dydit-0.5-seed3"]
    monkeypatch.undo()
    monkeypatch.setattr(runner, "finetune", None)  # it is there
    with StudyFolder(tmp_path / "out").claim("dydit-0.5-seed3"):  # another process has the model, and all that measures it
        assert run(asked, tmp_path / "out", time=False).protocol["rows_names"] == [
            "static-seed3", "dydit-0.5-seed3", "steps-1-seed3",
        ]  # fmt: skip
    assert run(asked, tmp_path / "out", time=False).left == 0


def test_a_number_of_steps_that_cannot_be_is_told_before_anything_runs(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DyditError, match="1001 sampling steps: the schedule has 1000"):
        run(recipe(model, methods={"steps": [1001]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_knows_of_no_steps_goes_on(model: Path, hurried: Path, tmp_path: Path) -> None:
    """As an older dydit left it: its rows do not say how many steps and forwards there were."""
    out = tmp_path / "out"
    shutil.copytree(hurried, out)
    for row in out.glob("rows/*steps*"):
        row.unlink()
    for file in out.glob("rows/*.json"):
        values = json.loads(file.read_text())
        for name in ("steps", "forwards_per_image", "macs_per_image"):
            del values[name]
        file.write_text(json.dumps(values))
    settings = json.loads((out / "recipe.json").read_text())
    assert settings["evaluation.features"] == "digits"
    del settings["methods.steps"], settings["methods.dydit_steps"]
    (out / "recipe.json").write_text(json.dumps(settings))
    evaluation = {**HURRIED["evaluation"], "features": ["digits"]}
    run(recipe(model, seeds=[3, 4], **{**HURRIED, "evaluation": evaluation}), out, time=False)
    found, expected = (pd.read_csv(folder / "study.csv") for folder in (out, hurried))
    timed = ["seconds_per_image", "speedup"]
    pd.testing.assert_frame_equal(found.drop(columns=timed), expected.drop(columns=timed), rtol=1e-12)


# caches


CACHED: dict[str, Any] = {
    "methods": {"control": False, "prune": [], "tome": [], "range": [0.6], "cache": ["fora:3", "taylorseer:2:1@model"],
                "dydit_cache": ["fora:2"]},
    "evaluation": {"images": 12, "steps": 4, "profiled": 2, "held_out": 4, "kept": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def cached(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study whose static model and DyDiTs, of one ratio and of a range, are measured with caches too."""
    out = tmp_path_factory.mktemp("cached") / "out"
    assert run(recipe(model, **CACHED), out).left == 0
    return out


def test_a_cache_forecasts_and_is_counted(model: Path, cached: Path) -> None:
    table = pd.read_csv(cached / "study.csv")
    names = ["static", "static-fora-3", "static-taylorseer-2-1@model", "dydit-0.5", "dydit-0.5-fora-2", "range-0.6",
             "range-0.6-fora-2"]  # fmt: skip
    assert json.loads((cached / "study.json").read_text())["rows_names"] == [f"{name}-seed3" for name in names]
    assert table["cache"].fillna("").to_list() == ["", "fora:3", "taylorseer:2:1@model", "", "fora:2", "", "fora:2"]
    assert (set(table["steps"]), set(table["forwards_per_image"])) == ({4}, {8})
    static, fora, taylor, _, dynamic_fora, _, ranged_fora = (line for _, line in table.iterrows())
    for row, cache, checkpoint in (
        (fora, CacheOptions("fora:3"), model),
        (taylor, CacheOptions("taylorseer:2:1", at="model"), model),
        (dynamic_fora, CacheOptions("fora:2"), cached / "checkpoints" / "dydit-0.5-seed3"),
    ):
        loaded = read(checkpoint)
        settings = SamplerSettings(steps=4)
        summary = profile(loaded, images=2, settings=settings, seed=3, cache=cache, device="cpu").summary
        assert summary["calls_forecast"] > 0
        assert (row["macs"], row["macs_per_image"]) == (summary["macs_dynamic"], summary["macs_dynamic_per_image"])
        with np.load(cached / "samples.npz") as arrays:
            name = "static" if row["method"] == "static" else "dydit-0.5"
            expected = open_sampler(loaded, SamplingConfig(settings, seed=3, cache=cache, device="cpu"))
            assert (arrays[f"{name}-{row['cache'].replace(':', '-')}"] == expected.pixels(expected.samples(0, 5))).all()
    assert fora["macs_per_image"] < static["macs_per_image"]
    assert ranged_fora["macs_per_image"] < static["macs_per_image"]
    assert table["loss_ratio"].isna().to_list() == [False, True, True, False, True, False, True]
    assert (table["speedup"] > 0).all()
    assert sorted(path.name for path in (cached / "checkpoints").iterdir()) == ["dydit-0.5-seed3", "range-1-seed3"]


def test_tables_and_figures_name_the_cache(cached: Path, tmp_path: Path) -> None:
    text = (cached / "study.md").read_text()
    for label in ("static DiT", "static DiT, fora:3", "DyDiT, lambda 0.5, fora:2", "one DyDiT for all ratios, at 0.6, fora:2"):
        assert text.count(f"| {label} |") == 1
    study_table = StudyTable.read(cached)
    assert list(study_table.alike["method"]) == ["static", "dydit", "range"]
    points = steps_table(study_table)
    assert points.groupby("line", sort=True)["cache"].apply(lambda of: of.isna().all()).to_list() == [
        True, False, True, False, True, False,
    ]  # fmt: skip
    (section,) = collect([cached])
    names = [row[0] for table in section.tables for row in table.rows]
    assert "static DiT, taylorseer:2:1@model" in names
    visualize(cached, "tradeoff-steps", tmp_path / "steps.svg")
    drawn = (tmp_path / "steps.svg").read_text()
    assert "static DiT, cached" in drawn
    assert "taylorseer:2:1@model" in drawn


def test_caches_may_be_added_later_and_one_that_cannot_be_is_told_before_anything_runs(
    model: Path, cached: Path, tmp_path: Path
) -> None:
    without = {**CACHED, "methods": {**CACHED["methods"], "cache": [], "dydit_cache": []}}
    out = tmp_path / "out"
    run(recipe(model, **without), out, time=False)
    settings = json.loads((out / "recipe.json").read_text())
    del settings["methods.cache"], settings["methods.dydit_cache"]  # as an older dydit left it
    (out / "recipe.json").write_text(json.dumps(settings))
    run(recipe(model, **CACHED), out, time=False)
    found, expected = (pd.read_csv(folder / "study.csv") for folder in (out, cached))
    timed = ["seconds_per_image", "speedup"]
    pd.testing.assert_frame_equal(found.drop(columns=timed), expected.drop(columns=timed), rtol=1e-12)
    for cache, message in (
        ("fora:1", "an interval of 1 computes every step"),
        ("none", "rows without a cache are there already"),
        ("fora:2@middle", "cache-at 'middle'; choose one of sublayers, model"),
        ("fora:2+reuse", "a static model has no tokens that skip an MLP; name it under methods.dydit_cache"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(model, methods={"cache": [cache]})
    with pytest.raises(DyditError, match="order 9 needs 10 computed steps"):
        run(recipe(model, methods={"cache": ["taylorseer:2:9"]}), tmp_path / "no")
    assert not (tmp_path / "no").exists()


# two judges


def test_several_judges(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is of no data set: it sees the study's."""

    def shades(pixels: Any) -> Features:
        flat = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
        return Features(np.stack([flat.mean(1), flat.std(1), flat.max(1), flat[:, 0]], axis=1))

    toy = Extractor("shades", None, 8, 1, {"features": "shades, 4", "features_sha256": "0"}, shades, DISTANCE_ONLY)
    monkeypatch.setattr(
        measuring, "find_extractor", lambda name, **options: toy if name == "shades" else find_extractor(name, **options)
    )
    alone = {"control": False, "dydit": [], "prune": [], "tome": [0.25]}
    out, both = tmp_path / "out", {"features": ["digits", "shades"]}
    found = run(recipe(model, methods=alone, evaluation=both), out, time=False)
    once = run(recipe(model, methods=alone), tmp_path / "once", time=False)
    columns = ["frechet", "recognised", "precision", "recall"]
    pd.testing.assert_frame_equal(found.table[columns], once.table[columns])
    assert [name for name in found.table.columns if "shades" in name] == [
        "frechet_shades", "precision_shades", "recall_shades",
    ]  # fmt: skip
    values = json.loads((out / "rows" / "static-seed3.json").read_text())
    judged, main = (values[name]["protocol"] for name in ("evaluation_shades", "evaluation"))
    assert (judged["features"], judged["reference"]) == ("shades, 4", main["reference"])
    assert values["frechet_shades"] == values["evaluation_shades"]["frechet"] != values["frechet"]
    assert json.loads((out / "study.json").read_text())["judges"] == ["digits", "shades"]
    assert found.protocol["other_judges"]["shades"]["reference_sha256"] == found.protocol["reference_sha256"]
    assert found.summary["frechet_shades_mean"].to_list() == found.table["frechet_shades"].to_list()
    text = (out / "study.md").read_text()
    assert "| recall | Fréchet distance, shades | precision, shades | recall, shades |" in text
    assert "features shades, reference digits" in text
    with pytest.raises(DyditError, match=r'with evaluation.features \["digits", "shades"\], and now it is "digits"'):
        run(recipe(model, methods=alone), out, time=False)


# several processes


def test_a_row_that_another_one_is_at_is_left_to_it(model: Path, tmp_path: Path) -> None:
    small = recipe(model, methods={"dydit": [], "prune": [], "tome": []})
    assert run(small, tmp_path, should_stop=lambda: True).left == 2
    with StudyFolder(tmp_path).claim("static-seed3") as mine:
        assert mine
        part = run(small, tmp_path)
        assert (part.left, list(part.table["method"])) == (1, ["control"])
        assert part.table["loss_ratio"].isna().all()
        assert not (tmp_path / "times").exists()
    whole = run(small, tmp_path)
    assert (whole.left, list(whole.table["method"])) == (0, ["static", "control"])
    assert whole.table["seconds_per_image"].notna().all()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from dydit_cli.studies.folder import StudyFolder\n"
        "with StudyFolder(Path(sys.argv[1])).claim('row') as mine:\n    print(mine, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with StudyFolder(tmp_path).claim("row") as mine:
            assert not mine
        process.send_signal(signal.SIGKILL)
    with StudyFolder(tmp_path).claim("row") as mine:
        assert mine


def test_starting_anew_waits_for_nobody(model: Path, tmp_path: Path) -> None:
    """Nor does it take away what another process is at."""
    small = recipe(model, methods={"control": False, "dydit": [], "prune": [], "tome": []})
    run(small, tmp_path / "out", time=False)
    with (
        StudyFolder(tmp_path / "out").claim("static-seed3"),
        pytest.raises(DyditError, match="out: another process is at static-seed3, so --force cannot start it anew"),
    ):
        run(small, tmp_path / "out", time=False, force=True)
    assert run(small, tmp_path / "out", time=False).left == 0


# figures


def test_the_held_out_loss_is_the_diffusion_loss(model: Path) -> None:
    loaded, data, schedule = read(model), load_digits_split(held_out=True), linear_schedule()
    data = replace(data, images=data.images[:7], labels=data.labels[:7])
    found = held_out_loss(executor(loaded.build(), "sparse"), data, batch=3)
    network, generator = executor(loaded.build(), "sparse"), torch.Generator().manual_seed(0)
    losses = []
    for timestep in torch.linspace(0, 999, 20).long().tolist():
        noise, t = torch.randn(7, 1, 8, 8, generator=generator), torch.full((7,), timestep)
        x_t = schedule.add_noise(data.images, t, noise)
        with torch.no_grad():
            out = network(x_t, t, data.labels)
        losses.append(loss_terms(schedule, out, data.images, x_t, t, noise).loss.mean())
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_the_tables_by_hand(model: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    asked = recipe(model, seeds=[0, 1, 2], methods={"control": False, "dydit": [0.5], "prune": [], "tome": []})
    figures = {"macs": 50e6, "ratio": 0.5, "recognised": 1.0, "precision": 0.5, "recall": 0.25, "finetune_steps": 2}
    for seed, frechet, loss in ((0, 1.0, 0.3), (1, 2.0, 0.6), (2, 4.5, 0.9)):
        for row, values in (
            (Row("static", 1.0, seed), {"frechet": 0.5, "loss": 0.3}),
            (Row("dydit", 0.5, seed), {"frechet": frechet, "loss": loss}),
        ):
            folder.write(row, {"method": row.method, "target": row.target, "seed": seed, **figures, **values}, None)
    facts = {"model": "m", "data": "d", "finetune_steps": 2, "finetune_share": 0.01, "images": 1000, "sampler": "ddim"}
    facts |= {"steps": 20, "cfg": 1.5, "features": "f, 64", "reference": "r", "seeds": [0, 1, 2], "device": "cpu", "torch": "2"}
    tables = make_tables(folder, asked, rows_of(asked), facts)
    tables.write()
    assert list(tables.table.query("method == 'dydit'")["loss_ratio"]) == pytest.approx([1, 2, 3])
    line = tables.summary.set_index("method").loc["dydit"]
    assert (line["seeds"], line["frechet_mean"], line["recognised_sd"]) == (3, 2.5, 0)
    assert line["frechet_sd"] == pytest.approx(np.std([1.0, 2.0, 4.5], ddof=1))
    assert (tmp_path / "study.md").read_text().splitlines() == [
        "m on d; fine-tuned for 2 steps (1.0 % of the pre-training); 1,000 samples a row, ddim, 20 steps, cfg 1.5; features f, "
        "reference r; mean ± standard deviation over seeds 0, 1, 2; cpu, torch 2; 6 of 6 rows.",
        "",
        "|  | MACs per forward | ratio | forwards per image | MACs per image | Fréchet distance | recognised | "
        "precision | recall | held-out loss over static |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| static DiT | 50.00 M | 0.500 | 40 | 2.000 G | 0.50 ± 0.00 | 100.0 ± 0.0 % | 0.500 ± 0.000 | 0.250 ± 0.000 | "
        "1.000 ± 0.000 |",
        "| DyDiT, lambda 0.5 | 50.00 M | 0.500 | 40 | 2.000 G | 2.50 ± 1.80 | 100.0 ± 0.0 % | 0.500 ± 0.000 | 0.250 ± 0.000 | "
        "2.000 ± 1.000 |",
    ]


def test_a_damaged_row_is_named(model: Path, tmp_path: Path) -> None:
    asked = recipe(model, methods={"control": False, "dydit": [], "prune": [], "tome": []})
    run(asked, tmp_path / "out", time=False)
    (tmp_path / "out" / "rows" / "static-seed3.json").write_text("{")
    with pytest.raises(DyditError, match=r"static-seed3\.json: cannot be read .*remove it, and the same command makes it anew"):
        run(asked, tmp_path / "out", time=False)


def test_what_was_pruned_learns_from_the_studys_model() -> None:
    """Not from its own start. A DyDiT's start is that model; without a weight there is no teacher."""
    full = read_study("digits/tradeoff")
    taught = full.model_copy(
        update={"finetune": full.finetune.model_copy(update={"dynamic": "digits/short", "static": "digits/short"})}
    )
    teachers = []
    for of in (taught, full):
        for row in (Row("taylor", 0.5, 0), Row("dydit", 0.5, 0)):
            tuning = Start.of(read("digits-dit"), of, "cpu").tuning(row)
            assert tuning is not None
            teachers.append(tuning.train.teacher)
    assert teachers == ["digits-dit", None, None, None]

"""`dydit recipes`: which there are, what one comes to, a copy that means the same, and the first fault of one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from dydit_cli.recipe_files import KINDS, SHIPPED, shipped_recipes
from dydit_cli.studies.recipe import StudyRecipe, read_study
from dydit_cli.studies.recipes import check, describe
from dydit_cli.train.recipe import Recipe, read_recipe
from tests.processes import dydit


def test_each_kind_is_told_by_the_sections_that_it_alone_has() -> None:
    kinds = {"training": set(Recipe.model_fields), "study": set(StudyRecipe.model_fields)}
    shared = kinds["training"] & kinds["study"]
    assert {kind: fields - shared for kind, fields in kinds.items()} == {kind: own for kind, (own, _) in KINDS.items()}


def test_ls_names_every_file() -> None:
    listed = json.loads(dydit("recipes", "ls", "--json").stdout)["recipes"]
    assert [entry["name"] for entry in listed] == shipped_recipes()
    assert len(listed) == len(list(SHIPPED.rglob("*.toml")))
    for entry in listed:
        assert entry["kind"] == ("study" if entry["command"].startswith("dydit study ") else "training")
        assert entry["command"].startswith("dydit ")
        assert entry["summary"]
    shown = " ".join(dydit("recipes", "ls").stdout.split())
    assert "digits/tradeoff, of a study" in shown
    assert "The paper's settings for lambda 0.7: slower down, in smaller steps." in shown


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_has_no_fault_and_its_copies_mean_the_same(name: str, tmp_path: Path) -> None:
    facts = check(name)
    read = read_study if facts.kind == "study" else read_recipe
    for options in ([], ["--flat"]):
        mine = tmp_path / f"mine{len(options)}.toml"
        done = dydit("recipes", "copy", name, mine, *options, "--json")
        assert done.exit_code == 0, done.output
        copied = json.loads(done.stdout)
        assert (copied["kind"], copied["summary"]) == (facts.kind, facts.summary)
        assert (len(copied["files"]) == 1) >= (options == ["--flat"])
        assert str(mine) in copied["command"]
        assert f"recipes/{name}" not in copied["command"]
        assert read(mine) == read(name)


def test_show_says_which_file_gives_a_value() -> None:
    done = dydit("recipes", "show", "imagenet/XL-2-0.7")
    assert tomllib.loads(done.stdout) == describe("imagenet/XL-2-0.7").merged.values
    lines = done.stdout.splitlines()
    assert {"lr = 2.5e-05  # imagenet/lambda-0.7", "batch_size = 256  # imagenet/base", "steps = 150000"} <= set(lines)
    told = json.loads(dydit("recipes", "show", "imagenet/XL-2-0.7", "--json").stdout)
    assert told["values"] == tomllib.loads(done.stdout)
    assert [Path(file).name for file in told["files"]] == ["XL-2-0.7.toml", "lambda-0.7.toml", "base.toml"]


FAULTS = {
    "unknown data": ('data = "cats"', "'data': no data set 'cats'; choose one of digits"),
    "unknown key": ("[train]\nlrr = 3", "unknown key 'train.lrr'; did you mean 'lr'?"),
    "a value out of range": ("[train]\nlr = -1", "'train.lr': input should be greater than 0, not -1"),
    "unknown family": ('[model]\nfamily = "cube"', "'model.family': 'cube' is no family; choose one of dit, latte"),
    "sizes that do not fit": ("[model]\nnum_heads = 5", "'model': model configuration: hidden_size 96 must be a multiple of"),
    "no sampler": ('[calibration]\nsampler = "x"', "'calibration': no sampler 'x'; choose one of ddpm"),
    "another's sampler": ('[calibration]\nsampler = "euler"', "'calibration': sampler euler is not for DiT-6x96/1"),
    "no teacher": ('[train]\nteacher = "x"\nteacher_weight = 1', "'train.teacher': x: no such checkpoint; give a folder"),
    "study: no model": ('model = "x"', "'model': x: no such checkpoint; give a folder"),
    "study: unknown judge": ('[evaluation]\nfeatures = "x"', "'evaluation.features': no features 'x'; choose one of inception"),
    "study: another's sampler": ('[evaluation]\nsampler = "euler"', "'evaluation': sampler euler is not for DiT-6x96/1"),
    "study: one in a study": ('[finetune]\nstatic = "digits/tradeoff"', "tradeoff.toml: is the recipe of a study"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_check_says_the_first_fault(fault: str, tmp_path: Path) -> None:
    """In the file that the fault stands in, also where another one is based on that."""
    text, message = FAULTS[fault]
    file, on_it = tmp_path / "faulty.toml", tmp_path / "mine.toml"
    file.write_text(f'base = "digits/{"tradeoff" if fault.startswith("study") else "pretrain"}"\n{text}\n')
    on_it.write_text('base = "faulty.toml"\n')
    for checked in (file, on_it):
        done = dydit("recipes", "check", checked)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"error: {file}: ")
        assert message in done.stderr


def test_several_are_checked_and_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "digits/finetune"\ndata = "cats"\n')
    words = [tmp_path / "a.toml", "digits/finetune", "nosuch", "digits/tradeoff"]
    done = dydit("recipes", "check", *words)
    assert done.exit_code == 2
    assert done.stdout == "".join(
        f"digits/{name}: the recipe of a {kind}, without a fault\n"
        for name, kind in (("finetune", "training"), ("tradeoff", "study"))
    )
    first, second = done.stderr.splitlines()
    assert "'data': no data set 'cats'" in first
    assert second == "error: nosuch: no such recipe; give a TOML file, or a shipped one's name: dydit recipes ls"
    told = json.loads(dydit("recipes", "check", *words, "--json").stdout)["recipes"]
    assert [entry["kind"] for entry in told] == [None, "training", None, "study"]
    assert [entry["fault"] is None for entry in told] == [False, True, False, True]
    out = tmp_path / "out"
    wrong = dydit("finetune", "digits-dit", "--recipe", "digits/tradeoff", "--out", out)
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "is the recipe of a study, for dydit study; name one of a training" in wrong.stderr
    wrong = dydit("study", "digits/finetune", "--out", out)
    assert "is the recipe of a training, for dydit finetune or pretrain; name one of a study" in wrong.stderr
    assert not out.exists()


def test_a_copy_replaces_nothing_and_loses_no_base(tmp_path: Path) -> None:
    there = tmp_path / "there.toml"
    there.write_text("mine")
    kept = dydit("recipes", "copy", "digits/finetune", there)
    assert (kept.exit_code, there.read_text()) == (2, "mine")
    assert "already exists; choose another name or replace it with --force" in kept.stderr
    (tmp_path / "base.toml").write_text('data = "digits"\n[train]\nsteps = 3\n')
    (tmp_path / "own.toml").write_text('base = "base.toml"\n[train]\nlr = 1e-3\n')
    lost = dydit("recipes", "copy", tmp_path / "own.toml", tmp_path / "new.toml")
    assert lost.exit_code == 2
    assert "does not ship, so a copy elsewhere would lose it; copy it with --flat" in lost.stderr
    assert not (tmp_path / "new.toml").exists()
    assert dydit("recipes", "copy", tmp_path / "own.toml", tmp_path / "new.toml", "--flat").exit_code == 0
    assert read_recipe(tmp_path / "new.toml") == read_recipe(tmp_path / "own.toml")

"""The recipes that ship: each is a test of its own; and how one is based on another."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from dydit_cli.artifacts.run import StepMetrics
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.cli.app import load
from dydit_cli.data.dataset import ImageData
from dydit_cli.data.load import find_source
from dydit_cli.errors import DyditError
from dydit_cli.model.families import build_model, families, with_routers
from dydit_cli.model.families.dit import DiT, DiTConfig
from dydit_cli.model.families.latte import LatteConfig
from dydit_cli.recipe_files import read_merged
from dydit_cli.studies.recipe import read_study
from dydit_cli.studies.study import study
from dydit_cli.train.loop import train
from dydit_cli.train.recipe import Recipe, read_recipe, with_settings, with_steps
from tests.conftest import ROOT, randomize

FOLDER = ROOT / "recipes"
SHRUNKEN = DiTConfig(input_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=4)
FILES = sorted(FOLDER.rglob("*.toml"))
STUDIES = [path for path in FILES if path.read_text().startswith("# dydit study ")]
RECIPES = [path for path in FILES if path not in STUDIES]


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


every_recipe = pytest.mark.parametrize("path", RECIPES, ids=name_of)
every_file = pytest.mark.parametrize("path", FILES, ids=name_of)
every_study = pytest.mark.parametrize("path", STUDIES, ids=name_of)


def command_of(path: Path) -> tuple[str, list[str]]:
    """The command in a recipe's first line, and its arguments."""
    first = path.read_text().splitlines()[0]
    assert first.startswith("# dydit "), first
    name, *arguments = shlex.split(first.removeprefix("# dydit "))
    return name, arguments


def option(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments else None


@every_file
def test_a_recipe_names_the_command_that_runs_it(path: Path) -> None:
    name, arguments = command_of(path)
    assert str(path.relative_to(ROOT)) in arguments
    load(name).make_context(name, list(arguments))  # an option that is not there is an error
    if path in RECIPES:
        assert (name == "pretrain") == (read_recipe(path).model is not None)


@every_recipe
def test_a_recipe_runs_two_steps_on_a_shrunken_model(path: Path) -> None:
    _, arguments = command_of(path)
    recipe, full = with_settings(with_steps(read_recipe(path), 2), {"train.batch_size": 8}), read_recipe(path)
    if full.routing.complete_steps:
        recipe = with_settings(recipe, {"routing.complete_steps": 1})
    channels = 4 if find_source(recipe.data)[0].takes_path else 1
    classes = int(option(arguments, "--num-classes") or 10)
    config = replace(SHRUNKEN, in_channels=channels, num_classes=classes)
    family = recipe.model.family if recipe.model else path.stem.split("-")[0].lower()  # of Latte-XL-2-0.5, say
    if family in families():
        config = families()[family].static_config(**asdict(config))  # type: ignore[assignment]  # all are DiTs
    if isinstance(config, LatteConfig):
        config = replace(config, num_frames=3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, *config.sample_shape, generator=generator)
    data = ImageData("synthetic", images, torch.randint(classes, (24,), generator=generator), classes)
    static = "dydit" not in arguments[0] or recipe.model is not None
    torch.manual_seed(0)
    kind = "layers" if recipe.routing.tokens == "layers" else "tokens"
    model = build_model(config if static else with_routers(config, token_router_reduction=4, token_routing=kind))
    seen: list[StepMetrics] = []
    result = train(model, data, recipe, on_step=seen.append)
    assert (result.steps, result.interrupted, result.skipped) == (2, False, 0)
    assert (seen[0].ratio is None) == static
    assert (seen[0].complete_loss is not None) == (bool(full.routing.complete_steps) and not static)


@every_study
def test_a_study_runs_on_a_shrunken_model(path: Path, tmp_path: Path, small_fashion: None) -> None:
    """Two steps, few images, one seed and judge, the first lambda and the first pruning, where there is one."""
    full = read_study(path)
    assert read_study(name_of(path)) == full
    methods, config = full.methods, read(full.model).config
    patch = config.input_size // 4
    small = replace(SHRUNKEN, input_size=config.input_size, patch_size=patch, in_channels=config.in_channels)
    write(Checkpoint.of(randomize(DiT(replace(small, num_classes=config.num_classes)), scale=0.05), []), tmp_path / "model")
    values = {"finetune.steps": 2, "evaluation.images": 10, "evaluation.steps": 2, "evaluation.held_out": 2, "seeds": [1]}
    values |= {"model": str(tmp_path / "model"), "methods.dydit": [methods.dydit[0]], "methods.prune": list(methods.prune[:1])}
    values |= {"methods.range": list(methods.range[-1:]), "finetune.range_steps": 2}
    # other judges' packages need not be there, and fewer sampling steps than two are none
    values |= {"evaluation.features": full.evaluation.judges[0], "methods.steps": [], "methods.dydit_steps": []}
    asked = read_study(path, [f"{key}={json.dumps(value)}" for key, value in values.items()])
    found = study(asked, tmp_path / "out", time=False, device="cpu")
    tuned = [*["control"] * methods.control, "dydit", *["range"] * bool(methods.range), *methods.prune[:1]]
    assert list(found.table["method"]) == ["static", *tuned, *["tome"] * len(methods.tome)]
    assert list(found.table["finetune_steps"]) == [0, *[2] * len(tuned), *[0] * len(methods.tome)]
    assert found.table["frechet"].notna().all()


def test_the_study_compares_all_there_is() -> None:
    full = read_study("digits/tradeoff")
    assert {0.9, 0.7, 0.5, 0.3} <= set(full.methods.dydit) == set(full.methods.kept)
    assert set(full.methods.prune) == {"random", "magnitude", "taylor", "diff"}
    assert full.methods.control
    assert len(full.seeds) >= 3
    short = read_study("digits/tradeoff-short")
    assert (short.methods.dydit, short.evaluation) == (full.methods.dydit, full.evaluation)


@every_study
def test_all_methods_of_a_study_are_tuned_alike(path: Path) -> None:
    """And on what the model was made for."""
    full = read_study(path)
    dynamic, static = read_recipe(full.finetune.dynamic), read_recipe(full.finetune.static)
    if path.stem == "tradeoff-short":  # its table is of prunings that learned from the data alone
        dynamic = with_settings(dynamic, {"train.teacher_weight": 0.0})
    assert dynamic.train == static.train
    assert {dynamic.data, static.data, full.evaluation.judges[0]} == {full.data}
    assert read(full.model).lineage[0]["data"] == full.data


@every_recipe
def test_a_recipe_states_only_how_it_differs(path: Path) -> None:
    values = tomllib.loads(path.read_text())
    base = values.pop("base", None)
    assert base is not None or path.name in ("base.toml", "finetune.toml", "pretrain.toml")
    below = read_merged((path.parent / base).resolve()).values if base else {}
    for section, inside in values.items():
        if not isinstance(inside, dict):
            assert below.get(section) != inside, section
        for key in inside if isinstance(inside, dict) else ():
            assert below.get(section, {}).get(key) != inside[key], f"{section}.{key}"


SLOW, FAST = (2.5e-5, 50.0, 5000), (1e-4, 200.0, 1000)


@pytest.mark.parametrize(
    ("name", "steps", "complete", "more"),
    [
        *((f"S-2-{ratio}", 50_000, 0, SLOW if ratio > 0.6 else FAST) for ratio in (0.9, 0.7, 0.5, 0.3)),
        *((f"B-2-{ratio}", 100_000, 0, SLOW if ratio > 0.6 else FAST) for ratio in (0.9, 0.7, 0.5, 0.3)),
        ("XL-2-0.7", 150_000, 30_000, SLOW),
        *((f"XL-2-{ratio}", 200_000, 30_000, FAST) for ratio in (0.6, 0.5, 0.3)),
        ("XL-2-512-0.7", 150_000, 30_000, SLOW),
    ],
)
def test_the_papers_runs(name: str, steps: int, complete: int, more: tuple[float, float, int]) -> None:
    recipe = read_recipe(FOLDER / "imagenet" / f"{name}.toml")
    train, routing = recipe.train, recipe.routing
    assert routing.flops_ratio == float(name.rpartition("-")[2])
    assert (train.steps, routing.complete_steps) == (steps, complete)
    assert (train.lr, train.grad_limit, routing.warmup_steps) == more
    assert (routing.hold_steps, routing.weight, routing.noise_off_steps) == (100, 2.0, 0)
    assert (train.batch_size, train.weight_decay, train.ema_decay, train.timestep_strata) == (256, 0.0, 0.9999, 4)
    assert (train.lr_schedule, train.lr_warmup_steps, train.label_dropout) == ("constant", 0, 0.1)


def test_a_control_is_trained_as_its_model_is() -> None:
    for control, tuned in (
        ("imagenet/XL-2-control", "imagenet/XL-2-0.5"),
        ("digits/control", "digits/finetune"),
        ("fashion/control", "fashion/finetune"),
    ):
        assert read_recipe(control) == read_recipe(tuned)


def test_the_shipped_ones_are_found_by_name() -> None:
    assert read_recipe("imagenet/S-2-0.3").routing.flops_ratio == 0.3
    assert read_recipe("digits/ablations/sdt-only").routing.width == "off"
    assert read_recipe("digits/ablations/tdw-only").routing.tokens == "off"


def put(folder: Path, **files: str) -> Path:
    """Writes TOML files and returns the first."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder / f"{next(iter(files))}.toml"


def test_values_come_from_the_nearest_of_a_chain(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    put(tmp_path, bottom="data = 'latents:x'\n[train]\nsteps = 9\nlr = 1.0\nseed = 1\n[routing]\nweight = 5.0")
    put(tmp_path, middle="base = 'bottom.toml'\n[train]\nlr = 2.0\nseed = 2")
    recipe = read_recipe(put(tmp_path / "inner", top="base = '../middle.toml'\n[train]\nseed = 3"))
    assert isinstance(recipe, Recipe)
    train = recipe.train
    assert (train.steps, train.lr, train.seed, recipe.routing.weight, recipe.data) == (9, 2.0, 3, 5.0, "latents:x")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base = 'b.toml'", "b": "base = 'a.toml'"}, "b.toml: its bases run in a circle: a.toml -> b.toml -> a.toml"),
        ({"a": "base = 'a.toml'"}, "a.toml: its bases run in a circle: a.toml -> a.toml"),
        ({"a": "base = 'gone.toml'"}, "gone.toml; a base is the path of a recipe, relative to this one"),
        ({"a": "base = 'b.toml'", "b": "[train]\nlr = 1.0"}, "b.toml: 'train.steps' is missing"),
        ({"a": "base = 5"}, "a.toml: 'base' is 5; it must be the path of another recipe"),
        ({"a": "base = 'b.toml'", "b": "[train"}, "b.toml: not a readable TOML recipe"),
        (
            {"a": "base = 'b.toml'\n[train]\nlr = 1.0", "b": "[train]\nsteps = 5\nbatchsize = 1"},
            "b.toml: unknown key 'train.batchsize'; did you mean 'batch_size'?",
        ),
        ({"a": "base = 'b.toml'\n[train]\nlrr = 1", "b": "[train]\nsteps = 5"}, "a.toml: unknown key 'train.lrr'"),
        ({"a": "base = 'b.toml'\n[train]\nlr = 1.0", "b": "[train]\nsteps = 0"}, "b.toml: 'train.steps': input should be"),
        ({"a": "base = 'b.toml'", "b": "[training]\nsteps = 5"}, "b.toml: unknown key 'training'; did you mean 'train'?"),
        ({"a": "base = 'b.toml'\n[train]\nlr = 1.0", "b": "data = 'digits'"}, "a.toml: 'train.steps' is missing"),
        ({"a": "base = 'b.toml'\n[train]\nlr = 1.0", "b": "train = 5"}, "a.toml: 'train.steps' is missing"),
        ({"a": "base = 'b.toml'", "b": "train = 5"}, "b.toml: 'train': input should be a valid dictionary"),
    ],
)
def test_a_fault_is_told_with_the_file_that_it_stands_in(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DyditError) as error:
        read_recipe(put(tmp_path, **files))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_a_circle_is_seen_under_other_names_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DyditError, match=r"its bases run in a circle: a\.toml -> b\.toml -> a\.toml"):
        read_recipe(put(tmp_path, a="base = 'b.toml'", b=f"base = '../{tmp_path.name}/a.toml'"))


def test_a_base_lies_in_the_recipes_own_folders(tmp_path: Path) -> None:
    """Beside the recipe, below it, or in a folder beside its own; not where a recipe of somebody else's could point to."""
    for folder in ("mine/digits/deep", "mine/fashion", "others"):
        (tmp_path / folder).mkdir(parents=True)
        put(tmp_path / folder, below="[train]\nsteps = 9")
    mine = tmp_path / "mine"
    (mine / "digits" / "link.toml").symlink_to(tmp_path / "others" / "below.toml")
    for base in ("deep/below.toml", "../fashion/below.toml", "./deep/../deep/below.toml"):
        assert read_recipe(put(mine / "digits", top=f"base = '{base}'")).train.steps == 9
    for base in ("../../others/below.toml", f"{mine}/digits/deep/below.toml", "/dev/zero", "link.toml", "../..", "a\\u0000b"):
        with pytest.raises(DyditError) as error:
            read_recipe(put(mine / "digits", top=f'base = "{base}"'))
        assert str(error.value).startswith(f"{mine / 'digits' / 'top.toml'}: its base ")
        assert "is not in the recipes' own folders; a base lies beside the recipe, below it or" in str(error.value)


def test_a_shipped_recipe_is_a_base_by_its_name(tmp_path: Path) -> None:
    found = read_recipe(put(tmp_path, top="base = 'digits/finetune'\n[train]\nsteps = 7"))
    assert found == with_settings(read_recipe("digits/finetune"), {"train.steps": 7})
    assert read_study(put(tmp_path, top="base = 'digits/tradeoff-short'\nseeds = [4]")).seeds == (4,)
    with pytest.raises(DyditError, match=r"is not in the recipes' own folders"):
        read_recipe(put(tmp_path, top="base = '../digits/../../README'"))
    with pytest.raises(DyditError, match=r"a base is the path of a recipe, relative to this one, or a shipped one's name"):
        read_recipe(put(tmp_path, top="base = 'digits/finetunes'"))


def chain(length: int) -> dict[str, str]:
    """A recipe on so many bases, one on the other."""
    names = {f"r{i}": f"base = 'r{i + 1}.toml'" for i in range(length)}
    return {**names, f"r{length}": "[train]\nsteps = 9"}


def test_bases_without_end_are_one_line(tmp_path: Path) -> None:
    assert read_recipe(put(tmp_path, **chain(20))).train.steps == 9
    with pytest.raises(
        DyditError, match=r"r0\.toml: stands on more than 20 bases, one on the other; write some of them together"
    ):
        read_recipe(put(tmp_path, **chain(300)))


def test_what_is_no_recipe_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "long.toml").write_text("# " + "x" * 1_000_000)
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    for name, message in (
        ("pipe", "it is a pipe, not a regular file"),
        ("zero", "it is a device, not a regular file"),
        ("long", "it is over 1,000,000 bytes long"),
        ("deep", "it is nested too deeply"),
        ("x" * 300, "File name too long"),
    ):
        for path in (tmp_path / f"{name}.toml", put(tmp_path, top=f"base = '{name}.toml'")):
            with pytest.raises(DyditError) as error:
                read_recipe(path)
            other = "is not in the recipes' own folders" if (path.stem, name) == ("top", "zero") else message
            assert other in str(error.value)
            assert "\n" not in str(error.value)
    with pytest.raises(DyditError, match=r"--set data: its value is nested too deeply"):
        with_settings(read_recipe("digits/finetune"), ["data=" + "[" * 100_000])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lr=inf", "--set: 'train.lr': input should be a finite number, not inf"),
        ("train.lr=nan", "--set: 'train.lr': input should be a finite number, not nan"),
        ("train.grad_limit=inf", "'train.grad_limit': input should be a finite number"),
        ("routing.weight=inf", "'routing.weight': input should be a finite number"),
        ("train.seed=9223372036854775808", "'train.seed': the number must lie between"),
        ("train.seed=-1", "'train.seed': input should be greater than or equal to 0, not -1"),
        (f"train.batch_size={10**60}", "'train.batch_size': the number must lie between"),
        (f"train.lr={10**400}", "'train.lr': the number must lie between"),
        ("train.steps=" + repr("many" * 100), "'train.steps': input should be a valid integer"),
    ],
)
def test_numbers_are_finite_and_have_64_bits(setting: str, message: str) -> None:
    with pytest.raises(DyditError) as error:
        with_settings(read_recipe("digits/finetune"), [setting])
    assert message in str(error.value)
    assert len(str(error.value)) < 250
    with pytest.raises(DyditError, match=r"'seeds\.0': input should be less than or equal to 9223372036854775807"):
        read_study("digits/tradeoff", [f"seeds=[{2**63}]"])


def test_a_setting_cannot_change_the_base() -> None:
    with pytest.raises(DyditError, match="--set: unknown key 'base'"):
        with_settings(read_recipe("digits/finetune"), ["base=other.toml"])

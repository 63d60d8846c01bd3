"""What made a thing is stored with it: the command line as it was given, that of the beginning where a run was continued."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from dydit_cli.checkpoint.read import read
from dydit_cli.profiling.profile import profile
from dydit_cli.provenance import as_command, command_line, made_by, made_with
from dydit_cli.train.run import pretrain, resolve_recipe
from tests.cli.conftest import FAST
from tests.cli.report.outline import Outline
from tests.processes import dydit


def run(*arguments: object) -> str:
    """The command, which must end well, as it is to be stored."""
    result = dydit(*arguments)
    assert result.exit_code == 0, result.output
    return as_command([str(argument) for argument in arguments])


def stored(file: Path) -> Any:
    return json.loads(file.read_text())["command"]


def test_the_line_is_quoted_and_without_what_is_of_the_occasion() -> None:
    assert as_command(["sample", "a b", "--force", "--classes", "0,1", "--json"]) == "dydit sample 'a b' --classes 0,1"


def test_it_is_there_within_the_command_alone() -> None:
    assert (command_line(), made_by()) == (None, {})
    with made_with("dydit demo"):
        assert made_by() == {"command": "dydit demo"}
        with made_with(None):
            assert made_by() == {}
        assert command_line() == "dydit demo"
    assert command_line() is None


def test_the_steps_of_a_model_have_theirs(room: Path) -> None:
    _, convert, finetune = read(room / "tuned").lineage
    assert convert["command"] == f"dydit convert {room / 'static'} {room / 'converted'}"
    assert finetune["command"].startswith(f"dydit finetune {room / 'converted'} --lambda 0.5 --steps 3 --batch-size 8 --out")
    assert f"`{finetune['command']}`" in (room / "tuned" / "README.md").read_text()
    assert "command" not in dydit("inspect", room / "tuned").stdout


def test_each_command_stores_its_own(room: Path, tmp_path: Path) -> None:
    model, quick = room / "static", ["--steps", 2, *FAST]
    for file, arguments in (
        ("p/profile.json", ["profile", model, "--tome", 0.25, "--images", 2, *quick, "--out", tmp_path / "p"]),
        ("c/compare.json", ["profile", model, room / "tuned", "--images", 1, *quick, "--out", tmp_path / "c"]),
        ("w/width.json", ["profile", room / "tuned", "--width-only", "--out", tmp_path / "w"]),
        ("s/samples.json", ["sample", model, "--classes", "0-2", "--num", 3, *quick, "--out", tmp_path / "s"]),
        ("n/samples.json", ["sample", model, "--npz", "--shard-size", 2, "--num", 3, *quick, "--out", tmp_path / "n"]),
        (
            "l/losses.json",
            ["losses", model, "--images", 2, "--timesteps", 2, "--maps-at", 9, *FAST, "--out", tmp_path / "l"],
        ),
        ("e.json", ["evaluate", tmp_path / "s", "--features", "digits", *FAST, "--out", tmp_path / "e.json"]),
    ):
        assert run(*arguments) == stored(tmp_path / file), file
    printed = dydit("bench", model, "--tome", 0.5, "--measure", 1, "--repeats", 1, *FAST, "--json").stdout
    assert json.loads(printed)["command"].startswith(f"dydit bench {model} --tome 0.5 --measure 1")
    printed = dydit("evaluate", tmp_path / "s", "--features", "digits", *FAST, "--json").stdout
    assert json.loads(printed)["command"] == f"dydit evaluate {tmp_path / 's'} --features digits --device cpu"
    assert "command" not in profile(model, images=1, device="cpu").summary


def test_force_makes_the_same_files_again(room: Path, tmp_path: Path) -> None:
    arguments = ["profile", room / "tuned", "--images", 1, "--steps", 2, *FAST, "--out", tmp_path / "p"]
    run(*arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()}
    run(*arguments, "--force", "--json")
    assert {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()} == before


def test_of_an_array_the_command_that_began_it(room: Path, tmp_path: Path) -> None:
    arguments = ["sample", room / "static", "--npz", "--num", 3, "--steps", 1, *FAST, "--out", tmp_path / "n"]
    begun = run(*arguments)
    (tmp_path / "n" / "samples.npz").unlink()
    run(*arguments, "--batch", 1)
    assert stored(tmp_path / "n" / "samples.json") == begun


def test_of_a_training_the_command_that_began_it(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run that --resume brings to its end has the very config.json of one that was not interrupted."""
    out, arguments = tmp_path / "a" / "out", ["finetune", room / "converted", "--steps", 4, "--batch-size", 8, *FAST, "--out"]
    monkeypatch.setattr("dydit_cli.cli.training.Display.step", lambda self, metrics: signal.raise_signal(signal.SIGTERM))
    assert dydit(*arguments, out).exit_code == 128 + signal.SIGTERM
    monkeypatch.undo()
    begun = as_command([*map(str, arguments), str(out)])
    assert stored(out / "state" / "run.json") == begun
    run("finetune", "--resume", out, *FAST)
    resumed = (out / "config.json").read_bytes()
    run(*arguments, out, "--force")
    assert (out / "config.json").read_bytes() == resumed
    assert read(out).lineage[-1]["command"] == begun


def test_of_a_training_with_more_steps_both_commands(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["finetune", room / "static", "--steps", 2, "--batch-size", 8, "--set", "train.keep_state=true", *FAST]
    lines = [run(*arguments, "--out", out), run("finetune", "--resume", out, "--steps", 3, *FAST)]
    assert read(out).lineage[-1]["command"].splitlines() == lines
    assert all(f"\n   `{line}`" in (out / "README.md").read_text() for line in lines)
    run("report", out, "--out", tmp_path / "page.html")
    text = Outline.of((tmp_path / "page.html").read_text()).text
    assert text.splitlines().count("dydit finetune --resume out --steps 3 --device cpu") == 1


def test_what_python_began_has_no_command_when_the_command_line_ends_it(tmp_path: Path) -> None:
    recipe = resolve_recipe("digits/pretrain", steps=3, settings={"train.batch_size": 8})
    pretrain(recipe, tmp_path / "out", device="cpu", should_stop=lambda: True)
    run("pretrain", "--resume", tmp_path / "out", *FAST)
    assert "command" not in read(tmp_path / "out").lineage[-1]


def test_of_a_study_the_command_that_first_asked_for_it_as_it_is(room: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        f'model = "{room / "static"}"\n[finetune]\nsteps = 1\n[evaluation]\nimages = 12\nsteps = 1\nheld_out = 1\n'
    )
    few = ["--set", "methods.dydit=[]", "--set", "methods.control=false", "--no-time", *FAST]
    arguments = ["study", tmp_path / "study.toml", "--out", tmp_path / "out", *few]
    first = run(*arguments, "--set", "seeds=[0]")
    run(*arguments, "--set", "seeds=[0]", "--set", "keep_checkpoints=false")
    assert stored(tmp_path / "out" / "study.json") == stored(tmp_path / "out" / "recipe.json") == first
    second = run(*arguments, "--set", "seeds=[0,1]")
    assert stored(tmp_path / "out" / "study.json") == second
    assert not [file for file in (tmp_path / "out" / "rows").glob("*.json") if "command" in json.loads(file.read_text())]


def test_a_report_shows_the_commands_as_they_were_given(room: Path, tmp_path: Path) -> None:
    arguments = ["sample", room / "static", "--num", 2, "--steps", 1, "--tome", 0.25, "--out", tmp_path / "some samples", *FAST]
    run(*arguments)
    run("report", tmp_path / "some samples", room / "profile", "--out", tmp_path / "page.html")
    text = Outline.of((tmp_path / "page.html").read_text()).text
    for line in (
        "dydit convert static converted",
        "dydit finetune converted --lambda 0.5 --steps 3 --batch-size 8 --out tuned --device cpu",
        "dydit profile tuned --out profile --images 3 --steps 3 --device cpu",
        "dydit sample static --num 2 --steps 1 --tome 0.25 --out 'some samples' --device cpu",
    ):
        assert line in text.splitlines(), line
    assert str(tmp_path) not in text

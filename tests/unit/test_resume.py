"""A run that was interrupted, in whatever way, ends as if it had not been."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dydit_cli.artifacts.run import StepMetrics
from dydit_cli.checkpoint.read import read
from dydit_cli.cli.app import app
from dydit_cli.cli.training import Display
from dydit_cli.errors import DyditError
from dydit_cli.train.loop import TrainResult
from dydit_cli.train.recipe import Recipe, recipe_from_dict, with_settings
from dydit_cli.train.run import finetune, pretrain, resume
from dydit_cli.train.run_folder import StateFolder
from tests.conftest import no_room
from tests.kill_resume import RECIPE, kill_and_resume, make_start, result_of

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "start")


def a_recipe(**settings: object) -> Recipe:
    """With everything in it that a state could forget."""
    values = {
        "train.steps": STEPS,
        "train.save_every": 3,
        "train.lr_warmup_steps": 4,
        "train.grad_limit": 40.0,
        "routing.warmup_steps": 6,
        "routing.noise_off_steps": 4,
        "routing.complete_steps": 8,
        "routing.complete_share": 0.5,
        "routing.teacher_weight": 0.5,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return with_settings(recipe_from_dict(RECIPE, "test"), values)


def run(start: Path, out: Path, until: int | None = None, recipe: Recipe | None = None, **options: Any) -> TrainResult:
    """Fine-tunes; after `until` steps it is asked to stop."""
    seen: list[StepMetrics] = []
    return finetune(
        start,
        out,
        recipe=recipe or a_recipe(),
        device="cpu",
        on_step=seen.append,
        should_stop=lambda: bool(seen) and seen[-1].step == until,
        **options,
    )


@pytest.fixture(scope="module")
def calm(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    out = tmp_path_factory.mktemp("calm") / "out"
    assert run(start, out).steps == STEPS
    return out


def test_a_finished_run_leaves_no_state(calm: Path) -> None:
    assert sorted(path.name for path in calm.iterdir()) == [
        "README.md", "config.json", "metrics.jsonl", "model.safetensors", "recipe.json",
    ]  # fmt: skip
    with pytest.raises(DyditError, match="holds no unfinished run to resume"):
        resume(calm)


@pytest.mark.parametrize("stops", [(5,), (1, 2, 7, 11), (3, 6)])
def test_interrupted_and_continued_is_bit_for_bit_the_same(start: Path, calm: Path, tmp_path: Path, stops: tuple[int]) -> None:
    out = tmp_path / "out"
    for until in stops:
        result = run(start, out, until)
        assert (result.steps, result.interrupted) == (until, True)
        assert read(out).lineage[-1]["steps"] == until  # what was learned so far is a model too
    assert not run(start, out).interrupted
    assert result_of(out) == result_of(calm)
    assert (out / "config.json").read_bytes() == (calm / "config.json").read_bytes()
    assert not (out / "state").exists()


def test_the_state_is_data_and_the_last_few_are_kept(start: Path, tmp_path: Path) -> None:
    run(start, tmp_path / "out", 11, a_recipe(train__keep=2))
    state = tmp_path / "out" / "state"
    assert sorted(path.name for path in state.iterdir()) == ["run.json", "step-00000009", "step-00000011"]
    files = [path.name for path in state.rglob("*") if path.is_file()]
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}


def test_the_log_of_steps_that_will_be_repeated_is_cut(start: Path, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(start, out, 8)
    shutil.rmtree(out / "state" / "step-00000008")  # as after a kill in the ninth step, with one line half-written
    with open(out / "metrics.jsonl", "a") as log:
        log.write('{"step": 9, "lo')
    assert StateFolder(out).steps() == [6]
    run(start, out)
    assert result_of(out) == result_of(calm)


def test_a_log_that_is_too_short_is_named(start: Path, tmp_path: Path) -> None:
    run(start, tmp_path / "out", 8)
    (tmp_path / "out" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DyditError, match=r"metrics.jsonl: lacks lines up to step 8"):
        run(start, tmp_path / "out")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tensors.safetensors", truncate),
        ("tensors.safetensors", Path.unlink),
        ("facts.json", truncate),
        ("facts.json", Path.unlink),
    ],
)
def test_a_damaged_state_is_passed_over(start: Path, calm: Path, tmp_path: Path, name: str, damage: Any) -> None:
    out, notes = tmp_path / "out", list[str]()
    run(start, out, 8)
    damage(out / "state" / "step-00000008" / name)
    (out / "state" / ".step-00000009.abcd1234.tmp").mkdir()  # half-written
    begun: list[int] = []
    run(start, out, on_note=notes.append, on_begin=begun.append)
    assert begun == [6]
    assert len(notes) == 1
    assert "step-00000008: damaged, so an older state is taken" in notes[0]
    assert result_of(out) == result_of(calm)


def test_a_kill_before_anything_was_saved_begins_again(start: Path, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".recipe.json.abcd1234.tmp.json").write_text("{")
    (out / "recipe.json").write_text("{}")
    (out / ".state.abcd1234.tmp").mkdir()
    run(start, out)
    assert result_of(out) == result_of(calm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train__lr": 2e-3},
            "holds an unfinished run with train.lr 0.001, and now it is 0.002; choose another --out, or start",
        ),
        ({"train__steps": 13}, "train.steps 12, and now it is 13"),
        ({"routing__flops_ratio": 0.4}, "routing.flops_ratio 0.5, and now it is 0.4"),
        ({"train__seed": 4}, "train.seed 0, and now it is 4"),
    ],
)
def test_another_recipe_is_refused(start: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    run(start, tmp_path / "out", 2)
    with pytest.raises(DyditError) as error:
        run(start, tmp_path / "out", recipe=a_recipe(**settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert StateFolder(tmp_path / "out").steps() == [2]


def test_other_weights_are_refused_and_moved_ones_are_not(start: Path, calm: Path, tmp_path: Path) -> None:
    run(start, tmp_path / "out", 2)
    with pytest.raises(DyditError, match="holds an unfinished run with start "):
        run(calm, tmp_path / "out")
    shutil.copytree(start, tmp_path / "moved")
    resume(tmp_path / "out", tmp_path / "moved", device="cpu")
    assert result_of(tmp_path / "out") == result_of(calm)


def test_force_starts_anew(start: Path, tmp_path: Path) -> None:
    run(start, tmp_path / "out", 8)
    run(start, tmp_path / "out", 2, a_recipe(train__seed=5), force=True)
    assert StateFolder(tmp_path / "out").steps() == [2]
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def test_pretraining_resumes_too(tmp_path: Path) -> None:
    model = {
        "input_size": 8,
        "patch_size": 4,
        "in_channels": 1,
        "hidden_size": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 10,
    }
    recipe = recipe_from_dict({"model": model, "train": {"steps": 6, "batch_size": 4, "lr": 1e-3}}, "test")
    seen: list[StepMetrics] = []
    pretrain(recipe, tmp_path / "a", device="cpu")
    pretrain(recipe, tmp_path / "b", device="cpu", on_step=seen.append, should_stop=lambda: len(seen) == 3)
    resume(tmp_path / "b", device="cpu")
    assert result_of(tmp_path / "a") == result_of(tmp_path / "b")


def test_a_full_disk_is_one_line_and_keeps_the_last_state(start: Path, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(start, out, 5)
    with (
        no_room(30_000),
        pytest.raises(DyditError, match=r"step-00000006: cannot be written: .*[Tt]oo large.*; make room") as error,
    ):
        run(start, out)
    assert "\n" not in str(error.value)
    assert StateFolder(out).steps() == [5, 3]
    assert not list((out / "state").glob(".*"))
    run(start, out)
    assert result_of(out) == result_of(calm)


def test_the_guard_stops_saved_with_its_reason(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = a_recipe(train__steps=150, train__grad_limit=1e-9, train__batch_size=2, train__save_every=1000)
    with pytest.raises(DyditError) as error:
        run(start, out, recipe=recipe)
    assert "100 steps in a row had a gradient norm over 1e-09 or not finite; lower train.lr" in str(error.value)
    assert str(error.value).endswith(f"step 100 is saved in {out}")
    assert StateFolder(out).steps() == [100]
    assert read(out).lineage[-1]["steps"] == 100
    assert run(start, out, recipe=recipe).skipped == 150  # another hundred are not over


def dydit(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_continue(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    options = ["--steps", 8, "--batch-size", 8, "--device", "cpu"]
    assert dydit("finetune", start, "--out", tmp_path / "calm", *options).exit_code == 0
    shown = Display.step

    def interrupting(display: Display, metrics: StepMetrics) -> None:
        shown(display, metrics)
        if metrics.step == 3:
            signal.raise_signal(number)

    out = tmp_path / "a run"
    with monkeypatch.context() as patched:
        patched.setattr(Display, "step", interrupting)
        result = dydit("finetune", start, "--out", out, *options)
    assert result.exit_code == 128 + number
    assert "interrupted, saved" in result.stdout
    (command,) = [line.removeprefix("continue with: ") for line in result.stdout.splitlines() if "continue with" in line]
    assert command == f"dydit finetune --resume {shlex.quote(str(out))}"
    again = dydit(*shlex.split(command)[1:], "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert f"continuing {out} after step 3 of 8" in again.stderr
    assert "images/s" in again.stdout
    assert result_of(out) == result_of(tmp_path / "calm")


def test_mistakes_with_resume(start: Path, calm: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--resume", calm], "holds no unfinished run to resume"),
        (["--resume", calm, "--lr", 1], "--resume continues a run as it was asked for; leave --lr out"),
        (["--resume", calm, "--out", tmp_path / "x"], "leave --out out"),
        ([start], "--out is missing"),
        (["--out", tmp_path / "x"], "CKPT is missing"),
    ):
        result = dydit("finetune", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_five_kills(tmp_path: Path) -> None:
    result = kill_and_resume(5, tmp_path)
    assert result["kills"] == 5
    assert result["killed_with_a_state"] >= 1
    assert json.dumps(result)

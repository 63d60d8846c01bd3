"""A run that was interrupted, in whatever way, ends as if it had not been."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dydit_cli.artifacts.run import StepMetrics
from dydit_cli.checkpoint.read import read
from dydit_cli.cli.app import app
from dydit_cli.cli.training import Display
from dydit_cli.errors import DyditError
from dydit_cli.files import claim
from dydit_cli.train import run as training
from dydit_cli.train.loop import TrainResult
from dydit_cli.train.recipe import Recipe, recipe_from_dict, with_settings
from dydit_cli.train.run import finetune, pretrain, resume
from dydit_cli.train.run_folder import RunFolder
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
        "train.teacher_weight": 0.5,
        "train.block_weight": 0.5,
        "train.optimizer": "muon",
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
    assert RunFolder(out).states.steps() == [6]
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
    (out / "state").mkdir()
    (out / "state" / ".run.json.abcd1234.tmp.json").write_text("{")
    run(start, out)
    assert result_of(out) == result_of(calm)


@pytest.mark.parametrize("name", ["state/novel.txt", "statement.txt", "recipe.json.bak"])
def test_what_only_looks_like_a_beginning_is_left_alone(start: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(DyditError, match="already exists; choose another name"):
        run(start, tmp_path / "out")
    assert file.read_text() == "mine"
    assert len(list((tmp_path / "out").rglob("*"))) == len(Path(name).parts)


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
    run(start, tmp_path / "out", 5)
    with pytest.raises(DyditError) as error:
        run(start, tmp_path / "out", recipe=a_recipe(**settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert RunFolder(tmp_path / "out").states.steps() == [5, 3]


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
    assert RunFolder(tmp_path / "out").states.steps() == [2]
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
    assert RunFolder(out).states.steps() == [5, 3]
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
    assert RunFolder(out).states.steps() == [100]
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


CALIBRATED = {"routing__calibrate": True, "calibration__steps": 2}


def test_a_kill_before_calibrating_loses_nothing(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is not finished before it is calibrated: neither the command nor --resume take it for one."""
    assert run(start, tmp_path / "calm", recipe=a_recipe(**CALIBRATED)).calibration is not None

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for name, again in (
        ("command", lambda out: run(start, out, recipe=a_recipe(**CALIBRATED))),
        ("resume", lambda out: resume(out, device="cpu")),
    ):
        out = tmp_path / name
        with monkeypatch.context() as patched:
            patched.setattr(training, "calibrate", killed)
            with pytest.raises(KeyboardInterrupt):
                run(start, out, recipe=a_recipe(**CALIBRATED))
        assert not (out / "config.json").exists()
        result = again(out)
        assert (result.steps, result.calibration is not None) == (STEPS, True)
        assert result_of(out) == result_of(tmp_path / "calm")
        assert [entry["action"] for entry in read(out).lineage] == ["finetune", "calibrate"]
        assert not (out / "state").exists()


def test_an_unfinished_run_may_still_be_calibrated(start: Path, tmp_path: Path) -> None:
    """And so may one that an older dydit began, whose run.json says nothing of it."""
    run(start, tmp_path / "calm", recipe=a_recipe(**CALIBRATED))
    out = tmp_path / "out"
    run(start, out, 5)
    file = out / "state" / "run.json"
    facts = {name: value for name, value in json.loads(file.read_text()).items() if "calibrat" not in name}
    file.write_text(json.dumps({name: value for name, value in facts.items() if name != "routing.tokens"}))
    run(start, out, recipe=a_recipe(**CALIBRATED))
    assert result_of(out) == result_of(tmp_path / "calm")


def longer(steps: int, **settings: object) -> Recipe:
    """Nothing in it depends on when the run ends, and the last state is kept."""
    fixed = {"train__lr_schedule": "constant", "train__lr_warmup_steps": 1, "routing__noise_off_steps": 0}
    return a_recipe(train__steps=steps, **{**fixed, "train__keep_state": True, **settings})


def test_a_finished_run_can_be_given_more_steps(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(start, tmp_path / "long", recipe=longer(6))
    assert run(start, out, recipe=longer(4)).steps == 4
    kept = [path.name for path in (out / "last-state").iterdir()]
    assert sorted(kept) == ["run.json", "step-00000004"]
    assert not (out / "state").exists()
    for again in (lambda: resume(out), lambda: run(start, out, recipe=longer(4))):
        with pytest.raises(DyditError, match=r"holds no unfinished run|already exists"):
            again()
    result = dydit("finetune", "--resume", out, "--steps", 6, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert f"continuing {out} after step 4 of 6" in result.stderr
    assert result_of(out) == result_of(tmp_path / "long")
    assert read(out).lineage[-1]["steps"] == json.loads((out / "recipe.json").read_text())["train"]["steps"] == 6


def test_more_steps_by_the_same_call_and_of_an_unfinished_run(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(start, tmp_path / "long", recipe=longer(8))
    run(start, out, 2, recipe=longer(4))
    assert resume(out, steps=6, device="cpu").steps == 6
    assert run(start, out, 7, recipe=longer(8)).interrupted
    run(start, out, recipe=longer(8))
    assert result_of(out) == result_of(tmp_path / "long")


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        ({"train__lr_schedule": "cosine"}, 9, "train.steps 5, and now it is 9: its learning rate falls to 0"),
        ({"routing__noise_off_steps": 2}, 9, "its routers' noise fades over the last 2 steps (routing.noise_off_steps)"),
        ({}, 3, "train.steps 5, and now it is 3: 5 steps are taken already"),
        ({"train__keep_state": False}, 9, "holds no state to take more steps from; a run keeps its last one with --set"),
    ],
)
def test_what_would_not_be_the_longer_run_is_refused(
    start: Path, tmp_path: Path, settings: dict[str, Any], steps: int, message: str
) -> None:
    out = tmp_path / "out"
    run(start, out, recipe=longer(5, **settings))
    before = result_of(out)
    refused = dydit("finetune", "--resume", out, "--steps", steps)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert message in refused.stderr
    assert result_of(out) == before


def test_a_kept_state_that_is_damaged_is_not_taken_for_none(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(start, out, recipe=longer(2))
    truncate(out / "last-state" / "step-00000002" / "tensors.safetensors")
    with pytest.raises(DyditError, match="its state is damaged; start anew with --force"):
        resume(out, steps=4, device="cpu")
    run(start, out, recipe=longer(1, train__keep_state=False), force=True)
    assert not (out / "last-state").exists()


def test_two_processes_do_not_train_into_one_folder(start: Path, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def another(metrics: StepMetrics) -> None:
        if metrics.step == 2:
            for options in ([], ["--force"]):
                refused = dydit("finetune", start, "--out", out, "--device", "cpu", *options)
                assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
                assert f"{out}: another process of dydit is writing it; wait for that one, or" in refused.stderr

    finetune(start, out, recipe=a_recipe(), device="cpu", on_step=another)
    assert result_of(out) == result_of(calm)
    assert not list(tmp_path.glob(".out*"))


def hold(file: Path, held: Any) -> None:
    with claim(file) as mine:
        assert mine
        held.set()
        time.sleep(60)


def test_a_lock_ends_with_its_process(start: Path, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(start, out, 5)
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / ".out.lock", held))
    process.start()
    assert held.wait(60)
    with pytest.raises(DyditError, match="another process of dydit is writing it"):
        run(start, out)
    process.kill()
    process.join()
    assert (tmp_path / ".out.lock").exists()
    run(start, out)
    assert result_of(out) == result_of(calm)


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
    assert result["kills"] >= 5
    assert result["killed_with_a_state"] >= 1
    assert json.dumps(result)

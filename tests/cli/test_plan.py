"""`dydit plan`: what it says is what is then measured, it writes nothing, and it refuses what the command would."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.cli.commands import plan as command
from dydit_cli.compress.convert import convert
from dydit_cli.costs import plan as machine
from dydit_cli.costs import training
from dydit_cli.costs.memory import LiveBytes, forward_memory, training_memory
from dydit_cli.costs.plan import Output, Plan
from dydit_cli.data.load import load_data
from dydit_cli.diffusion.process import process_of
from dydit_cli.distributed import Distributed
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import build_model, with_routers
from dydit_cli.train.batch import TrainingBatches
from dydit_cli.train.loop import frozen
from dydit_cli.train.recipe import Recipe, recipe_from_dict
from dydit_cli.train.step import Trainer
from tests.cli.conftest import FAST, SMALL
from tests.cli.test_readme import pictures_and_vae
from tests.conftest import FAMILIES
from tests.processes import dydit

CPU = torch.device("cpu")
WIDE = replace(SMALL, hidden_size=96, depth=3)


def a_recipe(train: dict[str, Any], routing: dict[str, Any]) -> Recipe:
    return recipe_from_dict({"train": {"steps": 4, "batch_size": 32, **train}, "routing": routing}, "test")


@pytest.mark.parametrize(
    ("config", "train", "routing"),
    [
        (WIDE, {}, {}),
        (with_routers(WIDE), {}, {}),
        (with_routers(WIDE), {"gradient_checkpointing": True}, {}),
        (with_routers(WIDE), {"accumulation": 4}, {}),
        (with_routers(WIDE), {"optimizer": "muon", "teacher_weight": 1.0, "block_weight": 0.1}, {}),
        (with_routers(WIDE), {}, {"complete_steps": 4}),
        (with_routers(WIDE), {}, {"complete_steps": 4, "complete_share": 0.25}),
        (with_routers(WIDE, budgets=(0.5, 1.0)), {}, {"largest_ratio": 1.0}),
    ],
    ids=["static", "dynamic", "checkpointing", "accumulation", "taught, by muon", "complete", "a share of it", "range"],
)
def test_a_steps_memory_is_what_a_real_step_holds(config: ModelConfig, train: dict[str, Any], routing: dict[str, Any]) -> None:
    recipe = a_recipe(train, routing)
    with LiveBytes() as live:
        model = build_model(config)
        teacher = frozen(model) if recipe.train.teacher_weight else None
        trainer, batches = Trainer(model, recipe, Distributed(), teacher), TrainingBatches(load_data("digits"), config, recipe)
        for step in range(2):
            trainer.step(batches(step), step)
    batch = replace(TrainingBatches(load_data("digits"), config, recipe)(0), complete=None)
    part = batch.select(slice(0, 32 // recipe.train.accumulation))
    seen = training.complete_part(recipe, Checkpoint(config, {}))
    memory = training_memory(config, recipe, None if teacher is None else config, part, seen, CPU)
    memory.pop("gaps between tensors")  # of the allocator, not of tensors
    assert sum(memory.values()) == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_evaluations_memory_is_what_a_real_one_holds(family: str) -> None:
    config = FAMILIES[family]
    with LiveBytes() as live, torch.no_grad():
        model = build_model(config).eval()
        x, t = torch.zeros(64, *config.sample_shape), torch.full((64,), process_of(config).span[1])
        model(x, t, torch.zeros(64, dtype=torch.long))
    memory = forward_memory(with_routers(config), 64, CPU)
    static = forward_memory(config, 64, CPU)
    assert static["activations"] == memory["activations"]
    assert static["weights"] + static["activations"] == pytest.approx(live.peak, rel=0.15)


MEASURED = """
import resource, sys
from dydit_cli.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code
scale = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale, file=sys.stderr)
"""


@pytest.mark.skipif(not machine.STATM.is_file(), reason="what a process holds is read from /proc")
def test_a_finetunings_memory_is_what_the_process_takes(tmp_path: Path) -> None:
    """Of a batch that is large enough for libraries not to matter."""
    convert("digits-dit", tmp_path / "converted")
    words = [
        "finetune",
        str(tmp_path / "converted"),
        "--steps",
        "2",
        "--batch-size",
        "256",
        "--out",
        str(tmp_path / "out"),
        *FAST,
    ]
    results = [
        subprocess.run([sys.executable, "-c", MEASURED, *begin, *words, "--json"], capture_output=True, text=True, check=True)
        for begin in (["plan"], [])
    ]
    planned = json.loads(results[0].stdout)["plan"]
    assert planned["peak_memory"] == pytest.approx(int(results[1].stderr.splitlines()[-1]), rel=0.15)
    assert planned["fits"]
    assert planned["writes"][0]["state"] == "new"
    assert planned["writes"][0]["bytes"] == pytest.approx((tmp_path / "out/model.safetensors").stat().st_size, rel=0.15)


@pytest.mark.parametrize(
    "words",
    [
        "finetune {room}/converted --steps 2 --batch-size 8 --out out",
        "pretrain digits/pretrain --steps 2 --set train.batch_size=4 --out out",
        "sample {room}/converted --num 2 --steps 2 --cache fora:2 --out out",
        "sample {room}/static --num 2 --steps 2 --npz --out out",
        "profile {room}/converted {room}/tuned --images 2 --steps 2 --out out",
        "evaluate {room}/static --features digits --num 4 --steps 2 --out out.json",
        "convert {room}/static out",
    ],
)
def test_nothing_is_written(words: str, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = [] if words.startswith("convert") else FAST
    done = dydit("plan", *words.format(room=room).split(), *own, "--json")
    assert done.exit_code == 0, done.output
    planned = json.loads(done.stdout)["plan"]
    assert planned["seconds"] > 0
    assert planned["peak_memory"] == sum(planned["memory"].values()) > 0
    assert planned["writes"][0]["path"].startswith("out")
    assert not list(tmp_path.iterdir())


def test_an_encoding_counts_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures_and_vae(tmp_path / "images", tmp_path / "vae", classes=2)
    words = ["encode", "images", "out", "--vae", "vae", "--size", 32, "--shard-size", 4, *FAST]
    fresh = json.loads(dydit("plan", *words, "--json").stdout)["plan"]
    assert fresh["writes"] == [{"path": "out", "bytes": 8 * 2 * 2 * 4 * 4 * 4 * 4, "state": "new", "why": None}]
    assert fresh["memory"]["a shard"] == fresh["disk"] // 2
    assert not (tmp_path / "out").exists()
    assert dydit(*words).exit_code == 0
    done = json.loads(dydit("plan", *words, "--json").stdout)["plan"]
    assert (done["seconds"], done["writes"][0]["state"]) == (0, "continued")
    assert "size 33: vae makes a latent pixel of 8" in dydit("plan", *words, "--size", 33).stderr


def test_what_is_there_is_told(room: Path, tmp_path: Path) -> None:
    words = ["plan", "convert", room / "static", room / "converted"]
    assert "already exists; choose another name or replace it with --force" in dydit(*words).stdout
    assert "would not begin" in dydit(*words).stdout
    assert json.loads(dydit(*words, "--force", "--json").stdout)["plan"]["writes"][0]["state"] == "replaced"
    assert "nothing is there" in " ".join(dydit("plan", "convert", room / "static", tmp_path / "new").stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("greet Ada", "no command 'greet' to plan; dydit --help lists them"),
        ("finetun x", "no command 'finetun' to plan; did you mean finetune?"),
        ("plan finetune", "no command 'plan' to plan"),
        ("finetune x --stepps 3", "No such option: --stepps"),
        ("sample nothing --out out", "nothing: no such checkpoint"),
        ("finetune digits-dit --flops-ratio 2 --out out", "FLOPs ratio 2; it must be over 0 and at most 1"),
        ("inspect", "Missing argument 'PATH'"),
    ],
)
def test_a_mistake_is_the_commands_own(words: str, message: str) -> None:
    refused = dydit("plan", *words.split())
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert message in refused.stderr


def test_a_command_without_a_plan_is_not_run(tmp_path: Path) -> None:
    done = dydit("plan", "export", "digits-dit", tmp_path / "out", "--format", "diffusers")
    assert done.stdout == "dydit export has no plan: it takes little, or says itself what it takes\n"
    assert json.loads(dydit("plan", "profile", "--table", "--json").stdout) == {"command": "profile", "plan": None}
    assert not list(tmp_path.iterdir())


def test_a_training_that_cannot_fit_is_refused(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "total_memory", lambda device: 10_000)
    refused = dydit("finetune", room / "converted", "--steps", 2, "--out", tmp_path / "out", *FAST)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "averages take 0.0 GB, and cpu has 0.0 GB in all" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_whether_it_fits(tmp_path: Path) -> None:
    fits = Plan("cpu", {"weights": 60, "activations": 30}, 100, 200, 1.0, "", [Output(str(tmp_path / "out"), 10)])
    assert fits.fits
    assert command.verdict(fits) == "fits: needs 90 B of memory, and 100 B of 200 B are free"
    tight = replace(fits, free=80)
    assert not tight.fits
    assert command.verdict(tight) == "does not fit: needs 90 B of memory, and 80 B of 200 B are free"
    full = replace(fits, scratch=10**18)
    assert not full.fits
    assert command.verdict(full).startswith("does not fit: needs 1000000.00 TB of disk")
    assert "cannot be told here" in command.verdict(replace(fits, free=0))

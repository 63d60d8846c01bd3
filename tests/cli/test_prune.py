"""`dydit prune`, and the other commands on what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.model.families.dit import DiT, DyDiT, DyDiTConfig
from dydit_cli.model.macs import static_macs
from tests.cli.conftest import FAST, SMALL
from tests.conftest import randomize
from tests.processes import dydit


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    write(Checkpoint.of(randomize(DiT(SMALL), scale=0.1), []), folder / "static")
    write(Checkpoint.of(randomize(DyDiT(DyDiTConfig.from_static(SMALL)), scale=0.1), []), folder / "dynamic")
    pruned = dydit("prune", folder / "static", folder / "pruned", *FAST)
    assert pruned.exit_code == 0, pruned.output
    return folder


def test_the_example_in_the_help_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = " ".join(dydit("prune", "--help").stdout.replace("│", " ").split())
    example = "dydit prune digits-dit runs/digits-pruned --method magnitude --keep 0.5"
    assert f"Example: {example}" in text
    shown = dydit(*example.split()[1:])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.stdout.split())
    for part in (
        "blocks 6 of 6: 0, 1, 2, 3, 4, 5",
        "heads 3 of 6 in each block (attention width 48 of 96)",
        "MLP channels 192 of 384 in each block",
        "parameters 730,370 of 1,064,162",
        "MACs 24.31 MMACs of 47.91 MMACs per forward and image: 0.508",
        "0.500 of their MACs (asked for: 0.5)",
        "next: dydit finetune runs/digits-pruned --out DIR",
    ):
        assert part in words
    assert "dydit finetune runs/digits-pruned --out runs/digits-pruned-tuned" in text
    tuned = dydit("finetune", "runs/digits-pruned", "--out", "runs/digits-pruned-tuned", "--steps", 1, "--batch-size", 4, *FAST)
    assert tuned.exit_code == 0, tuned.output
    assert [step["action"] for step in read("runs/digits-pruned-tuned").lineage] == ["pretrain", "prune", "finetune"]
    assert read("runs/digits-pruned-tuned").config == read("runs/digits-pruned").config


@pytest.mark.parametrize("method", ["random", "magnitude", "taylor", "diff"])
def test_every_method_reports_the_same_macs(room: Path, tmp_path: Path, method: str) -> None:
    few = ["--batches", 1, "--batch-size", 4, "--timesteps", 3]
    result = dydit("prune", room / "static", tmp_path / "out", "--method", method, "--json", *few, *FAST)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["method"], report["heads"], report["heads_before"], report["mlp_width"]) == (method, 2, 4, 64)
    assert report["routed_ratio"] == 0.5
    assert report["ratio"] == report["macs"] / report["macs_before"] < 1
    assert [len(block) for block in report["kept_heads"]] == [2, 2]
    assert report["kept_blocks"] == [0, 1]


def test_depth_drops_whole_blocks(tmp_path: Path) -> None:
    few = ["--batches", 1, "--batch-size", 4, "--device", "cpu"]
    arguments = ["prune", "digits-dit", tmp_path / "out", "--method", "depth", "--keep", 0.5, *few]
    shown = dydit(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "depth: 20/20 passes" in shown.stderr
    result = dydit(*arguments, "--force", "--json")
    report, static, pruned = json.loads(result.stdout), read("digits-dit"), read(tmp_path / "out")
    kept = report["kept_blocks"]
    assert (report["depth"], report["depth_before"], report["heads"], report["mlp_width"]) == (3, 6, 6, 384)
    assert kept == sorted(kept)
    assert len(set(kept)) == 3
    assert report["kept_heads"] == [[0, 1, 2, 3, 4, 5]] * 3
    assert (report["routed_ratio"], report["macs"]) == (0.5, static_macs(pruned.config))
    for i, block in enumerate(kept):
        name = "attn.qkv.weight"
        assert torch.equal(pruned.weights[f"blocks.{i}.{name}"], static.weights[f"blocks.{block}.{name}"])
    numbers = ", ".join(map(str, kept))
    assert f"blocks 3 of 6: {numbers}" in " ".join(shown.stdout.split())
    assert pruned.lineage[-1]["blocks"] == kept
    assert f"depth 3, blocks [{numbers}]" in (tmp_path / "out" / "README.md").read_text()
    assert f"blocks [{numbers}]" in " ".join(dydit("inspect", tmp_path / "out").stdout.split())
    for command in (
        ["finetune", tmp_path / "out", "--out", tmp_path / "tuned", "--steps", 1, "--batch-size", 4, "--device", "cpu"],
        ["convert", tmp_path / "out", tmp_path / "dynamic"],
    ):
        result = dydit(*command)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "command",
    [
        "inspect {pruned}",
        "sample {pruned} --num 1 --steps 1 --device cpu --out {tmp}/out",
        "profile {pruned} --images 1 --steps 2 --device cpu --out {tmp}/out",
        "convert {pruned} {tmp}/out",
        "export {pruned} {tmp}/out --format native",
    ],
)
def test_other_commands_take_a_pruned_model(room: Path, tmp_path: Path, command: str) -> None:
    result = dydit(*command.format(pruned=room / "pruned", tmp=tmp_path).split())
    assert result.exit_code == 0, result.output
    if command.startswith("profile"):
        assert "to the digit what the formula gives" in result.stdout
    if command.startswith("inspect"):
        assert "2 heads of 8, MLP 64" in result.stdout


MISTAKES = {
    "method": (
        "{room}/static {tmp}/out --method best",
        "no pruning method 'best'; choose one of random, magnitude, taylor, diff, depth",
    ),
    "share": ("{room}/static {tmp}/out --keep 1.5", "share to keep 1.5; it must be over 0 and at most 1"),
    "too little": ("{room}/static {tmp}/out --keep 0.01", "with 1 of 4 heads and one channel it is"),
    "dynamic": ("{room}/dynamic {tmp}/out", "is a DyDiT; pruning takes its all-on static model: dydit export"),
    "existing": ("{room}/static {room}/pruned", "already exists; choose another name or replace it with --force"),
    "data": ("{room}/static {tmp}/out --method taylor --data cats", "no data set 'cats'; choose one of digits"),
    "device": ("{room}/static {tmp}/out --device tpu", "no device 'tpu'; choose auto, cpu, cuda or mps"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(room: Path, tmp_path: Path, mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    result = dydit("prune", *arguments.format(room=room, tmp=tmp_path).split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []

"""Fine-tuning adapters by the command, and reading them by every command's option."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from tests.json_keys import check_keys
from tests.processes import dydit

CPU = ["--device", "cpu"]


def test_an_adapter_by_the_commands(room: Path, tmp_path: Path) -> None:
    start, out = room / "converted", tmp_path / "adapter"
    quick = ["--lora", 2, "--steps", 2, "--batch-size", 8, "--lambda", 0.5, *CPU]
    result = dydit("finetune", start, *quick, "--adapter-only", "--out", out)
    assert result.exit_code == 0, result.output
    assert "parameters (" in result.stderr
    assert f"next: dydit profile {start} --adapter {out} --out DIR" in result.stdout.replace("\n", " ").replace("  ", " ")
    size = (out / "adapter_model.safetensors").stat().st_size
    assert size < (start / "model.safetensors").stat().st_size / 3

    result = dydit("finetune", start, *quick, "--out", tmp_path / "merged", "--json")
    figures = json.loads(result.stdout)
    check_keys("finetune", figures)
    assert 0 < figures["trained_parameters"] < figures["parameters"] / 3
    one, other = read(tmp_path / "merged"), read(start, LoadOptions(adapter=str(out)))
    assert all(torch.equal(w, one.weights[name]) for name, w in other.weights.items())

    result = dydit("sample", start, "--adapter", out, "--num", 1, "--steps", 2, "--out", tmp_path / "samples", *CPU)
    assert result.exit_code == 0, result.output
    # what begins with one, resumed from elsewhere or not, begins with it merged
    result = dydit("finetune", start, "--adapter", out, "--steps", 1, "--batch-size", 8, "--out", tmp_path / "more", *CPU)
    assert result.exit_code == 0, result.output
    assert [step["action"] for step in read(tmp_path / "more").lineage][-2:] == ["finetune", "finetune"]


def test_mistakes_get_one_line(room: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out", *CPU]
    for arguments, message in (
        (["finetune", room / "converted", "--adapter-only", *out], "[lora] has no rank, without which there are no adapters"),
        (["finetune", room / "converted", "--lora", 2, "--num-classes", 3, *out], "3 classes: their label table begins anew"),
        (["pretrain", "digits/pretrain", "--set", "lora.rank=2", *out], "lora.rank: adapters are for a trained model"),
        (["sample", room / "converted", "--adapter", room / "static", *out], "no adapter, which has adapter_config.json"),
    ):
        result = dydit(*arguments)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
        assert message in result.stderr
        assert not (tmp_path / "out").exists()

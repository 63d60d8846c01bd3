"""REPA's own files and numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.checkpoint.tensors import read_pickle
from dydit_cli.model.families.repa import REPAConfig
from tests.reference.test_models import largest_difference

HEADS = LoadOptions(num_heads=4)
FILES = {"a": "repa_a.pt", "b": "repa_b_train.pt"}


@pytest.fixture
def repa(golden: Path) -> Path:
    return golden / "families" / "repa"


@pytest.mark.parametrize("case", FILES)
def test_the_forward_pass_is_theirs(repa: Path, case: str) -> None:
    checkpoint = read(repa / FILES[case], HEADS)  # the projectors tell the family
    config = checkpoint.config
    assert isinstance(config, REPAConfig)
    assert (config.qk_norm, config.noise_at, config.learn_sigma, config.guided_channels) == (case == "b", 1, False, "all")
    io = {name.removeprefix(f"{case}."): tensor for name, tensor in load_file(repa / "repa_forward.safetensors").items()}
    model = checkpoint.build()
    with torch.inference_mode():
        assert largest_difference(model(io["x"], io["t"], io["y"]), io["out"]) < 1e-5
        wide = model.double()(io["x"].double(), io["t"], io["y"])
        assert largest_difference(wide, io["out_f64"]) < 1e-10


def test_both_sets_of_a_training_checkpoint(repa: Path) -> None:
    io = load_file(repa / "repa_forward.safetensors")
    checkpoint = read(repa / FILES["b"], LoadOptions(num_heads=4, weights="model"))
    with torch.inference_mode():
        assert largest_difference(checkpoint.build()(io["b.x"], io["b.t"], io["b.y"]), io["b.train.model.out"]) < 1e-5


def test_a_file_goes_back_bit_for_bit_with_its_projectors(repa: Path, tmp_path: Path) -> None:
    write(read(repa / FILES["a"], HEADS), tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back.pt", format="repa")
    theirs, back = read_pickle(repa / FILES["a"]), read_pickle(tmp_path / "back.pt")
    assert theirs.keys() == back.keys()
    assert all(torch.equal(theirs[name], back[name]) for name in theirs)


def test_an_older_file_with_two_stacks_of_blocks(repa: Path, tmp_path: Path) -> None:
    plain = read_pickle(repa / FILES["a"])
    names = {name: name.replace("blocks.2.", "decoder_blocks.0.") for name in plain}
    torch.save({names[name]: w for name, w in plain.items()}, tmp_path / "old.pt")
    old, new = read(tmp_path / "old.pt", HEADS), read(repa / FILES["a"], HEADS)
    assert old.config == new.config
    assert all(torch.equal(w, old.weights[name]) for name, w in new.weights.items())

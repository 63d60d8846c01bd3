"""SiT's own files and numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dydit_cli
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.checkpoint.tensors import read_pickle
from dydit_cli.diffusion.sampler import guided
from dydit_cli.errors import DyditError
from dydit_cli.model.families.sit import SiTConfig
from tests.reference.test_models import largest_difference

HEADS = LoadOptions(family="sit", num_heads=4)
FILES = {"a": "sit_a.pt", "b": "sit_b_train.pt"}


@pytest.fixture
def sit(golden: Path) -> Path:
    return golden / "families" / "sit"


@pytest.mark.parametrize("case", FILES)
def test_the_forward_pass_is_theirs(sit: Path, case: str) -> None:
    checkpoint = read(sit / FILES[case], HEADS)
    facts = json.loads((sit / "sit.json").read_text())["configs"][case]
    assert checkpoint.config == SiTConfig(**facts)
    io = {name.removeprefix(f"{case}."): tensor for name, tensor in load_file(sit / "sit_forward.safetensors").items()}
    model = checkpoint.build()
    with torch.inference_mode():
        assert largest_difference(model(io["x"], io["t"], io["y"]), io["out"]) < 1e-5
        wide = model.double()(io["x"].double(), io["t"], io["y"])
        assert largest_difference(wide, io["out_f64"]) < 1e-10


@pytest.mark.parametrize("scale", [1.5, 4.0])
@pytest.mark.parametrize("case", FILES)
def test_guidance_is_theirs(sit: Path, case: str, scale: float) -> None:
    model = dydit_cli.load(sit / FILES[case], family="sit", num_heads=4)
    io = {name.removeprefix(f"{case}.cfg."): tensor for name, tensor in load_file(sit / "sit_forward.safetensors").items()}
    x, t, y = (io[name].chunk(2)[0] for name in ("x", "t", "y"))
    with torch.inference_mode():
        out = guided(model, x, t, y, model.config.null_class, scale)
    assert largest_difference(out, io[f"out_{scale}"].chunk(2)[0]) < 1e-5


def test_both_sets_of_a_training_checkpoint(sit: Path) -> None:
    io = load_file(sit / "sit_forward.safetensors")
    model = dydit_cli.load(sit / FILES["b"], family="sit", num_heads=4, weights="model")
    with torch.inference_mode():
        assert largest_difference(model(io["b.x"], io["b.t"], io["b.y"]), io["b.train.model.out"]) < 1e-5


def test_the_training_scripts_own_options_tell_the_family(sit: Path) -> None:
    checkpoint = read(sit / FILES["b"], LoadOptions(num_heads=4))
    assert checkpoint.config.kind == "sit"
    assert checkpoint.found == "SiT weights (.pt, training checkpoint)"


def test_a_file_that_may_be_either_is_not_guessed(sit: Path) -> None:
    with pytest.raises(DyditError, match=r"sit_a\.pt: could be of family dit or sit: say which with --family dit\|sit$"):
        read(sit / FILES["a"])


def test_what_is_said_is_stored_and_goes_back_bit_for_bit(sit: Path, tmp_path: Path) -> None:
    said = LoadOptions(family="sit", num_heads=4, flow_path="gvp", prediction="noise", noise_at=1)
    checkpoint = read(sit / FILES["a"], said)
    write(checkpoint, tmp_path / "ours")
    config = read(tmp_path / "ours").config
    assert isinstance(config, SiTConfig)
    assert (config.path, config.prediction, config.noise_at, config.learn_sigma) == ("gvp", "noise", 1, True)
    export(tmp_path / "ours", tmp_path / "back.pt", format="sit")
    theirs, back = read_pickle(sit / FILES["a"]), read_pickle(tmp_path / "back.pt")
    assert theirs.keys() == back.keys()
    assert all(torch.equal(theirs[name], back[name]) and theirs[name].dtype == back[name].dtype for name in theirs)


def test_a_process_that_the_family_does_not_have(golden: Path, sit: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DyditError, match="a DiT is trained by Gaussian diffusion: --noise-at is for flow matching; leave it out"
    ):
        read(golden / "dit_static_a.pt", LoadOptions(family="dit", num_heads=4, noise_at=0))
    with pytest.raises(DyditError, match="noise at t = 2; t of flow matching runs from 0 to 1"):
        LoadOptions(noise_at=2)
    write(read(sit / FILES["a"], HEADS), tmp_path / "ours")
    with pytest.raises(DyditError, match=r"ours: is a SiT, whose noise_at is 0 and not 1; leave --noise-at out"):
        read(tmp_path / "ours", LoadOptions(noise_at=1))
    with pytest.raises(DyditError, match="is a SiT, which other code reads from --format sit"):
        export(tmp_path / "ours", tmp_path / "x.pt", format="dit")
    with pytest.raises(DyditError, match="is a SiT, which diffusers has no class for; use --format sit"):
        export(tmp_path / "ours", tmp_path / "x", format="diffusers")

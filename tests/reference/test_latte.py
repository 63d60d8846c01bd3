"""Latte against the numbers of the authors' code: forward passes, blocks, guidance, sampling loops, losses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.diffusion.process import process_of
from dydit_cli.diffusion.sampler import guided, sample
from dydit_cli.flops.published import count_size
from dydit_cli.model.execution import executor
from dydit_cli.model.families import build_model, named_config, with_routers
from dydit_cli.model.families.latte import Latte, LatteConfig, to_public
from tests.reference.test_diffusion import FixedNoise
from tests.reference.test_models import largest_difference

FILES = {"a": "latte_a_ema.pt", "b": "latte_b_train.pt"}


@dataclass(frozen=True)
class Recorded:
    """A released-format file as our model, and what the authors' code computed from it."""

    facts: dict[str, Any]
    model: Latte
    file: Path
    reading: LoadOptions
    io: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.io[name]


def recorded(golden: Path, case: str) -> Recorded:
    folder = golden / "families" / "latte"
    if not folder.is_dir():
        pytest.skip(f"Latte's reference numbers are not at {folder}")
    io = {
        name.removeprefix(f"{case}."): tensor
        for name, tensor in load_file(folder / "latte.safetensors").items()
        if name.startswith(f"{case}.")
    }
    facts = json.loads((folder / "latte.json").read_text())["configs"][case]
    reading = LoadOptions(num_heads=facts["num_heads"])  # weights do not tell them
    return Recorded(facts, cast(Latte, read(folder / FILES[case], reading).build()), folder / FILES[case], reading, io)


@pytest.fixture(params=["a", "b"])
def either(golden: Path, request: pytest.FixtureRequest) -> Recorded:
    """a has classes, b none."""
    return recorded(golden, request.param)


@pytest.fixture
def a(golden: Path) -> Recorded:
    return recorded(golden, "a")


def test_files_are_told_by_their_weights(either: Recorded) -> None:
    classes = either.facts["num_classes"] if either.facts.pop("extras") == 2 else 0
    assert either.model.config == LatteConfig(**{**either.facts, "num_classes": classes})


def test_forward_equals_the_authors_code(either: Recorded) -> None:
    model, x, t, y = either.model, either["x"], either["t"], either.io.get("y")
    with torch.inference_mode():
        assert largest_difference(model(x, t, y), either["out"]) < 1e-5
        assert largest_difference(model.double()(x.double(), t, y), either["out_f64"]) < 1e-10


def test_the_other_weights_of_a_training_file(golden: Path) -> None:
    b = recorded(golden, "b")
    model = read(b.file, replace(b.reading, weights="model")).build()
    with torch.inference_mode():
        assert largest_difference(model(b["x"], b["t"]), b["train.model.out"]) < 1e-5


def test_blocks_equal_the_authors_code(either: Recorded) -> None:
    """Spatial blocks are recorded as BF T C, temporal ones as BT F C."""
    model, seen = either.model, list[Tensor]()
    for block in model.blocks[:2]:
        block.register_forward_hook(lambda module, arguments, output: seen.append(output))
    with torch.inference_mode():
        model(either["x"], either["t"], either.io.get("y"))
    F = model.config.num_frames
    spatial, temporal = (h.unflatten(1, (F, -1)) for h in seen)  # each B F T C
    assert largest_difference(spatial.flatten(0, 1), either["mid.block.0"]) < 1e-5
    assert largest_difference(temporal.transpose(1, 2).flatten(0, 1), either["mid.block.1"]) < 1e-5


def test_fixed_positions_equal_the_stored_ones(either: Recorded) -> None:
    fresh = Latte(either.model.config)
    assert torch.equal(fresh.pos_embed, either.model.pos_embed)
    assert torch.equal(fresh.temp_embed, either.model.temp_embed)


@pytest.mark.parametrize("scale", [1.5, 7.0])
def test_guidance_equals_the_authors_code(a: Recorded, scale: float) -> None:
    """Relative to the largest number, 12 at scale 7, which adds 13 times the rounding of a pass."""
    config = a.model.config
    half = len(a["cfg.x"]) // 2
    x, t, y = (a[f"cfg.{name}"][:half] for name in "xty")
    with torch.inference_mode():
        ours = guided(a.model, x, t, y, config.null_class, scale, config.guided_channels)
    theirs = a[f"cfg.out_{scale}"][:half]
    assert largest_difference(ours, theirs) < 1e-5 * theirs.abs().max().item()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_loops_equal_the_authors_code(a: Recorded, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    """Five steps, each relative to the largest number of its videos."""
    config, theirs = a.model.config, a[f"{sampler}.traj"]
    half = len(a["cfg.x"]) // 2
    # diffusers' scheduler is given, and asks for, the channels before the frames
    noise = FixedNoise(a[f"{sampler}.noise"].transpose(2, 3), half)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
    settings = SamplerSettings(sampler=sampler, steps=len(theirs), cfg=1.5, cfg_channels=config.guided_channels)
    ready = settings.for_model(config)
    seen = list[Tensor]()

    def watched(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(x[:half])
        return a.model(x, t, y)

    with torch.inference_mode():
        last = sample(watched, a["cfg.x"][:half], a["cfg.y"][:half], ready, null_class=config.null_class)
    for ours, x in zip([*seen[1:], last], theirs, strict=True):
        assert largest_difference(ours, x) < 1e-5 * x.abs().max().item()


def test_losses_equal_the_authors_code(a: Recorded) -> None:
    process = process_of(a.model.config)
    x0, t, y, noise = (a[f"loss.{name}"] for name in ("x0", "t", "y", "noise"))
    x_t = process.add_noise(x0, t, noise)
    with torch.inference_mode():
        terms = process.losses(a.model(x_t, t, y), x0, x_t, t, noise)
    assert terms.vb is not None
    for ours, name in ((terms.mse, "mse"), (terms.vb, "vb"), (terms.loss, "loss")):
        assert largest_difference(ours, a[f"loss.{name}"]) < 1e-5 * max(1.0, a[f"loss.{name}"].abs().max().item())


def test_a_fresh_dylatte_computes_what_the_authors_code_does(either: Recorded) -> None:
    """Everything on, under masks and in sparse execution."""
    model: Any = build_model(with_routers(either.model.config, token_router_reduction=4)).eval()
    assert not model.load_state_dict(either.model.state_dict(), strict=False).unexpected_keys
    with torch.no_grad():
        for run in (model, executor(model, "sparse")):
            assert largest_difference(run(either["x"], either["t"], either.io.get("y")), either["out"]) < 1e-5


def test_what_is_given_back_is_as_their_loader_wants_it(a: Recorded) -> None:
    theirs = torch.load(a.file, weights_only=True)
    ours = to_public(a.model.state_dict())
    assert ours.keys() == theirs.keys() == {"ema"}
    assert ours["ema"].keys() == theirs["ema"].keys()
    assert all(torch.equal(ours["ema"][name], weight) for name, weight in theirs["ema"].items())


def test_the_published_figure_of_xl() -> None:
    """1893 G (Latte paper) counts adaLN for every frame or place: 14 * (16 + 256) times a block's; we compute it 28 times."""
    config = named_config("Latte-XL/2")
    adaln = config.modulation_macs()
    counted = count_size("Latte-XL/2")
    repeated = counted.macs_products + (config.depth // 2 * (16 + 256) - config.depth) * adaln
    assert round(counted.macs / 1e9, 1) == 1863.9
    assert abs(repeated / 1e9 - 1893) < 1

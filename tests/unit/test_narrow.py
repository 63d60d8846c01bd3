"""Models with narrower attention and MLP than their width: configuration, counting, execution and formats."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.convert import convert
from dydit_cli.errors import DyditError
from dydit_cli.flops.executed import count_executed
from dydit_cli.flops.fvcore import count
from dydit_cli.model import macs as analytic
from dydit_cli.model.execution import SparseModel
from dydit_cli.model.families import Hints, build_model, config_from_dict, named_config
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig, infer
from dydit_cli.model.options import WeightAccess
from dydit_cli.model.routing import Routing
from tests.conftest import TINY, inputs, randomize

NARROW = replace(TINY, num_heads=2, attention_width=16, mlp_width=50)


def test_widths_that_are_whole_go_without_saying() -> None:
    same = replace(TINY, attention_width=24, mlp_width=96)
    assert same == TINY
    assert same.to_dict() == TINY.to_dict()
    assert not {"attention_width", "mlp_width"} & TINY.to_dict().keys()
    assert replace(TINY, mlp_ratio=2.0, mlp_width=48).mlp_width is None


def test_a_narrow_configuration_comes_back() -> None:
    assert (NARROW.head_dim, NARROW.attention_hidden, NARROW.mlp_hidden) == (8, 16, 50)
    assert config_from_dict(json.loads(json.dumps(NARROW.to_dict()))) == NARROW
    dynamic = DyDiTConfig.from_static(NARROW)
    assert config_from_dict(dynamic.to_dict()) == dynamic
    assert dynamic.static() == NARROW


def test_a_narrow_model_takes_no_published_name() -> None:
    whole = named_config("DiT-XL/2")
    assert isinstance(whole, DiTConfig)
    assert replace(whole, mlp_width=2304).size_name == "DiT-28x1152/2, 16 heads of 72, MLP 2304"
    half = replace(whole, num_heads=8, attention_width=576, mlp_width=2304)
    assert half.size_name == "DiT-28x1152/2, 8 heads of 72, MLP 2304"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention_width": 0}, "attention_width is 0; it must be a whole number of 1 or more"),
        ({"attention_width": 16.0}, "attention_width is 16.0; it must be a whole number"),
        ({"attention_width": True}, "attention_width is True"),
        ({"attention_width": 16}, "attention_width 16 must be a multiple of num_heads 3"),
        ({"mlp_width": -1}, "mlp_width is -1"),
        ({"mlp_width": "50"}, "mlp_width is '50'"),
        ({"kind": "dydit", "mlp_width": 2}, "the MLP's 2 channels cannot be cut into 3 groups"),
    ],
)
def test_bad_widths_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(DyditError) as error:
        config_from_dict({**TINY.to_dict(), **values})
    assert message in str(error.value)


@pytest.mark.parametrize("mlp_width", [50, 49])  # 49 channels do not fall into 2 groups
def test_a_narrow_model_is_counted_as_fvcore_counts_it(mlp_width: int) -> None:
    config = replace(NARROW, mlp_width=mlp_width)
    model = randomize(DiT(config))
    total, _ = count(model, inputs(config, 2))
    assert count_executed(model, *inputs(config, 2)) == (total, Counter())
    assert total == 2 * analytic.static_macs(config)
    blocks = analytic.block_macs(Routing.all_on(config, 1), config)
    N, C, A = 16, 24, 16
    assert blocks.attention.tolist() == [[3 * N * C * A + 2 * N * N * A + N * A * C]] * 3
    assert blocks.mlp.tolist() == [[2 * N * C * mlp_width]] * 3
    assert analytic.attention_macs(config) == blocks.attention[0, 0].item()
    assert analytic.mlp_macs(config) == blocks.mlp[0, 0].item()


@pytest.mark.parametrize("mlp_width", [60, 62])  # 62 channels are groups of 16, 16, 15 and 15
def test_a_narrow_dydit_runs_sparse_as_under_masks(mlp_width: int) -> None:
    static = replace(TINY, num_heads=4, attention_width=16, mlp_width=mlp_width)
    config = DyDiTConfig.from_static(static, token_router_reduction=4)
    model = randomize(DyDiT(config))
    assert isinstance(model, DyDiT)
    x, t, y = inputs(config, batch=6)
    masked, routing = model(x, t, y, return_routing=True)
    assert 0 < routing.heads.mean() < 1
    for access in get_args(WeightAccess):
        sparse, same = SparseModel(model, access=access)(x, t, y, return_routing=True)
        assert torch.equal(same.heads, routing.heads)
        assert (sparse - masked).abs().max() < 1e-4
    ratio = analytic.flops_ratio(routing, config)
    blocks = analytic.block_macs(routing, config)
    whole = config.depth * (analytic.attention_macs(config) + analytic.mlp_macs(config))
    assert torch.allclose((blocks.attention + blocks.mlp).sum(dim=0) / whole, ratio)


@pytest.fixture
def narrow_folder(tmp_path: Path) -> Path:
    write(Checkpoint.of(randomize(DiT(NARROW), scale=0.1), []), tmp_path / "narrow")
    return tmp_path / "narrow"


def test_weights_of_another_width_are_refused(narrow_folder: Path) -> None:
    header = json.loads((narrow_folder / "config.json").read_text())
    header["model"]["mlp_width"] = 52
    (narrow_folder / "config.json").write_text(json.dumps(header))
    with pytest.raises(DyditError, match=r"do not fit a DiT-3x24/1, 2 heads of 8, MLP 52: blocks.0.mlp.fc1.bias is \[50\]"):
        read(narrow_folder)


def test_a_narrow_state_dict_is_read_back(narrow_folder: Path, tmp_path: Path) -> None:
    export(narrow_folder, tmp_path / "narrow.pt", format="dit")
    with pytest.raises(DyditError, match="say them with --num-heads N, one of 1, 2, 4, 8, 16"):
        read(tmp_path / "narrow.pt", LoadOptions(family="dit"))
    back = read(tmp_path / "narrow.pt", LoadOptions(num_heads=2, family="dit"))
    assert back.config == NARROW
    assert "attention 16 and MLP 50 wide in a model of width 24" in back.notes
    x, t, y = inputs(NARROW)
    assert torch.equal(back.build()(x, t, y), read(narrow_folder).build()(x, t, y))
    inside = read(narrow_folder / "model.safetensors")  # the configuration beside it says all
    assert inside.config == NARROW


def test_heads_of_a_pruned_published_size_are_as_wide_as_before() -> None:
    config = named_config("DiT-S/2").narrowed(3, 700)
    with torch.device("meta"):
        inferred = infer(build_model(config).state_dict(), Hints())
    assert inferred.config == config
    assert "3 heads as wide as DiT-S's" in inferred.notes


def test_formats_that_cannot_say_it_refuse(narrow_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DyditError) as error:
        export(narrow_folder, tmp_path / "out", format="diffusers", any_variant=True)
    assert "has attention as wide as the model and an MLP 4 times as wide; of width 24, this one has 16 and 50" in str(
        error.value
    )
    assert not (tmp_path / "out").exists()
    export(narrow_folder, tmp_path / "native", format="native")
    assert read(tmp_path / "native").config == NARROW


@pytest.mark.parametrize("mlp_width", [50, 49])
def test_a_narrow_model_is_converted(tmp_path: Path, mlp_width: int) -> None:
    """Of 49 channels the first of two groups has 25."""
    config = replace(NARROW, mlp_width=mlp_width)
    write(Checkpoint.of(randomize(DiT(config), scale=0.1), []), tmp_path / "narrow")
    report = convert(tmp_path / "narrow", tmp_path / "dynamic", router_bias=50, token_router_bias=99)
    assert report.max_difference < 1e-4
    assert read(tmp_path / "dynamic").config == DyDiTConfig.from_static(config)
    export(tmp_path / "dynamic", tmp_path / "dynamic.pt", format="dydit")
    assert read(tmp_path / "dynamic.pt", LoadOptions(num_heads=2, family="dit")).config.static() == config


def test_ranking_keeps_a_narrow_models_function(narrow_folder: Path, tmp_path: Path) -> None:
    convert(narrow_folder, tmp_path / "ranked", ranking="magnitude", router_bias=50, token_router_bias=99)
    before, after = read(narrow_folder).weights, read(tmp_path / "ranked").weights
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".", 2)[2] for name in moved} <= {
        "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight",
    }  # fmt: skip
    assert moved


def test_the_default_widths_stay_a_published_models() -> None:
    assert DiTConfig().size_name == "DiT-XL/2"

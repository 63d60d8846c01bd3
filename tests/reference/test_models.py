"""Forward passes against the numbers of the authors' code and of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dydit_cli.diffusion.sampler import guided
from dydit_cli.model.families import build_model, named_config, with_routers
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.model.macs import attention_macs, mlp_macs


def static_case(golden: Path, case: str) -> tuple[DiT, dict[str, Tensor]]:
    facts = json.loads((golden / "dit_static.json").read_text())["cases"][case]
    model = DiT(DiTConfig(**facts["config"]))
    model.load_state_dict(torch.load(golden / facts["plain"], weights_only=True))
    return model.eval(), load_file(golden / facts["io"])


def dynamic_case(golden: Path) -> tuple[DyDiT, dict[str, Tensor]]:
    facts = json.loads((golden / "dydit_masked.json").read_text())["cases"]["a"]
    model = DyDiT(DyDiTConfig(**facts["config"]))
    model.load_state_dict(torch.load(golden / facts["plain"], weights_only=True))
    model.eval()
    return model, load_file(golden / facts["io"])


def largest_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("case", ["a", "b"])
def test_static_model_equals_the_authors_code(golden: Path, case: str) -> None:
    model, io = static_case(golden, case)
    with torch.inference_mode():
        assert largest_difference(model(io["x"], io["t"], io["y"]), io["out"]) < 1e-5
        assert largest_difference(model.double()(io["x"].double(), io["t"], io["y"]), io["out_f64"]) < 1e-10


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("scale", [4.0, 1.5])
def test_guidance_equals_the_authors_code(golden: Path, case: str, scale: float) -> None:
    model, io = static_case(golden, case)
    half = len(io["cfg.x"]) // 2
    with torch.inference_mode():
        ours = guided(model, io["cfg.x"][:half], io["cfg.t"][:half], io["cfg.y"][:half], model.config.null_class, scale)
    assert largest_difference(ours, io[f"cfg.out_{scale}"][:half]) < 1e-5


def test_fixed_positions_equal_the_stored_ones(golden: Path) -> None:
    for case in ("a", "b"):
        stored, _ = static_case(golden, case)
        assert torch.equal(DiT(stored.config).pos_embed, stored.pos_embed)


@pytest.mark.parametrize("call", ["t0", "t40", "t333", "t600", "t999", "mixed", "cfg"])
def test_dynamic_model_equals_the_authors_code(golden: Path, call: str) -> None:
    model, io = dynamic_case(golden)
    x, t, y = (io[f"{call}.{name}"] for name in "xty")
    with torch.inference_mode():
        out, routing = model(x, t, y, return_routing=True)
        complete = model(x, t, y, complete=True)
    assert torch.equal(routing.heads.transpose(0, 1), io[f"{call}.attn_mask"])
    assert torch.equal(routing.groups.transpose(0, 1), io[f"{call}.mlp_mask"])
    assert torch.equal(routing.tokens.transpose(0, 1).unsqueeze(-1), io[f"{call}.token_mask"])
    assert largest_difference(out, io[f"{call}.out"]) < 1e-5
    assert largest_difference(complete, io[f"{call}.out_complete"]) < 1e-5


def test_dynamic_model_in_float64(golden: Path) -> None:
    model, io = dynamic_case(golden)
    with torch.inference_mode():
        out = model.double()(io["mixed.x"].double(), io["mixed.t"], io["mixed.y"])
    assert largest_difference(out, io["mixed.out_f64"]) < 1e-10


def test_diffusers_variant_equals_diffusers(golden: Path) -> None:
    """diffusers computes another function from the same weights; the configuration's two fields reproduce it."""
    io = load_file(golden / "diffusers_dit" / "io.safetensors")
    theirs = load_file(golden / "diffusers_dit" / "transformer" / "diffusion_pytorch_model.safetensors")
    weights = rename_from_diffusers(theirs, depth=2)
    sizes: dict[str, Any] = {
        "input_size": 8,
        "patch_size": 2,
        "hidden_size": 48,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 10,
    }
    for config, key in (
        (DiTConfig(**sizes), "official.mapped"),
        (DiTConfig(**sizes, timestep_variant="diffusers"), "official.mapped_freq_shift1"),
        (DiTConfig(**sizes, norm2_eps=1e-5), "official.mapped_norm2_eps1e-5"),
        (DiTConfig(**sizes, timestep_variant="diffusers", norm2_eps=1e-5), "sample"),
    ):
        model = DiT(config)
        model.load_state_dict({**weights, "pos_embed": model.pos_embed})
        with torch.inference_mode():
            out = model.eval()(io["hidden_states"], io["timestep"], io["class_labels"])
        assert largest_difference(out, io[key]) < 1e-5


def rename_from_diffusers(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    names = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    for i in range(depth):
        names[f"blocks.{i}.adaLN_modulation.1"] = f"transformer_blocks.{i}.norm1.linear"
        names[f"blocks.{i}.attn.proj"] = f"transformer_blocks.{i}.attn1.to_out.0"
        names[f"blocks.{i}.mlp.fc1"] = f"transformer_blocks.{i}.ff.net.0.proj"
        names[f"blocks.{i}.mlp.fc2"] = f"transformer_blocks.{i}.ff.net.2"
    ours = {f"{our}.{end}": theirs[f"{name}.{end}"] for our, name in names.items() for end in ("weight", "bias")}
    label = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    ours["y_embedder.embedding_table.weight"] = theirs[label]
    for i in range(depth):
        for end in ("weight", "bias"):
            parts = [theirs[f"transformer_blocks.{i}.attn1.to_{part}.{end}"] for part in "qkv"]
            ours[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(parts)
    return ours


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_names_shapes_and_parameter_counts_are_the_published_ones(golden: Path, size: str) -> None:
    counts = json.loads((golden / "keys_dydit.json").read_text())["parameter_counts"]
    static = named_config(f"DiT-{size}/2")
    with torch.device("meta"):
        models = {"DiT": build_model(static), "DyDiT": build_model(with_routers(static))}
    published = {
        "S": (32963360, 33120740),
        "B": (130512416, 131158964),
        "L": (458102816, 460416776),
        "XL": (675129632, 678424644),
    }
    assert static.num_parameters() == published[size][0]  # in closed form
    assert (models["DiT"].num_parameters(), models["DyDiT"].num_parameters()) == published[size]
    assert counts
    for kind, file in (("DiT", "keys_dit.json"), ("DyDiT", "keys_dydit.json")):
        entry = json.loads((golden / file).read_text())["models"].get(f"DiT-{size}/2")
        if entry is not None:
            assert {k: list(v.shape) for k, v in models[kind].state_dict().items()} == entry["state_dict"]


def test_loss_constants_are_the_published_ones(golden: Path) -> None:
    constants = json.loads((golden / "dynamic_loss.json").read_text())["FLOPS_G_per_block"]
    for name, expected in constants.items():
        config = named_config(name)
        assert attention_macs(config) == round(expected["attn"] * 1e9)
        assert mlp_macs(config) == round(expected["mlp"] * 1e9)

"""The counter of diffusers' transformers against our closed form, torch's counter, formulas by hand and a published figure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dydit_cli import units
from dydit_cli.flops.executed import einsum_macs
from dydit_cli.flops.options import CountOptions
from dydit_cli.flops.published import count_size
from dydit_cli.flops.transformers import INPUTS, ByModule, TransformerCount, build, count_transformer, tensors
from dydit_cli.model.families import named_config
from tests.processes import dydit


def options(*settings: str, **more: Any) -> CountOptions:
    return CountOptions(setting=settings, **more)


def of_kind(counted: TransformerCount, kind: Any, parts: Iterable[str]) -> int:
    return sum(part.macs[kind] for part in counted.parts if part.part in set(parts))


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_a_dit_has_the_macs_of_our_closed_form(size: str) -> None:
    """And those of the timestep's embedder once more for every block: diffusers repeats it in each."""
    config, ours = named_config(f"DiT-{size}/2"), count_size(f"DiT-{size}/2")
    sizes = {"num_layers": config.depth, "num_attention_heads": config.num_heads, "attention_head_dim": config.head_dim}
    counted = count_transformer("DiTTransformer2DModel", options(*(f"{name}={value}" for name, value in sizes.items())))
    repeated = config.depth * config.timestep_macs()
    assert counted.macs.total() == ours.macs + repeated
    assert counted.products == ours.macs_products + repeated
    assert counted.attention == {(256, 256): config.depth}
    assert not counted.unknown
    attention = of_kind(counted, "attention", ["transformer_blocks.*.attn1"]) + of_kind(
        counted, "linear", ["transformer_blocks.*.attn1"]
    )
    assert attention == ours.parts["attention"]
    assert of_kind(counted, "linear", ["transformer_blocks.*.ff"]) == ours.parts["mlp"]


FLUX_BLOCKS = [
    *(f"transformer_blocks.*.{name}" for name in ("attn", "ff", "ff_context")),
    *(f"single_transformer_blocks.*.{name}" for name in ("attn", "proj_mlp", "proj_out")),
]


def blocks_of_flux(counted: TransformerCount) -> int:
    """Their attention and MLPs, without adaLN and norms."""
    return sum(of_kind(counted, kind, FLUX_BLOCKS) for kind in ("linear", "attention"))


def test_the_blocks_of_flux_by_hand_and_as_published() -> None:
    """At 1024 pixels with 512 tokens of text: 12 N C^2 + 2 N^2 C in each block. The DyDiT++ paper (arXiv 2504.06803) gives
    30.0 T for the 46 blocks of FLUX-Lite, which is this; the 40.8 T that it gives for FLUX's 57 is not: they are 37.18 T."""
    counted = count_transformer("FluxTransformer2DModel", CountOptions(size=(1024, 1024), text_tokens=512))
    tokens, width = 64 * 64 + 512, 3072
    assert blocks_of_flux(counted) == 57 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert round(blocks_of_flux(counted) / 1e12, 2) == 37.18
    around = {
        "adaLN": 19 * 12 * width**2 + 38 * 3 * width**2 + 2 * width**2,
        "embedders": 2 * (256 + width) * width + (768 + width) * width + 512 * 4096 * width + 4096 * 64 * width,
        "head": 4096 * width * 64,
    }
    assert counted.products == blocks_of_flux(counted) + sum(around.values())
    assert counted.attention == {(tokens, tokens): 57}
    lite = count_transformer("FluxTransformer2DModel", options("num_layers=8", size=(1024, 1024), text_tokens=512))
    assert round(blocks_of_flux(lite) / 1e12, 1) == 30.0


def test_sd3_by_hand() -> None:
    """Two streams in one attention; the last block's text goes nowhere."""
    counted = count_transformer("SD3Transformer2DModel", options("num_layers=3", size=(512, 512), text_tokens=77))
    image, text, width = 32 * 32, 77, 18 * 64
    both = image + text
    whole = 12 * both * width**2 + 2 * both**2 * width + 12 * width**2
    last = whole - 9 * text * width**2 - 4 * width**2  # no output, no MLP, and shift and scale alone
    around = 64 * image * width * 2 + 2 * width**2 + (256 + width) * width + (2048 + width) * width + text * 4096 * width
    assert counted.products == 2 * whole + last + around
    assert counted.macs["attention"] == 3 * 2 * both**2 * width


def test_pixart_by_hand() -> None:
    counted = count_transformer("PixArtTransformer2DModel", options("num_layers=2", "sample_size=64", text_tokens=120))
    image, text, width = 32 * 32, 120, 1152
    attention = 4 * image * width**2 + 2 * image**2 * width
    cross = 2 * (image + text) * width**2 + 2 * image * text * width
    condition = (256 + width) * width + 6 * width**2 + text * (4096 + width) * width
    around = image * 16 * width + image * width * 32 + condition
    assert counted.products == 2 * (attention + cross + 8 * image * width**2) + around
    assert counted.attention == {(image, image): 2, (image, text): 2}


SHRUNKEN = {
    "FluxTransformer2DModel": ("num_layers=1", "num_single_layers=1"),
    "ChromaTransformer2DModel": ("num_layers=1", "num_single_layers=1"),
    "AuraFlowTransformer2DModel": ("num_mmdit_layers=1", "num_single_dit_layers=1"),
    "CogVideoXTransformer3DModel": ("num_layers=1", "max_text_seq_length=24"),
    "Flux2Transformer2DModel": ("num_layers=1", "num_single_layers=1"),
    "LongCatImageTransformer2DModel": ("num_layers=1", "num_single_layers=1"),
    "OvisImageTransformer2DModel": ("num_layers=1", "num_single_layers=1"),
    "HunyuanImageTransformer2DModel": ("num_layers=1", "num_single_layers=1", "num_refiner_layers=1"),
    "PRXTransformer2DModel": ("depth=1",),
    "HunyuanVideoTransformer3DModel": ("num_layers=1", "num_single_layers=1", "num_refiner_layers=1"),
}


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")  # within diffusers' Chroma
@pytest.mark.parametrize("name", INPUTS)
def test_every_known_class_has_half_of_torchs_count(name: str) -> None:
    """One block or two of each: torch's counter sees the products below the functions that ours sees."""
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    small = options(*SHRUNKEN.get(name, ("num_layers=1",)), text_tokens=24 if INPUTS[name].text else None)
    counted = count_transformer(name, small)
    assert not counted.unknown
    model, inputs, _ = build(name, small)
    with FlopCounterMode(display=False) as theirs, torch.device("meta"), torch.no_grad():
        model(**tensors(inputs))
    assert 2 * counted.products == theirs.get_total_flops()
    assert counted.macs["attention"] > 0


def test_parts_are_as_deep_as_asked_and_sum_to_the_whole() -> None:
    counts = [count_transformer("DiTTransformer2DModel", options("num_layers=3", depth=depth)) for depth in (1, 2, 9)]
    assert len({count.macs.total() for count in counts}) == 1
    names = [[(part.part, part.count) for part in count.parts] for count in counts]
    assert names[0] == [("pos_embed", 1), ("transformer_blocks.*", 3), ("norm_out", 1), ("proj_out_1", 1), ("proj_out_2", 1)]
    assert ("transformer_blocks.*.ff", 3) in names[1]
    assert ("transformer_blocks.*.ff.net.*.proj", 3) in names[2]
    assert ("transformer_blocks.*.ff.net.*", 3) in names[2]


def test_what_cannot_be_counted_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bij,bjk->bik", x, x).cumprod(0)

    model = Odd()
    with ByModule(model) as counted:
        model(torch.zeros(2, 3, 3))
    assert counted.unknown == Counter({"cumprod": 1})
    assert counted.modules == {"": {"attention": 2 * 27}}
    assert einsum_macs("b i j, j k -> b i k", ((2, 3, 4), (4, 5))) == 2 * 3 * 4 * 5


def test_a_folder_a_pipeline_and_a_class_whose_inputs_are_given(tmp_path: Path) -> None:
    config = {"_class_name": "DiTTransformer2DModel", "_diffusers_version": "0.99", "num_layers": 2, "of_a_later_version": 1}
    (tmp_path / "pipeline" / "transformer").mkdir(parents=True)
    file = tmp_path / "pipeline" / "transformer" / "config.json"
    file.write_text(json.dumps({**config, "sample_size": 16}))
    counts = [count_transformer(path).to_dict() for path in (tmp_path / "pipeline", file.parent, file)]
    assert counts[0] == counts[1] == counts[2]
    assert counts[0]["ignored_settings"] == ["of_a_later_version"]
    assert counts[0]["inputs"] == {"hidden_states": "1x4x16x16", "timestep": "1", "class_labels": "1"}
    done = dydit("count", file.parent, "--size", "128", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, counts[0])
    assert sum(part["macs"] for part in counts[0]["parts"]) == counts[0]["macs"]
    given = ["hidden_states=1x4x16x16", "timestep=1:int", "class_labels=1:int"]
    inputs = [part for one in given for part in ("--input", one)]
    assert json.loads(dydit("count", file, *inputs, "--json").stdout) == counts[0]
    shown = dydit("count", file, "--unit", "flop")
    assert (
        f"products alone (linear, convolution, attention; no norms): {units.work(counts[0]['macs_products'], 'flop')}"
        in shown.stdout
    )
    assert "attention by torch's function, calls x (queries x keys): 2 x (64 x 64)" in shown.stdout
    assert shown.stderr == "warning: this diffusers' DiTTransformer2DModel does not know of_a_later_version; left out\n"
    unlisted = dydit("count", "AutoencoderKL", "--input", "sample=1x3x16x16", "--depth", 1)
    assert unlisted.exit_code == 0, unlisted.output
    assert "encoder" in unlisted.stdout


MISTAKES = {
    "nosuch": "nosuch: neither a folder nor a class of a model of diffusers",
    "DiTPipeline": "DiTPipeline: neither a folder nor a class of a model of diffusers",
    "{tmp}": "has no config.json of a transformer",
    "digits-dit": "digits-dit: neither a folder nor a class",
    "{weights}": "is a checkpoint of dydit's; see dydit inspect, or dydit profile",
    "DiTTransformer2DModel --set num_layer=3": "a DiTTransformer2DModel has no 'num_layer' to set; it has",
    "DiTTransformer2DModel --set num_layers=x": "no DiTTransformer2DModel can be built of its configuration: ",
    "DiTTransformer2DModel --text-tokens 3": "a DiTTransformer2DModel takes no text; leave --text-tokens out",
    "DiTTransformer2DModel --frames 3": "a DiTTransformer2DModel takes no frames; leave --frames out",
    "DiTTransformer2DModel --size 100": "100x100 pixels are no whole number of tokens, each of 16x16; choose multiples",
    "DiTTransformer2DModel --size big": "--size big: write pixels a side, such as 1024, or HEIGHTxWIDTH, such as 480x832",
    "DiTTransformer2DModel --input x": "--input x: write it as NAME=SHAPE, such as hidden_states=1x4096x64, or mask=1x77:int",
    "DiTTransformer2DModel --set num_layers=1 --input hidden_states=1x9x4x4": "a DiTTransformer2DModel cannot be run on ",
    "MochiTransformer3DModel --set num_layers=1": "it takes hidden_states, encoder_hidden_states, timestep, encoder",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words: str, tmp_path: Path) -> None:
    weights = Path(__file__).parents[2] / "dydit_cli" / "weights" / "digits-dit"
    done = dydit("count", *(word.format(tmp=tmp_path, weights=weights) for word in words.split()))
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert MISTAKES[words] in done.stderr

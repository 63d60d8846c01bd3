"""Token merging: by hand, against a plain loop, its count and its refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dydit_cli
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.artifacts.profile import Profile
from dydit_cli.bench.bench import bench_tome
from dydit_cli.bench.breakdown import TOME_PARTS
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.flops.executed import FREE, count_executed
from dydit_cli.flops.fvcore import count
from dydit_cli.model import macs as analytic
from dydit_cli.model.execution import MergedModel, executor
from dydit_cli.model.families import build_model, named_config
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT
from dydit_cli.model.families.dit_blocks import Attention, Block, modulate
from dydit_cli.model.merging import Merging, match, merge, unmerge
from dydit_cli.model.routing import Routing
from dydit_cli.profiling.profile import profile
from tests.conftest import FAMILIES, TINY, inputs, randomize

SHORT = SamplerSettings(steps=3)
ODD = replace(TINY, input_size=5)
PRUNED = replace(TINY, num_heads=2, attention_width=16, mlp_width=40)


@pytest.fixture
def static(tmp_path: Path, tiny_static: DiT) -> Path:
    write(Checkpoint.of(tiny_static, []), tmp_path / "static")
    return tmp_path / "static"


@pytest.mark.parametrize(
    ("merged", "places"),
    [
        (1, [[0, 0, 2, 1]]),  # the most similar source joins the destination; the others follow it, the more similar first
        (2, [[0, 0, 1, 0]]),
        (3, [[0, 0, 0, 0]]),
    ],
)
def test_which_of_four_tokens_merge(merged: int, places: list[list[int]]) -> None:
    """The first of 2x2 tokens is the destination; the others' cosines with it are 1, -0.6 and 0.8, whatever their lengths."""
    tokens = torch.tensor([[[1.0, 0.0], [9.0, 0.0], [-3.0, 4.0], [0.8, 0.6]]])
    merging = Merging(2, merged)
    assert match(tokens, torch.eye(2), torch.zeros(2), merging.order(), merging).tolist() == places


def test_which_of_nine_tokens_merge() -> None:
    """Destinations are the corners 0, 2, 6, 8; 4 and 5 are nearest to 8, 1 to 2, 3 to 6, 7 to nobody much."""
    corner = {0: [1.0, 0, 0, 0], 2: [0, 1.0, 0, 0], 6: [0, 0, 1.0, 0], 8: [0, 0, 0, 1.0]}
    others = {1: [0, 1.0, 0.1, 0], 3: [0, 0, 1.0, 0.5], 4: [0, 0, 0, 2.0], 5: [0.2, 0, 0, 1.0], 7: [-1.0, -1.0, -1.0, -0.9]}
    tokens = torch.tensor([[{**corner, **others}[i] for i in range(9)]])
    merging = Merging(3, 3)
    places = match(tokens, torch.eye(4), torch.zeros(4), merging.order(), merging)[0].tolist()
    assert [places[i] for i in (0, 2, 6, 8)] == [0, 1, 2, 3]
    assert [places[i] for i in (4, 1, 5)] == [3, 1, 3]
    assert [places[i] for i in (3, 7)] == [4, 5]  # the two that stay, the more similar one first


def test_attention_over_merged_tokens_by_hand() -> None:
    """Queries of zero make attention the mean of the values, and values are the tokens: of three, where two are merged."""
    attention = Attention(replace(TINY, hidden_size=4, num_heads=1))
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat([torch.zeros(4, 4), torch.eye(4), torch.eye(4)]))
        attention.proj.weight.copy_(torch.eye(4))
        for layer in (attention.qkv, attention.proj):
            layer.bias.zero_()
        tokens = torch.tensor([[[1.0, 0, 0, 0], [3.0, 0, 0, 0], [0, 2.0, 0, 0], [-1.0, 1.0, 0, 0]]])
        merging = Merging(2, 1)
        places = match(tokens, torch.eye(4), torch.zeros(4), merging.order(), merging)
        merged = merge(tokens, places, merging.kept)
        out = unmerge(attention(merged), places)
    assert merged.tolist() == [[[2.0, 0, 0, 0], [0, 2.0, 0, 0], [-1.0, 1.0, 0, 0]]]
    assert out.shape == tokens.shape
    assert torch.allclose(out, torch.tensor([1 / 3, 1.0, 0.0, 0.0]).expand_as(out))
    assert attention(tokens)[0, 0].tolist() == [0.75, 0.75, 0.0, 0.0]


def test_merging_is_the_mean_and_unmerging_a_copy() -> None:
    tokens = torch.tensor([[[1.0], [2.0], [6.0], [5.0]], [[1.0], [2.0], [3.0], [4.0]]])
    places = torch.tensor([[0, 0, 0, 1], [1, 0, 1, 0]])
    merged = merge(tokens, places, 2)
    assert merged.tolist() == [[[3.0], [5.0]], [[3.0], [2.0]]]
    assert unmerge(merged, places).tolist() == [[[3.0], [3.0], [3.0], [5.0]], [[2.0], [3.0], [2.0], [3.0]]]


def test_long_means_in_low_precision_are_exact() -> None:
    """400 ones summed in bfloat16 would stop at 256."""
    tokens = torch.ones(1, 400, 1, dtype=torch.bfloat16)
    assert merge(tokens, torch.zeros(1, 400, dtype=torch.long), 1).tolist() == [[[1.0]]]


def looped(model: DiT, ratio: float, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """ToMe written down plainly, an image at a time."""
    side = model.config.input_size // model.config.patch_size
    N = side * side
    targets = [i for i in range(N) if i // side % 2 == 0 and i % side % 2 == 0]
    h, c = model.embed(x), model.t_embedder(t) + model.y_embedder(y)
    for block in model.blocks:
        assert isinstance(block, Block)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=1)
        modulated, attended = modulate(block.norm1(h), shift_a, scale_a), []
        for image in modulated:
            keys = block.attn.qkv(image).view(N, 3, block.attn.heads, -1)[:, 1].mean(dim=1)
            likeness = [
                (max((F.cosine_similarity(keys[i], keys[j], dim=0).item(), -j) for j in targets), i)
                for i in range(N)
                if i not in targets
            ]
            groups = {i: [i] for i in range(N)}
            for (_, target), i in sorted(likeness, reverse=True)[: int(ratio * N)]:
                groups[-target] += groups.pop(i)
            out = block.attn(torch.stack([image[group].mean(dim=0) for group in groups.values()])[None])[0]
            whole = torch.empty_like(image)
            for row, group in zip(out, groups.values(), strict=True):
                whole[group] = row
            attended.append(whole)
        h = h + gate_a.unsqueeze(1) * torch.stack(attended)
        h = h + gate_m.unsqueeze(1) * block.mlp(modulate(block.norm2(h), shift_m, scale_m))
    return model.unpatchify(model.final_layer(h, c))


@pytest.mark.parametrize("config", [TINY, ODD, PRUNED], ids=["even side", "odd side", "pruned"])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.62])
def test_a_model_equals_the_plain_loop(config: DiTConfig, ratio: float) -> None:
    model = randomize(DiT(config)).double()
    x, t, y = inputs(config, 3)
    x = x.double()
    tome = MergedModel(model, ratio)
    with torch.no_grad():
        expected, plain = looped(model, ratio, x, t, y), model(x, t, y)
    assert (tome(x, t, y) - expected).abs().max() < 1e-10
    assert (plain - expected).abs().max() > 1e-3  # merging does change something
    assert (tome(x[1:2], t[1:2], y[1:2]) - expected[1:2]).abs().max() < 1e-10  # each image by itself


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_equal_tokens_lose_nothing(tiny_static: DiT, ratio: float) -> None:
    with torch.no_grad():
        tiny_static.pos_embed.zero_()
        x, t, y = inputs(TINY)
        x = x[:, :, :1, :1].expand_as(x)
        assert torch.allclose(MergedModel(tiny_static, ratio)(x, t, y), tiny_static(x, t, y), atol=1e-5)


@pytest.mark.parametrize("config", [TINY, ODD, PRUNED], ids=["even side", "odd side", "pruned"])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.6])
def test_count_equals_what_ran(config: DiTConfig, ratio: float) -> None:
    tome = MergedModel(randomize(DiT(config)), ratio)
    by_formula = analytic.total_macs(Routing.all_on(config, 2), config, tome.merging)
    total, unsupported = count(tome, inputs(config, 2))
    assert total == by_formula.sum().item()
    assert {name.removeprefix("aten::") for name in unsupported} <= FREE
    assert count_executed(tome, *inputs(config, 2)) == (total, Counter())


def test_the_count_of_xl_by_hand() -> None:
    """76 of 256 tokens merged: 180 attend. Width 1152, heads of 72, 64 destinations and 192 sources."""
    config = named_config("DiT-XL/2")
    merging = Merging.of(config, 0.3)
    matching = 256 * 1152 * 72 + 192 * 64 * 72
    assert analytic.merged_attention_macs(config, merging) == 4 * 180 * 1152**2 + 2 * 180**2 * 1152 + matching
    saved = config.depth * (analytic.attention_macs(config) - analytic.merged_attention_macs(config, merging))
    whole = Routing.all_on(config, 1)
    assert analytic.total_macs(whole, config, merging).item() == analytic.static_macs(config) - saved


@pytest.mark.parametrize(
    ("config", "ratio", "message"),
    [
        (TINY, 0.82, "tome 0.82: merges 13 of 16 tokens; it must be from 1 to 12 of them (one of every 2x2 stays)"),
        (ODD, 0.7, "tome 0.7: merges 17 of 25 tokens; it must be from 1 to 16 of them (one of every 2x2 stays)"),
        (TINY, 0.05, "tome 0.05: merges 0 of 16 tokens; it must be from 1 to 12 of them (one of every 2x2 stays)"),
        (TINY, 1.0, "tome 1: it is the share of tokens that are merged and must lie between 0 and 1"),
        (TINY, -0.2, "tome -0.2: it is the share"),
        (TINY, float("nan"), "tome nan: it is the share"),
    ],
)
def test_ratios_are_checked(config: DiTConfig, ratio: float, message: str) -> None:
    with pytest.raises(DyditError) as error:
        MergedModel(DiT(config), ratio)
    assert str(error.value).startswith(message)
    assert Merging.of(TINY, 0.75).merged == Merging.of(TINY, 0.8).merged == 12  # rounded down


def test_a_dydit_is_refused(tiny_dynamic: DyDiT) -> None:
    with pytest.raises(DyditError, match=r"tome 0.2: merging is for a static model, and a DyDiT routes tokens itself"):
        executor(tiny_dynamic, "sparse", tome=0.2)


def test_loaded_with_merging(static: Path, tiny_static: DiT) -> None:
    x, t, y = inputs(TINY)
    tome = dydit_cli.load(static, tome=0.5)
    assert isinstance(tome, MergedModel)
    assert torch.equal(tome(x, t, y), MergedModel(tiny_static, 0.5)(x, t, y))
    assert executor(tiny_static, "sparse", tome=0) is tiny_static
    assert set(tome.state_dict()) == {f"model.{name}" for name in tiny_static.state_dict()}


def test_profile_counts_what_ran(static: Path, tmp_path: Path) -> None:
    result = profile(static, tmp_path / "out", images=3, settings=SHORT, batch=2, tome=0.5, time=True, device="cpu")
    summary, merging = result.summary, Merging.of(TINY, 0.5)
    macs = int(analytic.total_macs(Routing.all_on(TINY, 1), TINY, merging)[0])
    assert summary["macs_dynamic"] == macs
    assert summary["ratio"] == macs / analytic.static_macs(TINY) < 1
    assert summary["counters_agree"]
    assert summary["executed_macs"] == {"steps": 3 * 3 * 2 * macs}
    assert (summary["tome"], summary["tokens_in_attention"]) == (0.5, 8)
    assert summary["static_seconds"] > 0 < summary["speedup"]
    back = Profile.read(tmp_path / "out")
    assert back.record.merging == merging
    pd.testing.assert_frame_equal(back.blocks, pd.read_csv(tmp_path / "out" / "blocks.csv"))
    assert set(back.images["macs_per_image"]) == {macs * 3 * 2}
    plain = profile(static, images=3, settings=SHORT, device="cpu").summary
    assert (plain["ratio"], plain["tome"], plain["tokens_in_attention"]) == (1.0, None, 16)


def test_bench_of_merging(static: Path) -> None:
    settings = BenchSettings(batch=2, steps=4, measured=1, repeats=2)
    work: list[int] = []
    result = bench_tome(0.5, static, settings=settings, device="cpu", on_work=lambda amount, note: work.append(amount))
    assert set(result.seconds) == {"static", "tome"}
    assert sum(work) == 2 * (1 + 2)
    assert tuple(result.parts) == TOME_PARTS
    for part, both in result.parts.items():
        assert both["tome"] > 0
        assert (both["static"] > 0) == (part not in ("matching", "gather and scatter"))
    values = result.to_dict()
    assert values["tome"] == 0.5
    assert values["flops_ratio"] < 1
    assert values["realised_efficiency"] == pytest.approx(values["speedup"] * values["flops_ratio"])


def test_bench_refuses_before_it_builds(tmp_path: Path, tiny_dynamic: DyDiT) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    with pytest.raises(DyditError, match="a DyDiT routes tokens itself"):
        bench_tome(0.2, tmp_path / "dynamic", device="cpu")
    with pytest.raises(DyditError, match=r"tome 0\.9: merges 230 of 256 tokens"):
        bench_tome(0.9, model="DiT-XL/2", device="cpu")


def test_rotary_positions_are_not_merged() -> None:
    config = FAMILIES["lightningdit"]
    with pytest.raises(DyditError, match="tome: tokens with rotary positions cannot be merged; leave tome out"):
        MergedModel(build_model(config), 0.4)
    model = randomize(build_model(FAMILIES["repa"]))  # norms alone are
    x, t, y = inputs(model.config, 2)
    merged = MergedModel(model, 0.4)
    _, routing = merged(x, t, y, return_routing=True)
    assert count_executed(merged, x, t, y) == (merged.macs(routing).sum().item(), Counter())

"""Structural pruning: each criterion by hand, what is kept, and that the narrower model is the original with zeros."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dydit_cli
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.compress import depth as depth_module
from dydit_cli.compress.calibration import BatchLosses, CalibrationData
from dydit_cli.compress.criteria import (
    Criterion,
    Scores,
    chosen,
    contributing,
    diff,
    magnitude,
    narrower,
    random,
    structure_sums,
    structured,
    taylor,
)
from dydit_cli.compress.methods import find_method, pruning_methods
from dydit_cli.compress.prune import kept_weights, prune
from dydit_cli.compress.structures import narrowed
from dydit_cli.data.dataset import ImageData
from dydit_cli.diffusion.process import GaussianDiffusion
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import build_model
from dydit_cli.model.families.dit import DiT, DiTConfig
from dydit_cli.model.families.lightningdit import LightningDiTConfig
from dydit_cli.model.macs import routed_macs
from tests.conftest import TINY, VIDEO, inputs, randomize

# one block of two heads of width 2 and three channels
SMALLEST = DiTConfig(input_size=2, patch_size=1, in_channels=1, hidden_size=4, depth=1, num_heads=2, num_classes=2, mlp_width=3)
GATED = LightningDiTConfig(
    input_size=2, in_channels=1, hidden_size=4, depth=1, num_heads=2, num_classes=2, mlp_width=3, rope=False
)
NOISE = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
IMAGES = ImageData("noise", NOISE, torch.arange(20) % 10, 10)
EVIDENCE = CalibrationData(data=IMAGES, batch_size=4, timesteps=5)


def zeros(config: ModelConfig = SMALLEST) -> dict[str, Tensor]:
    return {name: torch.zeros(p.shape) for name, p in structured(build_model(config)).items()}


@pytest.mark.parametrize(
    ("weight", "place", "heads", "channels"),
    [
        ("attn.qkv.weight", (1, 3), [1, 0], [0, 0, 0]),  # q, head 0
        ("attn.qkv.weight", (6, 0), [0, 1], [0, 0, 0]),  # k, head 1
        ("attn.qkv.bias", (11,), [0, 1], [0, 0, 0]),  # v, head 1
        ("attn.proj.weight", (3, 1), [1, 0], [0, 0, 0]),
        ("attn.proj.weight", (0, 2), [0, 1], [0, 0, 0]),
        ("mlp.fc1.weight", (2, 1), [0, 0], [0, 0, 1]),
        ("mlp.fc1.bias", (0,), [0, 0], [1, 0, 0]),
        ("mlp.fc2.weight", (3, 1), [0, 0], [0, 1, 0]),
        ("mlp.w12.weight", (2, 1), [0, 0], [0, 0, 1]),  # the gate of channel 2
        ("mlp.w12.bias", (3,), [0, 0], [1, 0, 0]),  # the value of channel 0
        ("mlp.w3.weight", (3, 1), [0, 0], [0, 1, 0]),
    ],
)
def test_a_weight_belongs_to_one_structure(weight: str, place: tuple[int, ...], heads: list[int], channels: list[int]) -> None:
    config = GATED if "mlp.w" in weight else SMALLEST
    values = zeros(config)
    values[f"blocks.0.{weight}"][place] = 1
    found = structure_sums(values, config)
    assert [score.tolist() for score in found] == [[heads], [channels]]


def test_structures_have_all_their_weights() -> None:
    heads, channels = structure_sums({name: torch.ones_like(w) for name, w in zeros().items()}, SMALLEST)
    assert heads.tolist() == [[3 * 2 * 4 + 3 * 2 + 4 * 2] * 2]  # rows of q, k and v, their biases, columns of proj
    assert channels.tolist() == [[4 + 1 + 4] * 3]


def test_magnitude_is_the_l2_norm() -> None:
    model = DiT(SMALLEST)
    with torch.no_grad():
        for p in structured(model).values():
            p.zero_()
        model.get_parameter("blocks.0.attn.qkv.weight")[0, 0] = -3.0
        model.get_parameter("blocks.0.attn.proj.weight")[0, 1] = 4.0
        model.get_parameter("blocks.0.mlp.fc1.bias")[2] = 5.0
        model.get_parameter("blocks.0.mlp.fc2.weight")[1, 2] = -12.0
    scores = magnitude(model, CalibrationData())
    assert scores.heads.tolist() == [[5.0, 0.0]]
    assert scores.channels.tolist() == [[0.0, 0.0, 13.0]]


def test_random_is_the_seeds(tiny_static: DiT) -> None:
    first, again, other = (random(tiny_static, CalibrationData(seed=seed)) for seed in (0, 0, 1))
    assert first.heads.shape == (3, 3)
    assert first.channels.shape == (3, 96)
    assert torch.equal(first.heads, again.heads)
    assert torch.equal(first.channels, again.channels)
    assert not torch.equal(first.heads, other.heads)


def of_structure(values: dict[str, Tensor], block: int, *, head: int | None = None, channel: int | None = None) -> Tensor:
    """Summed by plain slices, as a check of `structure_sums`; TINY has heads of width 8."""
    attn, mlp = f"blocks.{block}.attn", f"blocks.{block}.mlp"
    if channel is not None:
        rows = values[f"{mlp}.fc1.weight"][channel].sum() + values[f"{mlp}.fc1.bias"][channel]
        return rows + values[f"{mlp}.fc2.weight"][:, channel].sum()
    assert head is not None
    total = values[f"{attn}.proj.weight"][:, 8 * head : 8 * head + 8].sum()
    for part in range(3):
        rows_of = slice(24 * part + 8 * head, 24 * part + 8 * head + 8)
        total = total + values[f"{attn}.qkv.weight"][rows_of].sum() + values[f"{attn}.qkv.bias"][rows_of].sum()
    return total


def test_taylor_is_the_slope_of_the_loss_along_a_structure() -> None:
    """d/ds of the loss with the structure's weights times 1 + s, by differences."""
    # without the variational term, whose gradient leaves the mean out
    model = randomize(DiT(replace(TINY, learn_sigma=False))).double()
    scores = taylor(model, EVIDENCE)

    def loss() -> float:
        losses = BatchLosses(model, EVIDENCE)
        x0, y = next(losses.batches())
        t = losses.process.spread(len(y), losses.generator)
        return losses.at(x0, y, t, losses.noise(x0)).loss.mean().item()

    own = structured(model)
    rows = torch.tensor([*range(8, 16), *range(32, 40), *range(56, 64)])  # q, k and v of head 1

    def scale(by: float, head: bool) -> None:
        with torch.no_grad():
            if head:
                own["blocks.2.attn.qkv.weight"][rows] *= by
                own["blocks.2.attn.qkv.bias"][rows] *= by
                own["blocks.2.attn.proj.weight"][:, 8:16] *= by
            else:
                own["blocks.0.mlp.fc1.weight"][7] *= by
                own["blocks.0.mlp.fc1.bias"][7] *= by
                own["blocks.0.mlp.fc2.weight"][:, 7] *= by

    step = 1e-4
    for head, found in ((True, scores.heads[2, 1]), (False, scores.channels[0, 7])):
        scale(1 + step, head)
        above = loss()
        scale((1 - step) / (1 + step), head)
        below = loss()
        scale(1 / (1 - step), head)
        assert found.item() == pytest.approx(abs(above - below) / (2 * step), rel=1e-4)


def test_taylor_is_the_mean_over_batches() -> None:
    model = randomize(DiT(TINY))
    several = taylor(model, replace(EVIDENCE, batches=3))
    losses = BatchLosses(model, replace(EVIDENCE, batches=3))
    total = torch.zeros(())
    for x0, y in losses.batches():
        t = losses.process.spread(len(y), losses.generator)
        losses.at(x0, y, t, losses.noise(x0)).loss.mean().backward()
        weights = structured(model)
        changes = {name: p.detach() * p.grad for name, p in weights.items() if p.grad is not None}
        total = total + of_structure(changes, 1, head=2).abs()
        for p in weights.values():
            p.grad = None
    assert several.heads[1, 2].item() == pytest.approx(total.item() / 3, rel=1e-4)
    assert several.seen == "3 x 4 images of noise, timesteps spread over the schedule"


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_diff_adds_the_gradients_of_the_timesteps_with_a_large_loss(threshold: float) -> None:
    model = randomize(DiT(TINY))
    evidence = replace(EVIDENCE, threshold=threshold)
    scores = diff(model, evidence)
    losses = BatchLosses(model, evidence)
    x0, y = next(losses.batches())
    noise = losses.noise(x0)
    terms = [losses.at(x0, y, torch.full_like(y, t), noise) for t in (0, 250, 500, 749, 999)]
    errors = [term.mse.mean().item() for term in terms]
    counted = [term.loss.mean() for term, error in zip(terms, errors, strict=True) if error >= threshold * max(errors)]
    assert len(counted) == {0.0: 5, 1.0: 1}.get(threshold, len(counted))
    torch.stack(counted).sum().backward()
    changes = {name: p.detach() * p.grad for name, p in structured(model).items() if p.grad is not None}
    assert scores.heads[0, 1].item() == pytest.approx(of_structure(changes, 0, head=1).abs().item(), rel=1e-3)
    assert scores.channels[2, 40].item() == pytest.approx(of_structure(changes, 2, channel=40).abs().item(), rel=1e-3)
    assert f", {len(counted)} of 5 timesteps with {threshold:g} of the largest loss or more" in scores.seen


def test_timesteps_with_little_loss_are_left_out() -> None:
    assert contributing(torch.tensor([0.9, 1.0, 0.04, 0.05, 0.01]), 0.05).tolist() == [0, 1, 3]
    assert contributing(torch.tensor([0.9, 1.0, 0.04]), 0.0).tolist() == [0, 1, 2]


def test_timesteps_are_spread_over_the_schedule() -> None:
    t = GaussianDiffusion().spread(8, torch.Generator().manual_seed(0))
    assert (t // 125).tolist() == list(range(8))


@pytest.mark.parametrize("method", ["magnitude", "taylor", "diff"])
def test_what_has_no_part_in_the_output_goes_first(method: str, tiny_static: DiT) -> None:
    with torch.no_grad():
        for name, p in structured(tiny_static).items():
            if name == "blocks.1.attn.qkv.weight":
                p.view(3, 3, 8, 24)[:, 1] = 0
            if name == "blocks.1.attn.qkv.bias":
                p.view(3, 3, 8)[:, 1] = 0
            if name == "blocks.1.attn.proj.weight":
                p[:, 8:16] = 0
    criterion = find_method(method)
    assert isinstance(criterion, Criterion)
    scores = criterion.score(tiny_static, EVIDENCE)
    assert scores.heads[1, 1] == 0
    heads, _ = chosen(scores, narrower(TINY, 0.6))
    assert heads[1].tolist() == [0, 2]


def test_the_best_are_kept_in_their_order() -> None:
    scores = Scores(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]), torch.tensor([[0.0, 9.0, 1.0, 8.0]] * 2))
    config = DiTConfig(hidden_size=12, num_heads=2, attention_width=8, mlp_width=2, depth=2)
    heads, channels = chosen(scores, config)
    assert heads.tolist() == [[1, 2], [0, 1]]
    assert channels.tolist() == [[1, 3], [1, 3]]


@pytest.mark.parametrize("keep", [0.25, 0.3, 0.5, 0.62, 0.77, 0.9, 1.0])
def test_the_mlp_makes_up_for_whole_heads(keep: float) -> None:
    """Attention costs 4NCA + 2N^2 A and the MLP 2NCF: of both together `keep` is left, to half a channel."""
    N, C = 64, 96
    whole = DiTConfig(input_size=8, patch_size=1, in_channels=1, hidden_size=C, depth=2, num_heads=6, num_classes=10)
    config = narrower(whole, keep)
    A, F = config.head_dim * config.num_heads, config.mlp_hidden
    assert (config.num_heads, A) == (round(6 * keep), 16 * round(6 * keep))
    macs, all_macs = (4 * N * C * a + 2 * N * N * a + 2 * N * C * f for a, f in ((A, F), (96, 384)))
    assert abs(macs - keep * all_macs) <= N * C
    assert (config == whole) == (keep == 1)


def test_less_than_a_head_and_a_channel_is_refused() -> None:
    with pytest.raises(DyditError, match=r"share to keep 0.05: with 1 of 3 heads and one channel it is 0\.1\d\d; keep more"):
        narrower(TINY, 0.05)


def calibration_for(config: ModelConfig) -> CalibrationData:
    noise = torch.randn(20, *config.sample_shape, generator=torch.Generator().manual_seed(3))
    return replace(EVIDENCE, data=ImageData("noise", noise, torch.arange(20) % len(config.class_numbers), 10))


@pytest.mark.parametrize("method", pruning_methods())
def test_the_pruned_model_is_the_original_with_the_others_at_zero(method: str, any_static: Backbone) -> None:
    original, whole, pruning = any_static.double(), any_static.config, find_method(method)
    config = pruning.smaller(whole, 0.6)
    assert routed_macs(config) < routed_macs(whole)
    kept = pruning.choose(original, config, calibration_for(whole))
    pruned = build_model(config).double().eval()
    pruned.load_state_dict(kept_weights(original.state_dict(), whole, kept))
    output = whole.site("groups").output
    blocks = [original.blocks[i] for i in kept.blocks]
    with torch.no_grad():
        for block, heads, channels in zip(blocks, kept.heads, kept.channels, strict=True):
            gone = sorted({*range(3)} - {*heads.tolist()})
            assert len(gone) == whole.num_heads - config.num_heads
            for head in gone:
                block.get_parameter("attn.proj.weight")[:, 8 * head : 8 * head + 8] = 0
            others = sorted({*range(whole.mlp_hidden)} - {*channels.tolist()})
            assert len(others) == whole.mlp_hidden - config.mlp_hidden
            block.get_parameter(f"{output}.weight")[:, others] = 0
        original.blocks = nn.ModuleList(blocks)
        x, t, y = inputs(whole, batch=6)
        expected = original(x.double(), t, y)
        assert (pruned(x.double(), t, y) - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("depth", "keep", "left"), [(6, 0.5, 3), (6, 0.75, 4), (9, 0.5, 4), (9, 0.9, 8), (28, 0.7, 20), (4, 0.01, 1), (4, 1.0, 4)]
)
def test_the_number_of_blocks_is_the_nearest(depth: int, keep: float, left: int) -> None:
    assert find_method("depth").smaller(replace(TINY, depth=depth), keep) == replace(TINY, depth=left)


@pytest.mark.parametrize(("keep", "left"), [(0.5, 2), (0.7, 2), (0.8, 4), (0.01, 2)])
def test_a_video_models_blocks_go_in_pairs(keep: float, left: int) -> None:
    """A spatial one and its temporal one, which is what the two kinds' turns leave."""
    method = find_method("depth")
    config = method.smaller(VIDEO, keep)
    assert config == replace(VIDEO, depth=left)
    kept = method.choose(randomize(build_model(VIDEO)), config, calibration_for(VIDEO))
    assert kept.blocks in ([0, 1], [2, 3], [0, 1, 2, 3])
    assert len(kept.blocks) == left


def blocks_left(model: Backbone, data: CalibrationData) -> dict[tuple[int, ...], float]:
    """The loss of every pair of TINY's three blocks, each with its own draw of the same chance."""
    result: dict[tuple[int, ...], float] = {}
    blocks = list(model.blocks)
    for pair in combinations(range(3), 2):
        model.blocks, losses = nn.ModuleList(blocks[i] for i in pair), BatchLosses(model, data)
        values = []
        for x0, y in losses.batches():
            t = losses.process.spread(len(y), losses.generator)
            with torch.no_grad():
                values.append(losses.at(x0, y, t, losses.noise(x0)).loss.mean().item())
        result[pair] = sum(values) / len(values)
    model.blocks = nn.ModuleList(blocks)
    return result


@pytest.mark.parametrize("most", [500, 1])
def test_depth_keeps_the_blocks_whose_loss_is_the_smallest(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all subsets, and where those are too many, greedily; of one block less both are the same."""
    monkeypatch.setattr(depth_module, "MOST_SUBSETS", most)
    chosen_ones = set()
    for seed in range(3):
        model, work, passes = randomize(DiT(TINY), seed), Counter[str](), find_method("depth").passes
        data = replace(EVIDENCE, seed=seed, on_work=lambda n, work=work: work.update(n=n))  # type: ignore[misc]
        expected = blocks_left(model, replace(EVIDENCE, seed=seed))
        smaller = replace(TINY, depth=2)
        kept = find_method("depth").choose(model, smaller, data)
        assert tuple(kept.blocks) == min(expected, key=lambda pair: expected[pair])
        assert work["n"] == passes(TINY, smaller, data) == 3
        assert kept.seen == "1 x 4 images of noise, timesteps spread over the schedule, " + (
            "all subsets" if most == 500 else "one block less at a time"
        )
        assert len(model.blocks) == 3
        chosen_ones.add(tuple(kept.blocks))
    assert len(chosen_ones) > 1


def test_one_block_less_at_a_time_stays_among_those_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_module, "MOST_SUBSETS", 1)
    model, work = randomize(DiT(replace(TINY, depth=5))), Counter[str]()
    method, smaller = find_method("depth"), replace(TINY, depth=2)
    data = replace(EVIDENCE, batches=2, on_work=lambda n: work.update(n=n))
    two, three = (method.choose(model, replace(TINY, depth=left), data).blocks for left in (2, 3))
    assert set(two) < set(three)
    assert method.passes(model.config, smaller, data) == 5 + 4 + 3
    assert work["n"] == 2 * (5 + 4 + 3) + 2 * (5 + 4)
    assert depth_module.Depth().passes(replace(TINY, depth=28), replace(TINY, depth=14), data) == sum(range(15, 29))


@pytest.fixture
def static_folder(tmp_path: Path, tiny_static: DiT) -> Path:
    write(Checkpoint.of(tiny_static, [{"action": "pretrain"}]), tmp_path / "static")
    return tmp_path / "static"


def test_a_pruned_folder_holds_the_kept_weights_bit_for_bit(static_folder: Path, tmp_path: Path, tiny_static: DiT) -> None:
    report = prune(static_folder, tmp_path / "pruned", method="random", keep=0.6, seed=4)
    back = read(tmp_path / "pruned")
    heads, channels = chosen(random(tiny_static, CalibrationData(seed=4)), narrower(TINY, 0.6))
    expected = narrowed(tiny_static.state_dict(), TINY, {"heads": list(heads), "groups": list(channels)})
    assert back.config == narrower(TINY, 0.6)
    assert isinstance(back.config, DiTConfig)
    assert (back.config.num_heads, back.config.attention_width, back.config.mlp_width) == (2, 16, report.mlp_width)
    assert back.weights.keys() == expected.keys()
    assert all(torch.equal(w, expected[name]) for name, w in back.weights.items())
    assert back.weights["blocks.0.attn.qkv.weight"].shape == (48, 24)
    assert report.kept_heads == heads.tolist()
    assert report.parameters == sum(w.numel() for w in back.weights.values())
    assert [step["action"] for step in back.lineage] == ["pretrain", "prune"]
    step = back.lineage[-1]
    assert (step["method"], step["keep"], step["seed"], step["heads"]) == ("random", 0.6, 4, 2)
    write(back, tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "pruned" / name).read_bytes()


def test_half_precision_stays(static_folder: Path, tmp_path: Path) -> None:
    dydit_cli.export(static_folder, tmp_path / "half", format="native", dtype="bf16")
    dydit_cli.prune(tmp_path / "half", tmp_path / "pruned", keep=0.6)
    assert {w.dtype for w in read(tmp_path / "pruned").weights.values()} == {torch.bfloat16}


def test_a_pruned_model_can_be_pruned_again(static_folder: Path, tmp_path: Path) -> None:
    first = prune(static_folder, tmp_path / "a", keep=0.7)
    second = prune(tmp_path / "a", tmp_path / "b", keep=0.6)
    assert (second.heads_before, second.heads) == (first.heads, 1)
    assert second.macs < first.macs < first.macs_before


@pytest.mark.parametrize(("method", "passes"), [("taylor", 1), ("diff", 6), ("depth", 3)])
def test_methods_that_look_at_data_are_deterministic(method: str, passes: int, tmp_path: Path) -> None:
    config = DiTConfig(input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=3, num_heads=4, num_classes=10)
    write(Checkpoint.of(randomize(DiT(config)), []), tmp_path / "static")
    work: Counter[str] = Counter()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prune(
            tmp_path / "static", tmp_path / name, method=method, seed=seed, batches=2, batch_size=4, timesteps=3,
            device="cpu", on_stage=lambda what, total, unit: work.update(total=total), on_work=lambda n: work.update(done=n),
        )  # fmt: skip
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]
    assert work["done"] == work["total"] == 3 * 2 * passes


def test_mistakes_are_one_line_and_nothing_is_written(static_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"method": "best"}, "no pruning method 'best'; choose one of random, magnitude, taylor, diff, depth"),
        *(({"keep": keep}, f"share to keep {keep:g}; it must be over 0 and at most 1") for keep in (2.0, 0.0, -1.0, nan)),
        ({"method": "depth", "batches": 0}, "0 batches; importance is measured on at least 1"),
        ({"method": "taylor", "batches": 0}, "0 batches; importance is measured on at least 1"),
        ({"method": "taylor", "batch_size": 0}, "0 images in a batch; importance is measured on at least 1"),
        ({"method": "diff", "timesteps": 1001}, "1001 timesteps; choose 1 to 1000"),
        ({"method": "diff", "threshold": 1.5}, "threshold 1.5; it is a share of the largest loss, from 0 to 1"),
        ({"method": "taylor", "data": "cats"}, "no data set 'cats'"),
        ({"method": "taylor"}, "the model has no record of what it was trained on; name data with --data: digits, fashion, "),
        ({"method": "taylor", "data": "digits"}, "data set digits has 8 pixels a side and the model 4"),
    )
    for arguments, message in mistakes:
        with pytest.raises(DyditError) as error:
            prune(static_folder, out, **arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not out.exists()

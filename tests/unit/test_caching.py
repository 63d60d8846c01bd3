"""Caching between steps: weights and schedules by hand, a plain loop, what is skipped, counted and kept, refusals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dydit_cli.artifacts.bench import BenchResult
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.artifacts.profile import Profile
from dydit_cli.bench.bench import bench_cached
from dydit_cli.bench.breakdown import CACHED_PARTS
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.diffusers import as_diffusers
from dydit_cli.checkpoint.read import load
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.figures.architecture import architecture_table, draw_architecture
from dydit_cli.flops.executed import FREE, count_executed
from dydit_cli.flops.fvcore import count
from dydit_cli.model import execution, regions
from dydit_cli.model import macs as analytic
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.caching import CACHES, CacheAt, CacheOptions, CacheSchedule, Forecast, taylor_weights
from dydit_cli.model.execution import CachedModel, CompleteModel, MergedModel, ReusingModel, SparseModel, executor, weighted_sum
from dydit_cli.model.families import build_model
from dydit_cli.model.families.dit import DiT, DyDiT
from dydit_cli.model.families.dit_blocks import Block, DynamicBlock, modulate
from dydit_cli.model.options import Execution
from dydit_cli.model.routing import Routing
from dydit_cli.profiling.profile import profile
from dydit_cli.sampling.sampler import run_sampler
from tests.conftest import FAMILIES, TINY, inputs, randomize

STEPS = list(range(900, -1, -100))  # ten
BOTH: tuple[CacheAt, ...] = ("sublayers", "model")


def schedule(options: CacheOptions, timesteps: Sequence[float] = STEPS) -> CacheSchedule:
    result = options.schedule(timesteps)
    assert result is not None
    return result


def cached(model: Any, method: str, timesteps: Sequence[float] = STEPS, **more: Any) -> CachedModel:
    runner = CachedModel(model, CacheOptions(method, **more))
    runner.plan(timesteps)
    return runner


def run(model: Any, timesteps: Sequence[float] = STEPS, batch: int = 2) -> tuple[list[Tensor], list[Routing]]:
    """What a model returns at every timestep, of an input that moves a little each time."""
    x, _, y = inputs(model.config, batch)
    calls = [
        model(x + 0.01 * i, torch.full((batch,), t), y, return_routing=True) for i, t in enumerate(timesteps)
    ]  # fmt: skip
    return [out for out, _ in calls], [routing for _, routing in calls]


def largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


# weights and schedules


def test_weights_by_hand() -> None:
    assert taylor_weights([4], 6) == [1.0]
    assert taylor_weights([1, 0], 3) == [3.0, -2.0]
    # F1 = (y4 - y1) / 3, F1 before = y1 - y0, F2 = (F1 - F1 before) / 3; y4 + 2 F1 + 4 F2 / 2
    assert taylor_weights([4, 1, 0], 6) == pytest.approx([1 + 2 / 3 + 2 / 9, -2 / 3 - 2 / 9 - 2 / 3, 2 / 3])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 10**6))
def test_weights_are_the_recursion_over_factors(gaps: list[int], ahead: int, seed: int) -> None:
    """As the paper writes it: factors kept from step to step, each over the distance of the last two, and a Taylor sum."""
    steps = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    values = torch.rand(len(steps), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    factors: list[float] = []
    for i, value in enumerate(values):
        new = [value]
        for k, old in enumerate(factors):
            new.append((new[k] - old) / (steps[i] - steps[i - 1]))
        factors = new
    expected = sum(factor * ahead**k / math.factorial(k) for k, factor in enumerate(factors))
    weights = taylor_weights(steps[::-1], steps[-1] + ahead)
    assert sum(w * v for w, v in zip(weights, values[::-1], strict=True)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 6))
def test_constant_and_linear_sequences_are_forecast_exactly(gaps: list[int], ahead: int) -> None:
    steps = [sum(gaps[:i]) for i in range(len(gaps), -1, -1)]
    weights = taylor_weights(steps, steps[0] + ahead)
    assert sum(weights) == pytest.approx(1)
    assert sum(w * s for w, s in zip(weights, steps, strict=True)) == pytest.approx(steps[0] + ahead)


@pytest.mark.parametrize(
    ("options", "steps", "computed"),
    [
        (CacheOptions("fora:3"), 10, "1001001001"),
        (CacheOptions("fora:3"), 9, "101001001"),
        (CacheOptions("fora:3", first=3, last=2), 10, "1111001011"),
        (CacheOptions("taylorseer:3:1"), 10, "1100100100"),
        (CacheOptions("taylorseer:3:1", first=1), 10, "1001001001"),
        (CacheOptions("taylorseer:4:1", first=4, last=2), 10, "1111000111"),
        (CacheOptions("fora:5", first=10), 10, "1111111111"),
        (CacheOptions("fora:30"), 4, "1001"),
    ],
)
def test_schedules_by_hand(options: CacheOptions, steps: int, computed: str) -> None:
    assert "".join(str(int(one)) for one in schedule(options, list(range(steps))).computed) == computed


def test_a_step_is_a_place_on_the_grid() -> None:
    """Heun's two calls at a timestep, at the end of a step and at the beginning of the next, are one."""
    ready = SamplerSettings(sampler="heun", steps=6, cfg=1).for_model(FAMILIES["sit"])
    assert ready.timesteps is not None
    assert len(ready.timesteps) == 12
    assert list(schedule(CacheOptions("fora:3"), ready.timesteps).steps.values()) == list(range(7))


# the model


def looped(model: DiT, computed: Sequence[bool], order: int, x: Tensor, timesteps: Sequence[int], y: Tensor) -> list[Tensor]:
    """TaylorSeer written down plainly, with factors that are updated at computed steps."""
    factors: dict[tuple[int, str], list[Tensor]] = {}
    outputs, last = [], 0

    def value(key: tuple[int, str], step: int, last: int, layer: Any, norm: Any, h: Tensor, *adaln: Tensor) -> Tensor:
        if not computed[step]:
            return cast(Tensor, sum(f * (step - last) ** k / math.factorial(k) for k, f in enumerate(factors[key])))
        new: list[Tensor] = [layer(modulate(norm(h), *adaln))]
        for k, old in enumerate(factors.get(key, [])[:order]):
            new.append((new[k] - old) / (step - last))
        factors[key] = new
        return new[0]

    for step, t in enumerate(timesteps):
        h, c = model.embed(x + 0.01 * step), model.t_embedder(torch.full_like(y, t)) + model.y_embedder(y)
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=1)
            h = h + gate_a[:, None] * value((i, "a"), step, last, block.attn, block.norm1, h, shift_a, scale_a)
            h = h + gate_m[:, None] * value((i, "m"), step, last, block.mlp, block.norm2, h, shift_m, scale_m)
        outputs.append(model.unpatchify(model.final_layer(h, c)))
        last = step if computed[step] else last
    return outputs


@pytest.mark.parametrize("method", ["fora:3", "taylorseer:3:1", "taylorseer:2:2", "taylorseer:3:3"])
@torch.no_grad()
def test_a_model_equals_the_plain_loop(method: str) -> None:
    model = randomize(DiT(TINY)).double()
    runner = cached(model, method)
    x, _, y = inputs(TINY, 2)
    computed, order = schedule(CacheOptions(method)).computed, int(f"{method}:0".split(":")[2])
    expected = looped(model, computed, order, x.double(), STEPS, y)
    found = [runner(x.double() + 0.01 * i, torch.full((2,), t), y) for i, t in enumerate(STEPS)]
    assert largest(found, expected) < 1e-10
    assert largest(found, [model(x.double() + 0.01 * i, torch.full((2,), t), y) for i, t in enumerate(STEPS)]) > 1e-3


@pytest.mark.parametrize("at", BOTH)
def test_all_steps_computed_is_no_cache(any_static: Backbone, at: CacheAt) -> None:
    with torch.no_grad():
        found, routings = run(cached(any_static, "fora:4", first=len(STEPS), at=at))
        assert all(torch.equal(a, b) for a, b in zip(found, run(any_static)[0], strict=True))
    assert all(routing.forecast is None for routing in routings)


@pytest.mark.parametrize("at", BOTH)
def test_order_zero_is_fora(any_static: Backbone, at: CacheAt) -> None:
    """Ten steps and an interval of 3: both methods compute the first, the fourth, the seventh and the last."""
    found, routings = run(cached(any_static, "taylorseer:3:0", first=1, at=at))
    expected, _ = run(cached(any_static, "fora:3", at=at))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [routing.forecast is None for routing in routings] == [i % 3 == 0 for i in range(10)]


@pytest.mark.parametrize("at", BOTH)
@pytest.mark.parametrize("method", ["fora:2", "taylorseer:3:2"])
def test_sparse_equals_masked(any_dynamic: DynamicBackbone, method: str, at: CacheAt) -> None:
    with torch.no_grad():
        masked, of_masked = run(cached(any_dynamic, method, at=at), batch=4)
    sparse, of_sparse = run(cached(SparseModel(any_dynamic), method, at=at), batch=4)
    assert largest(sparse, masked) < 1e-5
    for a, b in zip(of_sparse, of_masked, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert a.forecast == b.forecast


def test_whatever_is_wrapped(tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    for model, inner in ((tiny_dynamic, CompleteModel(tiny_dynamic)), (tiny_static, MergedModel(tiny_static, 0.5))):
        computed, _ = run(inner)
        found, routings = run(cached(inner, "taylorseer:3:1"))
        for own, expected, routing in zip(found, computed, routings, strict=True):
            assert torch.equal(own, expected) == (routing.forecast is None)
        assert executor(model, "complete", cache=CacheOptions("fora:2")).merging is None
    assert cached(MergedModel(tiny_static, 0.5), "fora:2").merging is not None
    assert executor(tiny_static, "sparse", cache=CacheOptions()) is tiny_static


class Seen:
    """The regions that were entered."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        self.names.add(name)
        yield


@pytest.mark.parametrize("at", BOTH)
def test_work_is_really_skipped(any_dynamic: DynamicBackbone, at: CacheAt) -> None:
    """In a forecast step no attention, MLP or router runs, nor, where the model's output is kept, anything else."""
    runner = cached(SparseModel(any_dynamic), "fora:3", at=at)
    called: list[str] = []
    for name, module in any_dynamic.named_modules():
        if "token_selection" in name or name.endswith(("patch", "embedder", "final_layer", "attn_rate")):
            module.register_forward_hook(lambda module, arguments, output, name=name: called.append(name))
    x, _, y = inputs(any_dynamic.config, 2)
    for i, t in enumerate(STEPS):
        seen = Seen()
        called.clear()
        with regions.listen(seen):
            _, routing = runner(x, torch.full((2,), t), y, return_routing=True)
        assert (routing.forecast is None) == (i % 3 == 0)
        if routing.forecast is None:
            assert {regions.ATTENTION, regions.TOKEN_ROUTERS} <= seen.names
        else:
            assert seen.names == {regions.FORECAST}
            assert not any("token_selection" in name or "attn_rate" in name for name in called)
            assert bool(called) == (at == "sublayers")


def test_other_labels_begin_anew(tiny_static: DiT) -> None:
    """And so does a batch of another size, as where guidance ends."""
    runner = cached(tiny_static, "fora:5")
    x, _, y = inputs(TINY, 4)

    def forecast(step: int, labels: Tensor) -> bool:
        t = torch.full((len(labels),), STEPS[step])
        return runner(x[: len(labels)], t, labels, return_routing=True)[1].forecast is not None

    assert [forecast(step, y) for step in (0, 1)] == [False, True]
    assert [forecast(step, y[:2]) for step in (2, 3)] == [False, True]
    assert [forecast(step, (y[:2] + 1) % 10) for step in (3, 4, 5)] == [False, False, True]
    assert [forecast(step, (y[:2] + 1) % 10) for step in (0, 1, 2)] == [False, True, True]  # the next run
    assert [forecast(step, (y[:2] + 1) % 10) for step in (4, 3)] == [False, False]  # a step back
    runner.clear()
    assert runner.bytes == 0
    assert not forecast(2, (y[:2] + 1) % 10)


def test_what_is_not_of_the_run_is_computed(tiny_dynamic: DyDiT) -> None:
    """Mixed timesteps, one that was not planned, a model without a plan: as without a cache, and nothing is kept."""
    x, t, y = inputs(TINY)
    for runner in (cached(SparseModel(tiny_dynamic), "fora:3"), CachedModel(tiny_dynamic, CacheOptions("fora:3"))):
        for times in (t, torch.full((4,), 123)):
            with torch.no_grad():
                assert (runner(x, times, y) - tiny_dynamic(x, times, y)).abs().max() < 1e-5
        assert runner.bytes == 0


def test_a_models_ratio_is_set_through_the_cache() -> None:
    from dydit_cli.model.families import with_routers

    model = cast(DynamicBackbone, randomize(build_model(with_routers(TINY, budgets=(0.3, 1.0)))))
    runner = cached(SparseModel(model), "fora:3")
    before = run(runner)[1][0].heads.sum()
    runner.set_flops_ratio(0.3)
    assert runner.bytes == 0
    model.set_flops_ratio(0.3)
    assert torch.equal(run(runner)[1][0].heads, run(SparseModel(model))[1][0].heads)
    assert before > 0
    with pytest.raises(DyditError, match="is a static model, which has no FLOPs ratio to set"):
        cached(randomize(DiT(TINY)), "fora:3").set_flops_ratio(0.5)


@pytest.mark.parametrize(
    ("family", "sampler"),
    [
        ("dit", "ddpm"),
        ("dit", "dpmsolver++"),
        ("sit", "heun"),
        ("sit", "heun-sde"),
        ("repa", "euler-maruyama"),
        ("latte", "ddim"),
    ],
)
def test_every_sampler_of_fixed_steps(family: str, sampler: str) -> None:
    """Guided, in batches of one and of three: an image is the same; every other step is forecast, and it changes something."""
    model = randomize(build_model(FAMILIES[family]), scale=0.1)
    labels, settings = torch.tensor([0, 1, 2]), SamplerSettings(sampler=sampler, steps=6, cfg=1.5)
    samples = []
    for batch in (1, 3):
        runner = executor(model, "sparse", cache=CacheOptions("taylorseer:2:1"))
        samples.append(run_sampler(runner, labels, settings, 0, batch, 0, None))
    whole = executor(model, "sparse", cache=CacheOptions("taylorseer:2:1", first=6))
    plain, same = (run_sampler(one, labels, settings, 0, 3, 0, None) for one in (model, whole))
    scale = plain.abs().max()
    assert torch.allclose(samples[0], samples[1], atol=1e-4 * scale.item())
    assert 1e-6 < (samples[1] - plain).abs().max() / scale < 1
    if sampler not in ("heun", "heun-sde"):
        assert torch.equal(same, plain)


def test_guidance_of_an_interval(tiny_static: DiT) -> None:
    """Where it begins and ends the step is computed; in between as ever."""
    settings = SamplerSettings(steps=10, cfg=2.0, cfg_interval=(300, 700))
    runner = executor(tiny_static, "sparse", cache=CacheOptions("fora:20"))
    seen: list[bool] = []
    inner = runner.run  # type: ignore[attr-defined]

    def watched(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        out, routing = inner(x, t, y)
        seen.append(routing.forecast is None)
        return out, routing

    runner.run = watched  # type: ignore[attr-defined]
    samples = run_sampler(runner, torch.tensor([0, 1]), settings, 0, 2, 0, None)
    assert samples.isfinite().all()
    timesteps = settings.for_model(TINY).timesteps
    assert timesteps is not None
    guided = [300 <= t <= 700 for t in timesteps]
    changes = [i == 0 or i == 9 or guided[i] != guided[i - 1] for i in range(10)]
    assert seen == changes
    assert sum(changes) == 4


def test_low_precision_is_summed_in_float32() -> None:
    values = [torch.full((8,), v, dtype=torch.bfloat16) for v in (1.0, 1.0078125)]
    assert weighted_sum(values, [129.0, -128.0]).tolist() == [0.0] * 8
    assert weighted_sum(values, [1.0]) is values[0]
    assert weighted_sum(values[:1], [1.0]).dtype == torch.bfloat16


# counting


def check_counters(model: Backbone, at: CacheAt) -> None:
    config = model.config
    runner = cached(SparseModel(model) if isinstance(model, DynamicBackbone) else model, "taylorseer:2:2", at=at)
    x, _, y = inputs(config, 2)
    seen = []
    for t in STEPS[:5]:
        times = torch.full((2,), t)
        out, routing = runner(x, times, y, return_routing=True)
        if routing.forecast is not None:
            values, N, C, L = routing.forecast.values, config.num_tokens, config.hidden_size, config.depth
            by_hand = 2 * L * (C * C + (values - 1) * N * C) + config.embed_and_head_macs()
            by_hand = by_hand if at == "sublayers" else (values - 1) * out[0].numel()
            assert runner.macs(routing).tolist() == [by_hand] * 2
            total, unsupported = count(runner, (x, times, y))
            assert total == 2 * by_hand
            assert {name.removeprefix("aten::") for name in unsupported} <= FREE
            assert count_executed(runner, x, times, y) == (total, Counter())
            seen.append(values)
    assert seen == [2, 3]


@pytest.mark.parametrize("at", BOTH)
def test_three_counters_agree(any_static: Backbone, at: CacheAt) -> None:
    """The closed form over `Routing`, fvcore's analysis and the calls that ran, at forecast steps."""
    check_counters(any_static, at)


@pytest.mark.parametrize("at", BOTH)
def test_three_counters_agree_of_a_dydit(any_dynamic: DynamicBackbone, at: CacheAt) -> None:
    check_counters(any_dynamic, at)


@pytest.mark.parametrize("at", BOTH)
def test_profile_says_what_was_forecast(tiny_dynamic: DyDiT, tmp_path: Path, at: CacheAt) -> None:
    options = CacheOptions("taylorseer:3:1", last=1, at=at)
    few = SamplerSettings(steps=6)
    loaded = Checkpoint.of(tiny_dynamic, [])
    result = profile(loaded, tmp_path / "out", images=3, settings=few, batch=2, cache=options, time=True, device="cpu")
    summary, table = result.summary, result.table
    assert summary["counters_agree"], summary
    assert summary["executed_macs"] == summary["formula_macs"]
    assert {name: summary[name] for name in ("cache", "cache_first", "cache_last", "cache_at")} == {
        "cache": "taylorseer:3:1", "cache_first": 2, "cache_last": 1, "cache_at": at,
    }  # fmt: skip
    assert (summary["calls_computed"], summary["calls_forecast"]) == (4, 2)
    assert table["forecast"].tolist() == [0, 0, 1, 1, 0, 0]
    assert (table["dynamic_macs"][table["forecast"] == 1] < 0.2 * table["static_macs"][0]).all()
    assert summary["cache_bytes"] == schedule(options, list(range(6))).bytes(TINY, 4, 4)
    plain = profile(loaded, images=3, settings=few, batch=2, device="cpu")
    assert "forecast" not in plain.table
    assert plain.summary["cache"] is None
    pd.testing.assert_series_equal(table["dynamic_macs"][:2], plain.table["dynamic_macs"][:2])
    assert summary["ratio"] < plain.summary["ratio"]
    assert summary["static_seconds"] > 0 < summary["dynamic_seconds"]
    back = Profile.read(tmp_path / "out")
    assert back.record.forecasts.tolist() == [0, 0, 2, 2, 0, 0]
    assert back.record.routing(2).forecast == Forecast(at, 2)
    pd.testing.assert_frame_equal(back.blocks, pd.read_csv(tmp_path / "out" / "blocks.csv"))
    pd.testing.assert_frame_equal(back.images, pd.read_csv(tmp_path / "out" / "images.csv"))
    assert back.blocks["forecast"].mean() == pytest.approx(1 / 3)
    drawn = architecture_table(back)
    assert drawn.groupby("step")["forecast"].mean().tolist() == [0, 0, 1, 1, 0, 0]
    assert drawn.loc[drawn["forecast"] == 1, "active"].sum() == 0
    shown = draw_architecture(back).axes[2].images[0].get_array()
    assert shown is not None
    assert shown.max() == 2
    assert "forecast" not in architecture_table(plain)
    per_image = back.images["macs_per_image"].mean()
    assert per_image == pytest.approx(summary["macs_dynamic_per_image"])
    assert int(analytic.total_macs(back.record.routing(2), TINY)[0]) == table["dynamic_macs"][2]


@pytest.mark.parametrize("which", ["static", "dynamic"])
def test_bench_of_a_cache(which: str, tiny_static: DiT, tiny_dynamic: DyDiT) -> None:
    loaded = Checkpoint.of(tiny_static if which == "static" else tiny_dynamic, [])
    settings, work = BenchSettings(batch=2, steps=6, measured=1, repeats=2), list[int]()
    cache = CacheOptions("taylorseer:3:1")
    result = bench_cached(cache, loaded, settings=settings, device="cpu", on_work=lambda amount, note: work.append(amount))
    kinds = {"static", "cached"} | ({"sparse"} if which == "dynamic" else set())
    assert set(result.seconds) == kinds
    assert sum(work) == len(kinds) * (1 + 6 * 2)  # every step: `measured` is not asked
    assert tuple(result.parts) == CACHED_PARTS
    assert result.parts["forecast"]["cached"] > 0 == result.parts["forecast"]["static"]
    assert (result.subject, result.timed) == ("cached", "cached")
    values = result.to_dict()
    assert values["cache"] == {
        "cache": "taylorseer:3:1",
        "cache_first": 2,
        "cache_last": 0,
        "cache_at": "sublayers",
        "reuse_skipped": None,
    }
    assert 0.1 < values["flops_ratio"] < 0.6
    assert values["realised_efficiency"] == pytest.approx(values["speedup"] * values["flops_ratio"])
    assert isinstance(result, BenchResult)
    with pytest.raises(DyditError, match="--compile is not timed with --cache; leave it out"):
        bench_cached(cache, loaded, settings=replace(settings, compile=True), device="cpu")


# memory


@pytest.mark.parametrize("at", BOTH)
@pytest.mark.parametrize("method", ["fora:3", "taylorseer:2:2"])
def test_what_is_kept_is_what_was_said(any_static: Backbone, method: str, at: CacheAt) -> None:
    runner, said = cached(any_static, method, at=at), schedule(CacheOptions(method, at=at)).bytes(any_static.config, 2, 4)
    x, _, y = inputs(any_static.config, 2)
    held = []
    for t in STEPS:
        runner(x, torch.full((2,), t), y)
        held.append(runner.bytes)
    assert max(held) == held[-1] == said
    assert all(block.kept is None for block in any_static.blocks)


def test_no_room_is_said_before_it_is_taken(tiny_static: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    options = CacheOptions("taylorseer:2:1")
    size = schedule(options).bytes(TINY, 4, 4)
    called: list[int] = []
    tiny_static.blocks[0].register_forward_hook(lambda module, arguments, output: called.append(1))
    x, _, y = inputs(TINY)
    t = torch.full((4,), STEPS[0])
    tight, enough = (CachedModel(tiny_static, options, plan_memory=memory) for memory in (size - 1, size))
    for runner in (tight, enough):
        runner.plan(STEPS)
    with pytest.raises(DyditError) as error:
        tight(x, t, y)
    assert not called
    assert str(error.value) == (
        f"cache taylorseer:2:1: keeps {size / 1e6:.3g} MB of 4 samples at once, and has {(size - 1) / 1e6:.3g} MB; "
        "lower the batch or raise --plan-memory, or choose --cache-at model"
    )
    enough(x, t, y)
    monkeypatch.setattr(execution, "free_memory", lambda device: 10)
    with pytest.raises(DyditError, match=r"keeps .* and has 1e-05 MB"):
        cached(tiny_static, "fora:2")(x, t, y)
    monkeypatch.setattr(execution, "free_memory", lambda device: 0)  # where that cannot be told
    cached(tiny_static, "fora:2")(x, t, y)


# tokens that skip


def reusing(model: Any, timesteps: Sequence[float] = STEPS) -> ReusingModel:
    runner = ReusingModel(model)
    runner.plan(timesteps)
    return runner


def looped_skips(model: DyDiT, x: Tensor, y: Tensor) -> list[Tensor]:
    """A DyDiT whose tokens keep the last output of an MLP that they skip, written down plainly."""
    last = [torch.zeros(len(x), TINY.num_tokens, TINY.hidden_size, dtype=x.dtype) for _ in model.blocks]
    outputs = []
    for step, t in enumerate(STEPS):
        h, e = model.embed(x + 0.01 * step), model.embed_timestep(torch.full_like(y, t))
        c = model.condition(e, y)
        for i, block in enumerate(model.blocks):
            assert isinstance(block, DynamicBlock)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=1)
            heads, groups = block.attn_rate(e, 1.0, 0.0), block.mlp_rate(e, 1.0, 0.0)
            h = h + gate_a[:, None] * block.attn(modulate(block.norm1(h), shift_a, scale_a), heads)
            on = block.token_selection(h, 1.0, 0.0).bool()
            new = block.mlp(modulate(block.norm2(h), shift_m, scale_m), groups)
            for b, n in on.nonzero().tolist():
                last[i][b, n] = new[b, n]
            h = h + gate_m[:, None] * last[i]
        outputs.append(model.head(h, c))
    return outputs


@torch.no_grad()
def test_skipped_outputs_equal_the_plain_loop(tiny_dynamic: DyDiT) -> None:
    x, _, y = inputs(TINY, 2)
    model = tiny_dynamic.double()
    found = [reuse(x.double() + 0.01 * i, torch.full((2,), t), y) for reuse in [reusing(model)] for i, t in enumerate(STEPS)]
    assert largest(found, looped_skips(model, x.double(), y)) < 1e-10
    without = [model(x.double() + 0.01 * i, torch.full((2,), t), y) for i, t in enumerate(STEPS)]
    assert torch.equal(found[0], without[0])  # nothing is kept yet
    assert largest(found[1:], without[1:]) > 1e-3


@pytest.mark.parametrize("method", [None, "fora:2", "taylorseer:3:1"])
def test_skipped_outputs_sparse_equals_masked(any_dynamic: DynamicBackbone, method: str | None) -> None:
    """Alone, and under a cache, which then forecasts from what the tokens kept."""

    def runner(inner: Any) -> Any:
        return reusing(inner) if method is None else cached(ReusingModel(inner), method)

    with torch.no_grad():
        masked, of_masked = run(runner(any_dynamic), batch=4)
    sparse, of_sparse = run(runner(SparseModel(any_dynamic)), batch=4)
    assert largest(sparse, masked) < 1e-5
    for a, b in zip(of_sparse, of_masked, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert a.forecast == b.forecast
    assert all(block.last is None for block in any_dynamic.blocks)


@pytest.mark.parametrize("tokens", [0.0, 1.0])
def test_all_tokens_or_none(tiny_dynamic: DyDiT, tokens: float) -> None:
    """With every token on nothing is reused; with none nothing is there to be."""
    for router in tiny_dynamic.token_routers:
        torch.nn.init.zeros_(router.last.weight)
        torch.nn.init.constant_(router.last.bias, 200 * tokens - 100)
    with torch.no_grad():
        plain, found = run(tiny_dynamic)[0], run(reusing(SparseModel(tiny_dynamic)))[0]
    assert largest(found, plain) < 1e-5


def test_skipped_outputs_are_of_one_run_and_batch(tiny_dynamic: DyDiT) -> None:
    runner, plain = reusing(SparseModel(tiny_dynamic)), SparseModel(tiny_dynamic)
    x, _, y = inputs(TINY, 4)

    def same(step: int, labels: Tensor) -> bool:
        times = torch.full((len(labels),), STEPS[step])
        moved = x[: len(labels)].roll(step, dims=3)  # other tokens skip
        found, expected = (model(moved, times, labels) for model in (runner, plain))
        return torch.allclose(found, expected, atol=1e-5)

    assert [same(step, y) for step in (0, 1, 1, 5)] == [True, False, False, False]
    assert [same(step, y[:2]) for step in (3, 4)] == [True, False]  # where guidance ends
    assert [same(step, y[:2]) for step in (3, 4, 0)] == [True, False, True]  # a step back, the next run
    assert runner.bytes == 4 * TINY.depth * 2 * TINY.num_tokens * TINY.hidden_size
    mixed = torch.tensor([STEPS[3], STEPS[4], STEPS[3], 123])
    assert torch.allclose(runner(x, mixed, y), plain(x, mixed, y), atol=1e-5)
    assert runner.bytes > 0
    runner.clear()
    assert runner.bytes == 0


def test_skipped_outputs_cost_no_macs(tiny_dynamic: DyDiT) -> None:
    """Guided: counters equal as integers, and what is on is as without, of the first step the same tokens."""
    checkpoint = Checkpoint.of(tiny_dynamic, [])
    settings = SamplerSettings(steps=5)
    for cache in (CacheOptions(reuse_skipped=True), CacheOptions("taylorseer:2:1", reuse_skipped=True)):
        kept = profile(checkpoint, images=2, settings=settings, cache=cache, device="cpu")
        plain = profile(checkpoint, images=2, settings=settings, cache=replace(cache, reuse_skipped=False), device="cpu")
        assert kept.summary["counters_agree"]
        assert kept.summary["reuse_skipped"] is True
        assert plain.summary["reuse_skipped"] is None
        assert kept.table["dynamic_macs"][0] == plain.table["dynamic_macs"][0]
        assert not np.array_equal(kept.samples, plain.samples)


def test_skipped_outputs_and_room(tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    options, size = CacheOptions("fora:2", reuse_skipped=True), 4 * TINY.depth * 2 * TINY.num_tokens * TINY.hidden_size
    lines = options.memory(TINY, schedule(options), 2, 4)
    assert lines[1] == f"reuse-skipped: keeps the last outputs of 3 MLPs, {size / 1e6:.3g} MB for 2 samples at once"
    options.check_room(TINY, schedule(options), 2, 4, 3 * size)
    for room, message in ((3 * size - 1, "cache fora:2: keeps"), (size - 1, "reuse-skipped: keeps 0.00922 MB of 2 samples")):
        with pytest.raises(DyditError, match=message):
            options.check_room(TINY, schedule(options), 2, 4, room)
    runner = executor(tiny_dynamic, "sparse", cache=CacheOptions(reuse_skipped=True), plan_memory=10)
    runner.plan(STEPS)
    with pytest.raises(DyditError, match=r"reuse-skipped: keeps .*; lower the batch, raise --plan-memory, or leave it out"):
        run(runner)
    refused: list[tuple[Backbone, Execution, str]] = [
        (tiny_static, "sparse", "reuse-skipped: a static model has no tokens that skip an MLP; leave it out"),
        (tiny_dynamic, "complete", "reuse-skipped: with everything on no token skips an MLP; leave it out"),
    ]
    for model, how, message in refused:
        with pytest.raises(DyditError, match=message):
            executor(model, how, cache=options)


@pytest.mark.parametrize("text", ["none", "reuse", "fora:3+reuse", "taylorseer:4:1@model+reuse", "fora:3@model"])
def test_spellings(text: str) -> None:
    options = CacheOptions.parse(text)
    assert options.spelled == text
    assert options.reuse_skipped == ("reuse" in text)
    with pytest.raises(DyditError, match=r"cache fora:3\+keep: what may be added is \+reuse"):
        CacheOptions.parse("fora:3+keep")


def test_a_checkpoint_is_loaded_with_a_cache(tiny_dynamic: DyDiT) -> None:
    """In Python, and as the transformer of a DiTPipeline, which hands its timesteps on."""
    checkpoint = Checkpoint.of(tiny_dynamic, [])
    runner = load(checkpoint, execution="sparse", cache="taylorseer:3:1")
    runner.plan(STEPS)
    expected, _ = run(cached(SparseModel(tiny_dynamic), "taylorseer:3:1"))
    assert largest(run(runner)[0], expected) == 0
    at_model = load(checkpoint, cache=CacheOptions("fora:5", at="model", last=1))
    found, of_masked = run(at_model)
    assert all(routing.forecast is None for routing in of_masked)  # it was told no timesteps
    transformer = as_diffusers(load(checkpoint, cache="fora:5@model"))
    transformer.plan(STEPS)
    x, _, y = inputs(TINY, 2)
    outs = [transformer(x + 0.01 * i, torch.full((2,), t), y).sample for i, t in enumerate(STEPS)]
    assert [torch.equal(out, outs[i - 1]) for i, out in enumerate(outs)][1:5] == [True, True, True, False]
    assert largest(outs[:1], found[:1]) == 0
    assert type(load(checkpoint)) is DyDiT
    with pytest.raises(DyditError, match="cache fora: write none or fora:INTERVAL"):
        load("nowhere", cache="fora")


# refusals


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("taylor:3", {}, "cache taylor:3: write none or fora:INTERVAL or taylorseer:INTERVAL:ORDER, for instance fora:3"),
        ("fora", {}, "cache fora: write none or"),
        ("fora:3:1", {}, "cache fora:3:1: write none or"),
        ("fora:x", {}, "cache fora:x: write none or"),
        ("fora:-3", {}, "cache fora:-3: write none or"),
        ("taylorseer:3", {}, "cache taylorseer:3: write none or"),
        ("", {}, "cache : write none or"),
        ("fora:1", {}, "cache fora:1: an interval of 1 computes every step; give 2 or more, or --cache none"),
        ("taylorseer:0:2", {}, "cache taylorseer:0:2: an interval of 0 computes every step"),
        ("fora:3", {"first": 0}, "cache-first 0; it must be 1 or more"),
        ("fora:3", {"last": -1}, "cache-last -1; it must be 0 or more"),
        ("fora:3", {"at": "block"}, "cache-at 'block'; choose one of sublayers, model"),
        ("none", {"first": 3}, "cache-first 3 is for a cache; choose one with --cache, or leave it out"),
        ("none", {"at": "model"}, "cache-at model is for a cache"),
    ],
)
def test_options_are_checked(method: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DyditError) as error:
        CacheOptions(method, **more)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            CacheOptions("taylorseer:4:4"),
            "cache taylorseer:4:4: order 4 needs 5 computed steps, and 4 of 10 are; lower the order or the interval",
        ),
        (CacheOptions("fora:3", first=11), "cache-first 11: the run has 10 steps, and no more can be computed; lower it"),
        (CacheOptions("fora:3", last=11), "cache-last 11: the run has 10 steps"),
        (CacheOptions("fora:3", first=6, last=5), "cache-first 6 and cache-last 5: the run has 10 steps"),
    ],
)
def test_runs_are_checked(options: CacheOptions, message: str) -> None:
    with pytest.raises(DyditError) as error:
        options.schedule(STEPS)
    assert str(error.value).startswith(message)


def test_adaptive_steps_are_refused() -> None:
    options = CacheOptions("fora:3")
    with pytest.raises(DyditError, match="cache fora:3: sampler dopri5 chooses its own steps; choose one of fixed steps"):
        options.schedule(None, "dopri5")
    assert CacheOptions().schedule(None) is None


def test_a_registered_method_needs_no_other_place(tiny_static: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line through the last two outputs, whatever lies between, at every second step."""
    line = replace(CACHES["taylorseer"], due=lambda step, last, steps, interval: step % interval == 0)
    monkeypatch.setitem(CACHES, "line", line)
    _, routings = run(cached(tiny_static, "line:2:1"))
    assert [routing.forecast is None for routing in routings] == [True, True, True] + [False, True] * 3 + [False]
    with pytest.raises(DyditError, match="taylorseer:INTERVAL:ORDER or line:INTERVAL:ORDER"):
        CacheOptions("lines:2:1")

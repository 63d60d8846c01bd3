"""Caches of others on a DiTPipeline's transformer: diffusers' own, and cache-dit where it is installed."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from benchmarks.caching import count_blocks, pipeline_of
from dydit_cli.checkpoint.diffusers import as_diffusers
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.execution import CompleteModel, SparseModel, static_twin
from dydit_cli.model.families.dit import DiT, DyDiT
from dydit_cli.model.options import Execution
from tests.conftest import TINY, inputs

STEPS = 8
HOOKS: Any = importlib.import_module("diffusers.hooks")

TAYLOR = {"cache_identifiers": [r"transformer_blocks\.\d+"], "taylor_factors_dtype": torch.float32}
MAG = {"num_inference_steps": STEPS, "mag_ratios": [1.0] * STEPS}

# by name what computes everything, and what leaves something out
CONFIGS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "FirstBlockCache": (
        lambda: HOOKS.FirstBlockCacheConfig(threshold=-1.0),
        lambda: HOOKS.FirstBlockCacheConfig(threshold=1e3),
    ),
    "MagCache": (
        lambda: HOOKS.MagCacheConfig(retention_ratio=1.0, **MAG),
        lambda: HOOKS.MagCacheConfig(**MAG),
    ),
    "TaylorSeerCache": (
        lambda: HOOKS.TaylorSeerCacheConfig(disable_cache_before_step=STEPS, **TAYLOR),
        lambda: HOOKS.TaylorSeerCacheConfig(cache_interval=3, **TAYLOR),
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(params=["static", "masked", "sparse"])
def transformer(request: pytest.FixtureRequest, tiny_static: DiT, tiny_dynamic: DyDiT) -> Any:
    how: Execution = "sparse" if request.param == "sparse" else "masked"
    return as_diffusers(tiny_static if request.param == "static" else tiny_dynamic, how)


def drawn(pipeline: Any, steps: int = STEPS) -> Tensor:
    """2 S S 1."""
    images = pipeline(
        [3, 7], guidance_scale=1.5, generator=torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np"
    ).images
    return torch.from_numpy(images)


def shares(transformer: Any, attach: Any) -> tuple[float, Tensor, Tensor, Any]:
    """The share of blocks that a run computes, its samples, those without a cache, and the pipeline."""
    computed, pipeline = count_blocks(transformer), pipeline_of(transformer)
    # so little noise that a model that was never trained stays in the range of pixels
    pipeline.scheduler = DDIMScheduler(beta_start=1e-5, beta_end=1e-4, beta_schedule="linear", clip_sample=False)
    bare = drawn(pipeline)
    assert computed == [*range(TINY.depth)] * STEPS
    attach(pipeline)
    computed.clear()
    samples = drawn(pipeline)
    first = len(computed)
    computed.clear()
    assert torch.equal(drawn(pipeline), samples)  # every run begins anew
    assert len(computed) == first
    return first / (TINY.depth * STEPS), samples, bare, pipeline


@pytest.mark.parametrize("cache", ["FirstBlockCache", "MagCache", "TaylorSeerCache"])
def test_diffusers_own(transformer: Any, cache: str) -> None:
    """With a threshold that nothing is under all blocks run, and samples are the same; else some are left out."""
    every, some = CONFIGS[cache]
    share, samples, bare, pipeline = shares(transformer, lambda pipeline: pipeline.transformer.enable_cache(every()))
    assert share == 1
    assert torch.allclose(samples, bare, atol=1e-5)
    pipeline.transformer.disable_cache()
    share, samples, bare, pipeline = shares(transformer, lambda pipeline: pipeline.transformer.enable_cache(some()))
    assert 0.2 < share < 0.8
    assert torch.isfinite(samples).all()
    assert (samples - bare).abs().max() > 1e-5
    pipeline.transformer.disable_cache()
    assert torch.allclose(drawn(pipeline), bare, atol=1e-5)


def test_cache_dit(transformer: Any) -> None:
    """By the adapter that it has for DiTPipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports'
        package = pytest.importorskip("cache_dit", reason="cache-dit is not installed: pip install 'dydit[caches]'")

        def attach(pipeline: Any, threshold: float = 1e3) -> None:
            config = package.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=threshold)
            package.enable_cache(pipeline, cache_config=config)

        share, samples, bare, pipeline = shares(transformer, attach)
        assert 0.3 < share < 0.9
        assert (samples - bare).abs().max() > 1e-5
        package.disable_cache(pipeline)
        assert torch.allclose(drawn(pipeline), bare, atol=1e-5)
        attach(pipeline, 0.0)
        assert torch.allclose(drawn(pipeline), bare, atol=1e-5)


def test_what_calls_the_blocks_may_leave_some_out(any_dynamic: DynamicBackbone) -> None:
    """Every executor's blocks one by one, in place of its own loop; what is left out has nothing on."""
    left_out: set[int] = set()

    def through(h: Tensor, step: Any) -> Tensor:
        for i in range(len(any_dynamic.blocks)):
            h = h if i in left_out else step(i, h.clone())
        return h

    static = static_twin(any_dynamic)
    x, t, y = inputs(static.config)
    for model in (static, any_dynamic, SparseModel(any_dynamic), CompleteModel(any_dynamic)):
        left_out.clear()
        with torch.no_grad():
            expected = model(x, t, y)
            model.backbone.through = through
            assert torch.equal(model(x, t, y), expected)
            left_out.add(1)
            found, routing = model(x, t, y, return_routing=True)
            model.backbone.through = None
        assert not torch.allclose(found, expected, atol=1e-3)
        if model is any_dynamic or isinstance(model, SparseModel):
            assert not routing.heads[1].any()
            assert not routing.tokens[1].any()
            assert routing.heads[[0, 2]].any()

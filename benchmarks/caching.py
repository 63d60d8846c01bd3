"""What others' caches do to our models inside DiTPipeline, beside ours: what they leave out, what they spoil, what they save.

    OMP_NUM_THREADS=1 python benchmarks/caching.py fashion-dit runs/fashion-0.3

Each model of pixels draws through DiTPipeline (50 steps of DDIM, guidance 1.5) bare and under each cache, from the same noise,
a DyDiT sparse. A cache that refuses is a row with its error. cache-dit is measured where it is installed (`pip install
'dydit[caches]'`).
"""

from __future__ import annotations

import argparse
import importlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTPipeline
from torch import Tensor, nn

import dydit_cli
from dydit_cli.diffusion.generate import cycle_labels, image_generators

hooks: Any = importlib.import_module("diffusers.hooks")  # it hides its names from type checkers
STEPS, REPEATS = 50, 2
Attach = Callable[[Any], object]  # to a pipeline


class Pixels(nn.Module):
    """Stands in for the VAE, of models of pixels, which DiTPipeline expects in three channels or four."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def decode(self, pixels: Tensor) -> Any:
        return SimpleNamespace(sample=pixels)


def timestep() -> int:
    """For the hooks that ask for the current one: always inside their range."""
    return 500


def enable(name: str, **more: Any) -> Attach:
    """diffusers' cache `name`, of the blocks' hidden states."""
    return lambda pipeline: pipeline.transformer.enable_cache(getattr(hooks, f"{name}Config")(**more))


def cache_dit(taylorseer: bool = False, **more: Any) -> Attach:
    """cache-dit's DBCache, which computes the first block of each step, and all where its output changed more than so much."""

    def attach(pipeline: Any) -> None:
        package: Any = importlib.import_module("cache_dit")
        config = package.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=4, **more)
        calibrator = package.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylorseer else None
        package.enable_cache(pipeline, cache_config=config, calibrator_config=calibrator)

    return attach


def planned(pipeline: Any) -> None:
    """Of our own caches: they wait for the timesteps."""
    pipeline.scheduler.set_timesteps(STEPS)
    pipeline.transformer.plan(pipeline.scheduler.timesteps.tolist())


TAYLORSEER = {"cache_identifiers": [r"transformer_blocks\.\d+"], "taylor_factors_dtype": torch.float32}
CACHES: dict[str, tuple[str, Attach]] = {  # ours, and what attaches another
    "none": ("none", planned),
    "ours, fora:3": ("fora:3", planned),
    "ours, taylorseer:3:1": ("taylorseer:3:1", planned),
    "ours, taylorseer:3:1@model": ("taylorseer:3:1@model", planned),
    "diffusers, FirstBlockCache 0.1": ("none", enable("FirstBlockCache", threshold=0.1)),
    "diffusers, MagCache": ("none", enable("MagCache", num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS)),
    "diffusers, TaylorSeer 3, order 1": ("none", enable("TaylorSeerCache", cache_interval=3, **TAYLORSEER)),
    "diffusers, SeaCache": ("none", enable("SeaCache")),
    "diffusers, PyramidAttentionBroadcast": (
        "none",
        enable("PyramidAttentionBroadcast", spatial_attention_block_skip_range=2, current_timestep_callback=timestep),
    ),
    "diffusers, FasterCache": (
        "none",
        enable("FasterCache", current_timestep_callback=timestep, tensor_format="BCHW"),
    ),
    "cache-dit, DBCache 0.08": ("none", cache_dit()),
    "cache-dit, DBCache 0.2": ("none", cache_dit(residual_diff_threshold=0.2)),
    "cache-dit, DBCache 0.2 and TaylorSeer": ("none", cache_dit(taylorseer=True, residual_diff_threshold=0.2)),
}


def count_blocks(transformer: Any) -> list[int]:
    """A list that is given the number of every block when it is computed; to be called before a cache is attached."""
    computed: list[int] = []

    def counted(index: int, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(hidden_states: Tensor) -> Tensor:
            computed.append(index)
            return forward(hidden_states)

        return call

    for i, block in enumerate(transformer.transformer_blocks):
        block.forward = counted(i, block.forward)
    return computed


def pipeline_of(transformer: Any) -> Any:
    """Of a class of its own, since cache-dit changes the class, and knows it by its name."""
    made: Any = type("DiTPipeline", (DiTPipeline,), {})(
        transformer=transformer,
        vae=Pixels(),
        scheduler=DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False),
    )
    made.set_progress_bar_config(disable=True)
    return made


@dataclass
class Run:
    """pictures: M S S 1 in [-1, 1]; `blocks` is the share of a run's blocks that were computed, `seconds` of the processor."""

    pictures: Tensor
    blocks: float
    seconds: float


def run(checkpoint: str, name: str, images: int) -> Run:
    """Draws so many images under the cache `name`."""
    own, attach = CACHES[name]
    transformer: Any = dydit_cli.as_diffusers(dydit_cli.load(checkpoint, execution="sparse", cache=own))
    computed, pipeline = count_blocks(transformer), pipeline_of(transformer)
    attach(pipeline)
    labels = cycle_labels(list(range(10)), images)
    seconds = []
    for _ in range(REPEATS):
        computed.clear()
        start = time.process_time()
        drawn = pipeline(
            labels.tolist(),
            guidance_scale=1.5,
            generator=image_generators(0, 0, images),
            num_inference_steps=STEPS,
            output_type="np",
        ).images
        seconds.append(time.process_time() - start)
    return Run(torch.from_numpy(drawn) * 2 - 1, len(computed) / (STEPS * len(transformer.transformer_blocks)), min(seconds))


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="+", help="models of pixels, static or dynamic")
    parser.add_argument("--images", type=int, default=64)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| model | cache | blocks computed | time / uncached | mean squared distance to the uncached |")
    print("|---|---|---|---|---|")
    for checkpoint in chosen.checkpoint:
        run(checkpoint, "none", min(8, chosen.images))  # warm
        bare: Run | None = None
        for name in CACHES:
            try:
                one = run(checkpoint, name, chosen.images)
            except Exception as error:
                print(f"| {checkpoint} | {name} | {type(error).__name__}: {' '.join(str(error).split())[:80]} |||", flush=True)
                continue
            bare = bare or one
            distance = (one.pictures - bare.pictures).square().mean().item()
            figures = f"{100 * one.blocks:.0f} % | {one.seconds / bare.seconds:.2f} | {distance:.2g}"
            print(f"| {checkpoint} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()

"""Three counters on a real sampler run of DiT-XL/2, and what counting costs.

    python benchmarks/counting.py equality --model DiT-XL/2 --flops-ratio 0.5 --steps 20
    python benchmarks/counting.py overhead CKPT --images 64

`equality` samples two images (guidance makes it four forwards a step) with random weights routed to the ratio, and
compares at every step, as integers: the closed form over `Routing`, fvcore's handles on the calls that ran, and torch's
FlopCounterMode, which sees the products alone and counts each twice. `overhead` samples the same images with and without
the profile's recorder, alternating.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dydit_cli.bench.random_model import random_dydit
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.generate import cycle_labels, generate
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.flops.executed import Executed
from dydit_cli.model.config import NORM_MACS_PER_ELEMENT
from dydit_cli.model.execution import SparseModel, executor
from dydit_cli.model.families import named_config
from dydit_cli.model.macs import block_macs, sparse_step_macs
from dydit_cli.profiling.record import Recorder


def equality(model: str, flops_ratio: float, steps: int) -> None:
    """Prints a line a step; a difference ends it."""
    settings = SamplerSettings(steps=steps).for_model(named_config(model))
    timesteps = settings.timesteps or ()
    sparse = SparseModel(random_dydit(named_config(model), flops_ratio, timesteps))
    config = sparse.config
    sparse.plan(timesteps)
    seen = 0

    def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        sparse.prepare(int(t[0]), y)
        flops = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), flops:
            _, routing = sparse(x, t, y, return_routing=True)
        with Executed() as executed:
            out, again = sparse(x, t, y, return_routing=True)
        blocks = block_macs(again, config)
        formula = int(sparse_step_macs(again, config).sum())
        final_norm = len(x) * NORM_MACS_PER_ELEMENT * config.num_tokens * config.hidden_size
        products = formula - int(blocks.norms.sum()) - final_norm
        tokens = again.tokens.mean().item()
        print(f"t {int(t[0]):3}: tokens {tokens:.3f}  formula {formula}  ran {executed.macs}  torch {flops.get_total_flops()}")
        assert torch.equal(routing.tokens, again.tokens), "the math kernel chose other tokens: counts of two different runs"
        assert executed.macs == formula
        assert flops.get_total_flops() == 2 * products
        assert not executed.unknown
        seen += 1
        return out

    generate(denoise, cycle_labels([1, 2], 2), config.sample_shape, settings, null_class=config.null_class)
    print(f"{model}, ratio {flops_ratio}: {seen} routings of a {settings.sampler} run, three counters equal at each")


def overhead(checkpoint: str, images: int, steps: int, repeats: int) -> None:
    """Prints the seconds of both and their ratio."""
    loaded = read(checkpoint)
    settings = SamplerSettings(steps=steps).for_model(loaded.config)
    config, model = loaded.config, executor(loaded.build(), "sparse")
    labels = cycle_labels(list(range(config.num_classes)), images)
    seconds: dict[str, list[float]] = {"plain": [], "profiled": []}
    for repeat in range(repeats + 1):
        for kind in ("plain", "profiled") if repeat % 2 else ("profiled", "plain"):
            recorder = Recorder(model, 2)
            denoise, see = (model, None) if kind == "plain" else (recorder, recorder.see)
            start = time.perf_counter()
            if kind == "profiled":
                recorder.plan(settings.timesteps or ())
            generate(denoise, labels, config.sample_shape, settings, null_class=config.null_class, on_progress=see)
            if kind == "profiled":
                recorder.record()
            if repeat:  # the first round warms up
                seconds[kind].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["profiled"], strict=True)]
    print(
        f"{checkpoint}: {images} images, {steps} steps: {statistics.median(seconds['plain']):.2f} s plain, "
        f"{statistics.median(seconds['profiled']):.2f} s profiled, ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("equality")
    one.add_argument("--model", default="DiT-XL/2")
    one.add_argument("--flops-ratio", type=float, default=0.5)
    one.add_argument("--steps", type=int, default=20)
    two = commands.add_parser("overhead")
    two.add_argument("checkpoint")
    two.add_argument("--images", type=int, default=64)
    two.add_argument("--steps", type=int, default=50)
    two.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.command == "equality":
        equality(options.model, options.flops_ratio, options.steps)
    else:
        overhead(options.checkpoint, options.images, options.steps, options.repeats)


if __name__ == "__main__":
    main()

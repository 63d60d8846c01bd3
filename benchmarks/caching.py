"""What diffusers' caching hooks do to our models inside DiTPipeline: which attach, what they save, what they spoil.

    OMP_NUM_THREADS=1 python benchmarks/caching.py digits-dit runs/digits-0.5

Each model draws digits through DiTPipeline (50 steps of DDIM, guidance 1.5) bare and under each hook. A hook that
refuses is a row with its error. `attached` counts hooked modules, `fired` the calls that reached them; without a call a
hook has no effect, which is what happens where the sparse executor reads a module's weights and never calls it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTPipeline
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.hooks import HookRegistry
from torch import Tensor, nn

import dydit_cli
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.generate import cycle_labels, image_generators
from dydit_cli.evaluate.classifier import classifier
from dydit_cli.model.families.dit import Block, DiT, DynamicBlock

hooks: Any = importlib.import_module("diffusers.hooks")  # it hides its names from type checkers
STEPS = 50
EVERY = 2  # TaylorSeer computes every second step, and extrapolates the other


class Pixels(nn.Module):
    """Stands in for the VAE: the digits model draws pixels, which DiTPipeline expects in three channels or four."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def decode(self, pixels: Tensor) -> Any:
        return SimpleNamespace(sample=pixels)


def timestep() -> int:
    """For the hooks that ask for the current one: always inside their range."""
    return 500


def taylorseer(*patterns: str) -> Callable[[nn.Module], None]:
    """TaylorSeer on the modules with these names."""
    config = hooks.TaylorSeerCacheConfig(
        cache_interval=EVERY, cache_identifiers=list(patterns), taylor_factors_dtype=torch.float32
    )
    return lambda module: hooks.apply_taylorseer_cache(module, config)


def first_block_registered(module: nn.Module) -> None:
    """FirstBlockCache after telling diffusers of our classes, as it does for its own."""
    for block in (Block, DynamicBlock):
        known = TransformerBlockMetadata(return_hidden_states_index=0, _cached_parameter_indices={"hidden_states": 0})
        TransformerBlockRegistry.register(block, known)
    try:
        hooks.apply_first_block_cache(module, hooks.FirstBlockCacheConfig(threshold=0.1))
    finally:
        for block in (Block, DynamicBlock):
            del TransformerBlockRegistry._registry[block]


PAB = hooks.PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=timestep)
FASTER = hooks.FasterCacheConfig(current_timestep_callback=timestep, tensor_format="BCHW", is_guidance_distilled=True)
HOOKS: dict[str, Callable[[nn.Module], None]] = {
    "FirstBlockCache": lambda module: hooks.apply_first_block_cache(module, hooks.FirstBlockCacheConfig(threshold=0.1)),
    "FirstBlockCache, our blocks registered": first_block_registered,
    "PyramidAttentionBroadcast": lambda module: hooks.apply_pyramid_attention_broadcast(module, PAB),
    "FasterCache": lambda module: hooks.apply_faster_cache(module, FASTER),
    "MagCache": lambda module: hooks.apply_mag_cache(
        module, hooks.MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS)
    ),
    "SeaCache": lambda module: hooks.apply_sea_cache(module, hooks.SeaCacheConfig()),
    "TaylorSeer on attention": taylorseer(r"blocks\.\d+\.attn"),
    "TaylorSeer on attention and MLP": taylorseer(r"blocks\.\d+\.(attn|mlp)"),
    "TaylorSeer on the whole model": taylorseer(""),
}


def inner(transformer: Any) -> nn.Module:
    """The DiT that holds the blocks, whichever executor runs it."""
    model: nn.Module = transformer.model
    return model if isinstance(model, DiT) else model.model  # type: ignore[return-value]


def run(checkpoint: str, execution: Any, hook: str | None, images: int) -> dict[str, Any]:
    """Draws `images` digits: pictures M 1 8 8, seconds, the share that is recognised, and what the hooks did."""
    transformer: Any = dydit_cli.as_diffusers(dydit_cli.load(checkpoint), execution)
    vae: Any = Pixels()
    scheduler: Any = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    pipeline: Any = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    labels = cycle_labels(list(range(10)), images)
    fired = {"computed": 0, "called": 0}
    hooked: list[nn.Module] = []
    if hook is not None:
        target = transformer.model if hook.endswith("whole model") else inner(transformer)
        HOOKS[hook](target)
        # DiTPipeline sets no cache context, which stateful hooks want
        HookRegistry.check_if_exists_or_initialize(target)
        hooks.hooks._set_cache_context(target, hooks.hooks.CacheContext("digits"))
        hooked = [module for module in transformer.modules() if has_hook(module)]
        for module in hooked:
            count(module, fired)

    def draw(number: int) -> Any:
        return pipeline(
            labels[:number].tolist(),
            guidance_scale=1.5,
            generator=image_generators(0, 0, number),
            num_inference_steps=STEPS,
            output_type="np",
        ).images

    start = time.perf_counter()
    pictures = torch.from_numpy(draw(images)).permute(0, 3, 1, 2) * 2 - 1  # M 1 8 8
    seconds = time.perf_counter() - start
    recognised = classifier().class_accuracy(pictures, labels)
    return {"pictures": pictures, "seconds": seconds, "recognised": recognised, "attached": len(hooked), **fired}


def has_hook(module: Any) -> bool:
    """Whether a hook of diffusers is on this module itself."""
    return hasattr(module, "_diffusers_hook") and bool(module._diffusers_hook.hooks)


def count(module: Any, fired: dict[str, int]) -> None:
    """Counts calls of a hooked module, and those of them that compute."""
    outer, registry = module.forward, module._diffusers_hook
    first = registry.hooks[registry._hook_order[0]]
    original = first.fn_ref.original_forward

    def called(*args: Any, **more: Any) -> Any:
        fired["called"] += 1
        return outer(*args, **more)

    def computed(*args: Any, **more: Any) -> Any:
        fired["computed"] += 1
        return original(*args, **more)

    module.forward, first.fn_ref.original_forward = called, computed


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="+", help="models of digits, static or dynamic")
    parser.add_argument("--images", type=int, default=64)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| model | execution | hook | attached | calls | computed | seconds | recognised | mean difference of a pixel |")
    print("|---|---|---|---|---|---|---|---|---|")
    for checkpoint in chosen.checkpoint:
        dynamic = read(checkpoint).config.kind == "dydit"
        for execution in ("masked", "sparse") if dynamic else ("static",):
            how = "masked" if execution == "static" else execution
            bare = torch.zeros(())
            for hook in (None, *HOOKS):
                name = f"| {checkpoint} | {execution} | {hook or 'none'} |"
                try:
                    r = run(checkpoint, how, hook, chosen.images)
                except Exception as error:
                    print(name, f"refused: {type(error).__name__}: {' '.join(str(error).split())[:110]} ||||||", flush=True)
                    continue
                bare = r["pictures"] if hook is None else bare
                difference = (r["pictures"] - bare).abs().mean().item() / 2
                counts = f"{r['attached']} | {r['called']} | {r['computed']}"
                seen = f"{100 * r['recognised']:.1f} % | {100 * difference:.2f} %"
                print(name, f"{counts} | {r['seconds']:.2f} | {seen} |", flush=True)


if __name__ == "__main__":
    main()

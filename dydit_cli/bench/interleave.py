"""Several models timed on the same inputs, one after the other, again and again: drift and heat fall on all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dydit_cli.devices import wait

OnWork = Callable[[int, str], None]  # evaluations done, and what is being done


def interleaved(
    variants: Mapping[str, Callable[..., Any]],
    x: Tensor,
    y: Tensor,
    timesteps: list[int],
    repeats: int,
    place: torch.device,
    on_work: OnWork,
    begin: Callable[[], None] = lambda: None,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """By variant the mean seconds of an evaluation, one figure a repeat, and on cuda the most bytes that one held.

    Each runs once beforehand, to be warm and compiled; `begin` is called before every repeat.
    """
    for kind, model in variants.items():
        model(x, torch.full_like(y, timesteps[len(timesteps) // 2]), y)
        on_work(1, f"warming {kind}")
    means: dict[str, list[float]] = {kind: [] for kind in variants}
    peaks: dict[str, int] = {}
    order = list(variants)
    for repeat in range(repeats):
        sums = dict.fromkeys(variants, 0.0)
        begin()
        for i, timestep in enumerate(timesteps):
            t = torch.full_like(y, timestep)
            shift = (repeat + i) % len(order)
            for kind in order[shift:] + order[:shift]:  # nobody always comes first
                seconds, peak = _time(variants[kind], (x, t, y), place)
                sums[kind] += seconds
                peaks[kind] = max(peaks.get(kind, 0), peak)
                on_work(1, "")
        for kind, total in sums.items():
            means[kind].append(total / len(timesteps))
    return means, peaks


def _time(model: Callable[..., Any], inputs: tuple[Tensor, ...], place: torch.device) -> tuple[float, int]:
    """Seconds of one evaluation and, on cuda, the most bytes that it held."""
    gc.collect()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    wait(place)
    start = time.perf_counter()
    model(*inputs)
    wait(place)
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0

"""What a fine-tuning step costs in the complete-model phase, and what it costs when that pass is thinned out.

    python benchmarks/complete_phase.py --model DiT-S/2 --batch 8

The paper's way runs every batch through the dynamic and through the complete model. Random latents stand in for data: the
time does not depend on them. A round runs `--steps` steps of every variant; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from dydit_cli.data.dataset import ImageData
from dydit_cli.model.families import named_config
from dydit_cli.model.families.dit import DyDiT, DyDiTConfig
from dydit_cli.train.loop import train
from dydit_cli.train.recipe import Recipe, RoutingRecipe, TrainRecipe

EVERY = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "two forwards (the paper)": {"complete_steps": 10**6},
    "complete pass on every 8th step": {"complete_steps": 10**6, "complete_every": EVERY},
    "complete pass on an eighth of the batch": {"complete_steps": 10**6, "complete_share": 1 / EVERY},
    "no complete pass": {},
}


def seconds_per_step(model: DyDiT, batch: int, steps: int, routing: dict[str, Any]) -> float:
    """Mean seconds of a step."""
    config = model.config
    images = torch.randn(4 * batch, config.in_channels, config.input_size, config.input_size)
    data = ImageData("random", images, torch.arange(4 * batch) % config.num_classes, config.num_classes)
    recipe = Recipe(train=TrainRecipe(steps=steps, batch_size=batch), routing=RoutingRecipe(**routing))
    return train(model, data, recipe).seconds / steps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="DiT-S/2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=EVERY, help=f"a multiple of {EVERY}, so that every 8th step is one")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = DyDiT(DyDiTConfig.from_static(named_config(options.model)))
    seconds_per_step(model, options.batch, 1, {})  # warm
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(options.rounds):
        for name in list(VARIANTS) if turn % 2 == 0 else reversed(list(VARIANTS)):
            found[name].append(seconds_per_step(model, options.batch, options.steps, VARIANTS[name]))
    medians = {name: statistics.median(values) for name, values in found.items()}
    plain = medians["two forwards (the paper)"]
    print(f"{options.model}, batch {options.batch}, {torch.get_num_threads()} threads, fp32\n")
    print("| variant | s/step | over two forwards |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} ({min(found[name]):.2f} to {max(found[name]):.2f}) | {value / plain:.2f} |")


if __name__ == "__main__":
    main()

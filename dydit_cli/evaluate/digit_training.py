"""Trains the digits' feature network, in some seconds: `python -m dydit_cli.evaluate.digit_training DIR`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dydit_cli.data.digits import load_digits_split
from dydit_cli.evaluate.digit_network import (
    FACTS_FILE,
    FEATURES,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    DigitNetwork,
    as_input,
)
from dydit_cli.evaluate.images import real_digits
from dydit_cli.files import atomic_file, write_json

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 40, 64, 3e-3, 0.05, 0.05


def train(epochs: int = EPOCHS, seed: int = 0) -> DigitNetwork:
    """AdamW with one cycle of the learning rate, on the 1,437 training digits, each epoch's image moved by up to a pixel.

    The held-out digits play no part. The same seed on the same machine gives the same network.
    """
    images, labels = as_input(real_digits().pixels), load_digits_split().labels
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            logits = network.logits(network(shifted(images[index], generator)))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """M 1 S S, every second image or so moved by one pixel to some side, the edge filled with paper (-1)."""
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    side = images.shape[-1]
    # twice as likely to stay as to move either way
    moves = torch.tensor([0, 1, 1, 2])[torch.randint(4, (len(images), 2), generator=generator)]
    return torch.stack([padded[i, :, y : y + side, x : x + side] for i, (y, x) in enumerate(moves.tolist())])


@torch.no_grad()
def accuracy(network: DigitNetwork, held_out: bool = True) -> float:
    """The share of the real digits, held-out or training ones, that `network` sees as their class."""
    seen = network.logits(network(as_input(real_digits(held_out).pixels))).argmax(dim=1)
    return (seen == load_digits_split(held_out).labels).double().mean().item()


def write(folder: Path, epochs: int = EPOCHS, seed: int = 0) -> dict[str, object]:
    """Trains, and writes model.safetensors and features.json, which holds what is returned."""
    start = time.perf_counter()
    network = train(epochs, seed)
    facts = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "features": FEATURES,
        "accuracy": accuracy(network),
        "held_out": len(load_digits_split(held_out=True)),
        "training_accuracy": accuracy(network, held_out=False),
        "training": len(load_digits_split()),
        "epochs": epochs,
        "seed": seed,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
    }
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        save_file(network.state_dict(), temporary)
    write_json(folder / FACTS_FILE, facts)
    return facts


def main(arguments: list[str]) -> int:
    """The script: one argument, a folder that is not there yet."""
    if len(arguments) != 1:
        print("usage: python -m dydit_cli.evaluate.digit_training DIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    if folder.exists():
        print(f"error: {folder}: already exists; choose another name", file=sys.stderr)
        return 2
    facts = write(folder)
    print(f"{facts['accuracy']:.1%} of {facts['held_out']} held-out digits, in {facts['seconds']} s: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

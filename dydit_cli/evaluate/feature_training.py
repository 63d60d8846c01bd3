"""Trains a data set's feature network, in seconds to minutes: `python -m dydit_cli.evaluate.feature_training NAME DIR`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dydit_cli.checkpoint.stream import write_safetensors
from dydit_cli.data.load import BUNDLED
from dydit_cli.evaluate.feature_network import (
    FACTS_FILE,
    FEATURES,
    FORMAT_VERSION,
    NETWORKS,
    WEIGHTS_FILE,
    FeatureNetwork,
    as_input,
    format_of,
)
from dydit_cli.evaluate.images import real_images
from dydit_cli.files import atomic_file, write_json

EPOCHS = {"digits": 40, "glyphs": 12}

BATCH = {"digits": 64, "glyphs": 128}

LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 3e-3, 0.05, 0.05


def train(name: str, epochs: int | None = None, seed: int = 0) -> FeatureNetwork:
    """AdamW with one cycle of the learning rate, on the training images of `name`, each epoch's moved by up to a pixel.

    The held-out ones play no part. The same seed on the same machine gives the same network.
    """
    images, labels = as_input(real_images(name).pixels), BUNDLED[name]().labels
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureNetwork(*NETWORKS[name])
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    epochs = epochs or EPOCHS[name]
    steps = epochs * -(-len(images) // BATCH[name])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(BATCH[name]):
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
def accuracy(name: str, network: FeatureNetwork, held_out: bool = True) -> float:
    """The share of the real images of `name`, held-out or training ones, that `network` sees as their class."""
    seen = network.logits(network(as_input(real_images(name, held_out).pixels))).argmax(dim=1)
    return (seen == BUNDLED[name](held_out).labels).double().mean().item()


def write(name: str, folder: Path, epochs: int | None = None, seed: int = 0) -> dict[str, object]:
    """Trains, and writes model.safetensors and features.json, which holds what is returned."""
    start = time.perf_counter()
    network = train(name, epochs, seed)
    facts = {
        "format": format_of(name),
        "format_version": FORMAT_VERSION,
        "features": FEATURES,
        "accuracy": accuracy(name, network),
        "held_out": len(BUNDLED[name](held_out=True)),
        "training_accuracy": accuracy(name, network, held_out=False),
        "training": len(BUNDLED[name]()),
        "epochs": epochs or EPOCHS[name],
        "seed": seed,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
    }
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        write_safetensors(temporary, network.state_dict(), metadata=None)
    write_json(folder / FACTS_FILE, facts)
    return facts


def main(arguments: list[str]) -> int:
    """The script: a data set's name, and a folder that is not there yet."""
    if len(arguments) != 2 or arguments[0] not in NETWORKS:
        print(f"usage: python -m dydit_cli.evaluate.feature_training {{{','.join(NETWORKS)}}} DIR", file=sys.stderr)
        return 2
    name, folder = arguments[0], Path(arguments[1])
    if folder.exists():
        print(f"error: {folder}: already exists; choose another name", file=sys.stderr)
        return 2
    facts = write(name, folder)
    print(f"{facts['accuracy']:.1%} of {facts['held_out']} held-out {name}, in {facts['seconds']} s: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

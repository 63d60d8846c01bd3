"""Trains the feature network of a data set, in seconds to minutes: `python benchmarks/feature_training.py NAME DIR`.

What it writes, moved to `dydit_cli/weights/NAME-features`, is what `dydit evaluate --features NAME` uses.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dydit_cli.checkpoint.stream import write_safetensors
from dydit_cli.data.imagefolder import to_model
from dydit_cli.data.load import load_data
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.feature_network import FACTS_FILE, FORMAT_VERSION, WEIGHTS_FILE, WIDTH, FeatureNetwork, format_of
from dydit_cli.evaluate.images import real_images
from dydit_cli.files import atomic_file, check_output, write_json

EPOCHS, BATCH = 12, 128

SCHEDULES = {"digits": (40, 64), "fashion": (10, 256)}  # epochs and batch of a set of few images, and of one of many

POOLED_TWICE = 20  # pixels a side, from which on both convolutions are pooled: a quarter of the work and of the weights

AT_ONCE = 1000  # images

LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 3e-3, 0.05, 0.05


def train(name: str, epochs: int | None = None, seed: int = 0) -> FeatureNetwork:
    """AdamW with one cycle of the learning rate, on the training images of `name`, each epoch's moved by up to a pixel.

    The held-out ones play no part. The same seed on the same machine gives the same network.
    """
    images, labels = examples(name)
    usual, batch = SCHEDULES.get(name, (EPOCHS, BATCH))
    epochs = epochs or usual
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side = images.shape[-1]
        network = FeatureNetwork(side, load_data(name).num_classes, poolings=2 if side >= POOLED_TWICE else 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(batch):
            logits = network.logits(network(shifted(images[index], generator)))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def examples(name: str, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """The real images of `name`, training or held-out ones, in 256 levels as samples are: M 1 S S; and labels (M,)."""
    real = real_images(name, held_out)
    return to_model(real.pixels), torch.as_tensor(real.labels)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """M 1 S S, every second image or so moved by one pixel to some side, the edge filled with paper (-1)."""
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    side = images.shape[-1]
    # twice as likely to stay as to move either way
    moves = torch.tensor([0, 1, 1, 2])[torch.randint(4, (len(images), 2), generator=generator)]
    return torch.stack([padded[i, :, y : y + side, x : x + side] for i, (y, x) in enumerate(moves.tolist())])


@torch.no_grad()
def accuracy(name: str, network: FeatureNetwork, held_out: bool = True) -> float:
    """The share of the real images of `name`, held-out or training ones, that `network` takes for their class."""
    images, labels = examples(name, held_out)
    predicted = torch.cat([network.logits(network(part)).argmax(dim=1) for part in images.split(AT_ONCE)])
    return (predicted == labels).double().mean().item()


def write(name: str, folder: Path, epochs: int | None = None, seed: int = 0) -> dict[str, object]:
    """Trains, and writes model.safetensors and features.json, which holds what is returned."""
    start = time.perf_counter()
    held_out = real_images(name, held_out=True).count
    network = train(name, epochs, seed)
    facts = {
        "format": format_of(name),
        "format_version": FORMAT_VERSION,
        "features": WIDTH,
        "poolings": network.poolings,
        "accuracy": accuracy(name, network),
        "held_out": held_out,
        "training_accuracy": accuracy(name, network, held_out=False),
        "training": real_images(name).count,
        "epochs": epochs or SCHEDULES.get(name, (EPOCHS, BATCH))[0],
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
    if len(arguments) != 2:
        print("usage: python benchmarks/feature_training.py NAME DIR", file=sys.stderr)
        return 2
    name, folder = arguments[0], Path(arguments[1])
    try:
        facts = write(name, check_output(folder))
    except DyditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{facts['accuracy']:.1%} of {facts['held_out']} held-out {name}, in {facts['seconds']} s: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The networks whose features images of a data set are compared by: small, trained on the real ones, and shipped.

Trained again by `python benchmarks/feature_training.py NAME DIR`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dydit_cli.bundled import WEIGHTS
from dydit_cli.checkpoint.tensors import read_safetensors
from dydit_cli.data.imagefolder import to_model
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import CLASS_FIGURES, Extractor, Features, Pixels
from dydit_cli.evaluate.registry import ENDING
from dydit_cli.files import read_json, sha256

WEIGHTS_FILE, FACTS_FILE = "model.safetensors", "features.json"

FORMAT_VERSION = 1

WIDTH = 64  # features


class FeatureNetwork(nn.Module):
    """M 1 S S in [-1, 1] -> features M x 64, the layer below the logits of the classes.

    `poolings` halve the side: 1 behind the second convolution, or 2, one behind each.
    """

    def __init__(self, side: int, classes: int, poolings: int = 1) -> None:
        super().__init__()
        self.side, self.poolings = side, poolings
        self.near = nn.Conv2d(1, 16, 3, padding=1)
        self.far = nn.Conv2d(16, 32, 3, padding=1)
        self.features = nn.Linear(32 * (side // 2**poolings) ** 2, WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.near(images))  # M 16 S S
        x = F.max_pool2d(x, 2) if self.poolings == 2 else x
        x = F.max_pool2d(F.gelu(self.far(x)), 2)  # M 32 S/2 S/2, or S/4 S/4
        return F.gelu(self.features(x.flatten(1)))

    def logits(self, features: Tensor) -> Tensor:
        """M x 64 -> M x classes."""
        return self.head(features)

    @torch.no_grad()
    def extract(self, pixels: Pixels) -> Features:
        """M S S 1 -> the features, and the probabilities of the data set's classes."""
        features = self(to_model(pixels))
        return Features(features.numpy(), probabilities=self.logits(features).softmax(dim=1).numpy())


def format_of(name: str) -> str:
    """What features.json calls the network of a data set."""
    return f"dydit-{name}-features"


def shipped(name: str) -> Path:
    """The folder of the network of a data set."""
    return WEIGHTS / f"{name}{ENDING}"


def read_network(name: str, folder: Path | None = None) -> tuple[FeatureNetwork, float]:
    """The shipped network of the data set `name`, or the one in `folder`, and its accuracy on the held-out images.

    Raises `DyditError` where there is none.
    """
    folder = folder or shipped(name)
    weights, facts = read_safetensors(folder / WEIGHTS_FILE), read_json(folder / FACTS_FILE)
    try:
        if facts["format"] != format_of(name) or facts["format_version"] != FORMAT_VERSION:
            raise KeyError("format")
        poolings = int(facts.get("poolings", 1))
        side = 2**poolings * math.isqrt(weights["features.weight"].shape[1] // 32)
        network = FeatureNetwork(side, len(weights["head.weight"]), poolings)
        network.load_state_dict(weights)
        return network.eval(), float(facts["accuracy"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DyditError(f"{folder}: not the features of {name} ({str(error).splitlines()[0]}); reinstall dydit") from None


def network_extractor(name: str) -> Extractor:
    """The shipped network of the data set `name`, for grey images."""
    network, accuracy = read_network(name)
    facts = {
        "features": f"{name}-features, {WIDTH} of a network trained on the real {name}",
        "features_accuracy": accuracy,
        "features_sha256": sha256(shipped(name) / WEIGHTS_FILE),
    }
    return Extractor(name, name, network.side, 1, facts, network.extract, CLASS_FIGURES)

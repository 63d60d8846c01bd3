"""The Inception network of FID, through torch-fidelity: its port of the 2015 TensorFlow graph that ADM's suite runs."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dydit_cli.checkpoint.tensors import read_pickle
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import ADM_FIGURES, Extractor, Features, Pixels
from dydit_cli.files import sha256

PACKAGE, MODULE = "torch_fidelity", "feature_extractor_inceptionv3"

WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"

POOL, LOGITS = "2048", "logits_unbiased"  # torch-fidelity's names; ADM's softmax leaves the bias out too

SPATIAL_CHANNELS = 7


class Inception:
    """The features of colour images M S S 3 of any size; the network brings them to 299 pixels, as TensorFlow 1 does.

    Pool features M x 2048 (TensorFlow's pool_3), spatial ones M x 2023 (the first 7 channels of mixed_6/conv, which is
    17 x 17, in TensorFlow's order: rows, columns, channels; Nash et al., arXiv 2103.03841) and probabilities M x 1008.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network.eval().to(device), device
        self._spatial = torch.empty(0)
        # TensorFlow's mixed, mixed_1, ... are torch's Mixed_5b, 5c, 5d, 6a, 6b, 6c, 6d: mixed_6/conv is the 1x1 branch of 6d
        inner: Any = network
        inner.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS]

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> Features:
        pool, logits = self.network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(self.device))
        spatial = self._spatial.permute(0, 2, 3, 1).flatten(1)
        return Features(*(part.float().cpu().numpy() for part in (pool, spatial, logits.softmax(dim=1))))


def inception_extractor(weights: str | Path | None, device: torch.device) -> Extractor:
    """The network with torch-fidelity's weights file: `weights`, or the one in PyTorch's hub cache.

    Raises `DyditError` where torch-fidelity or the weights are missing, or are something else. Nothing is downloaded.
    """
    module = fidelity_module()
    path = find_weights(weights, module)
    state = read_pickle(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DyditError(f"{path}: holds no weights (a mapping of names to tensors); it is not torch-fidelity's {WEIGHTS_FILE}")
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity unpickles its file, code and all: it gets our own copy of what was read as data
        torch.save(dict(state), Path(folder) / WEIGHTS_FILE)
        try:
            network = module.FeatureExtractorInceptionV3(
                "inception", [POOL, LOGITS], feature_extractor_weights_path=str(Path(folder) / WEIGHTS_FILE)
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise DyditError(f"{path}: not torch-fidelity's {WEIGHTS_FILE} ({reason})") from None
    facts = {
        "features": "inception of 2015-12-05, torch-fidelity's port",
        "features_sha256": sha256(path),
        "features_resize": "bilinear to 299 pixels, as TensorFlow 1",
    }
    return Extractor("inception", None, None, 3, facts, Inception(network, device), ADM_FIGURES)


def find_weights(weights: str | Path | None, module: Any) -> Path:
    """`weights`, or torch-fidelity's file in PyTorch's hub cache; raises `DyditError` where there is none."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
    path = cached if weights is None else Path(weights)
    if path.is_file():
        return path
    if weights is not None:
        raise DyditError(f"--inception {weights}: no such file; give torch-fidelity's {WEIGHTS_FILE}")
    raise DyditError(
        f"{cached}: the Inception weights are not there; download {module.URL_INCEPTION_V3} to that place, "
        "or name the file with --inception PATH"
    )


def fidelity_module() -> Any:
    """torch-fidelity's Inception module; raises `DyditError` where the package or its torchvision is missing."""
    try:
        return importlib.import_module(f"{PACKAGE}.{MODULE}")
    except ImportError as error:
        raise DyditError(f"--features inception needs torch-fidelity: pip install 'dydit[evaluate]' ({error})") from None

"""Which samples, and which features: from what the user typed."""

from __future__ import annotations

from pathlib import Path

from dydit_cli.checkpoint.read import PICKLES
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.feature_network import NETWORKS, network_extractor
from dydit_cli.evaluate.features import Extractor
from dydit_cli.evaluate.images import Images, open_folder, read_record
from dydit_cli.evaluate.inception import inception_extractor
from dydit_cli.evaluate.npz import open_npz
from dydit_cli.evaluate.reference import real
from dydit_cli.sampling.shards import FORMAT, SAMPLES_FILE

FEATURES = ("inception", *NETWORKS)
CHECKPOINT_NAMES = {"config.json", "model_index.json"}
CHECKPOINT_SUFFIXES = {*PICKLES, ".safetensors"}


def find_images(samples: str | Path) -> Images | None:
    """The images that `samples` names: an .npz, a folder that `dydit sample` wrote, any folder of pictures, or a
    bundled data set by name (`digits`, `digits:held-out`). None where it is something else, such as a checkpoint.

    Raises `DyditError` for an unfinished `dydit sample --npz` and for a folder with nothing in it.
    """
    path = Path(samples)
    if path.suffix == ".npz":
        if not path.is_file():
            raise DyditError(f"{path}: no such file; give an .npz, a folder of images, or a checkpoint")
        return open_npz(path)
    if not path.is_dir():
        return real(str(samples))
    if (path / SAMPLES_FILE).is_file():
        return open_npz(path / SAMPLES_FILE)
    if read_record(path).get("format") == FORMAT:
        raise DyditError(f"{path}: dydit sample --npz has not finished it; run the same command again")
    if any(file.name in CHECKPOINT_NAMES or file.suffix in CHECKPOINT_SUFFIXES for file in path.iterdir()):
        return None
    return open_folder(path)


def _holds_weights(folder: Path) -> bool:
    return any(file.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors") for file in folder.iterdir())


def find_extractor(features: str, *, inception: str | Path | None = None, device: str = "auto") -> Extractor:
    """The network of `inception`, `digits` or `glyphs`; `inception` is the file of the first one's weights.

    Raises `DyditError` for another name, and where torch-fidelity or the weights are missing.
    """
    if features in NETWORKS:
        if inception is not None:
            raise DyditError("--inception is for --features inception; leave it out")
        return network_extractor(features)
    if features == "inception":
        return inception_extractor(inception, pick_device(device))
    raise DyditError(f"no features {features!r}; choose one of {', '.join(FEATURES)}")

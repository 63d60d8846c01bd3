"""Fashion-MNIST (Xiao et al., arXiv 1708.07747): 70,000 grey pictures of clothes, 28 x 28, ten classes, MIT licence.

Read from its four IDX files, as published or as Debian's package `dataset-fashion-mnist` holds them. The files' content
is checked: compressing it again changes a file's digest and not the pictures.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from dydit_cli.data.dataset import ImageData
from dydit_cli.data.idx import FILES, idx_file, load_idx_split
from dydit_cli.data.registry import dataset
from dydit_cli.errors import DyditError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

# the SHA-256 of each file's decompressed content
CONTENTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataset("fashion")
@lru_cache(maxsize=2)
def load_fashion_split(held_out: bool = False) -> ImageData:
    """60,000 pictures to train on, or the 10,000 that are held out: M 1 28 28 float32 in [-1, 1].

    Raises `DyditError` where the files are nowhere, or are others than the published ones. The pictures are never mirrored.
    """
    return load_idx_split("fashion", fashion_folder(), held_out, CONTENTS, CLASSES)


def fashion_folder() -> Path:
    """The first folder with the four files: `$DYDIT_DATA`, its folder `fashion-mnist`, or the Debian package's."""
    given = os.environ.get("DYDIT_DATA")
    for folder in (*((Path(given), Path(given) / "fashion-mnist") if given else ()), DEBIAN):
        if all(idx_file(folder, name) for name in FILES):
            return folder
    raise DyditError(
        "data set fashion: its four IDX files are not there; apt-get install dataset-fashion-mnist, or set DYDIT_DATA to a "
        "folder that has them"
    )

"""IDX files, any folder of the four, and Fashion-MNIST: tiny files that the tests write, and the real ones where they are."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from dydit_cli.data import fashion
from dydit_cli.data.fashion import CLASSES, DEBIAN, load_fashion_split
from dydit_cli.data.idx import FILES, read_idx
from dydit_cli.data.load import default_recipe, load_data, load_held_out
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.images import named_images
from tests.datasets import IDX_LABELS, as_idx, idx_digests, idx_folder, idx_pixels

PIXELS = idx_pixels(4)


def refusal(name: str) -> str:
    with pytest.raises(DyditError) as error:
        load_data(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files(tmp_path: Path, zipped: bool) -> None:
    name = f"idx:{idx_folder(tmp_path / 'mine', zipped)}"
    training, held_out = load_data(name), load_held_out(name)
    assert held_out is not None
    for data, pixels, labels in ((training, PIXELS[:12], IDX_LABELS[:12]), (held_out, PIXELS[12:], IDX_LABELS[12:])):
        assert (data.name, data.num_classes, data.class_names, len(data)) == (name, 10, None, len(labels))
        images, own = data.take(torch.arange(len(data)))
        assert (images.shape, images.dtype, own.dtype) == ((len(labels), 1, 4, 4), torch.float32, torch.int64)
        assert torch.equal(((images[:, 0] + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(pixels))
        assert own.tolist() == labels.tolist()
    assert default_recipe(name) is None
    shown = named_images(f"{name}:held-out")
    assert shown is not None
    assert np.array_equal(shown.pixels[..., 0], PIXELS[12:])


def test_what_is_no_idx_file(tmp_path: Path) -> None:
    path, whole = tmp_path / "x", as_idx(PIXELS)
    damaged = bytearray(gzip.compress(whole))
    damaged[-6] ^= 1  # of the checksum
    for content, message in (
        (b"", "not an IDX file of bytes, or cut off"),
        (whole[:-1], "not an IDX file of bytes, or cut off"),
        (whole + b"x", "not an IDX file of bytes, or cut off"),
        (whole[:7], "not an IDX file of bytes, or cut off"),
        (b"\0\0\x0d\x01" + bytes(8), "not an IDX file of bytes"),  # floats
        (gzip.compress(whole)[:-9], "not readable (Compressed file ended before the end-of-stream marker was reached)"),
        (bytes(damaged), "not readable (CRC check failed"),
        (bytes([0, 0, 8, 2]) + b"\xff" * 8, "holds 18446744065119617025 bytes, more than 1024 MiB"),
    ):
        path.write_bytes(content)
        with pytest.raises(DyditError) as error:
            read_idx(path)
        assert str(error.value).startswith(f"{path}: {message}")
    with pytest.raises(DyditError, match=r"gone: not readable \(No such file or directory\)"):
        read_idx(tmp_path / "gone")


def test_no_more_is_decompressed_than_the_header_promises(tmp_path: Path) -> None:
    """32 MiB of zeros behind a picture of 4 x 4."""
    with gzip.open(tmp_path / "bomb", "wb", compresslevel=1) as file:
        file.write(as_idx(PIXELS[0]))
        for _ in range(4):
            file.write(bytes(2**23))
    read: list[int] = []

    class Spy(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            read.append(-1 if size is None else size)
            return super().read(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gzip.GzipFile", Spy)
        with pytest.raises(DyditError, match="not an IDX file of bytes, or cut off"):
            read_idx(tmp_path / "bomb")
    assert read == [4, 8, 17]


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    idx_folder(tmp_path / "few")
    (tmp_path / "few" / FILES[2]).unlink()
    idx_folder(tmp_path / "flat", train_images_idx3_ubyte=PIXELS[:12].reshape(12, 16))
    idx_folder(tmp_path / "wide", train_images_idx3_ubyte=PIXELS[:12].reshape(12, 2, 8))
    idx_folder(tmp_path / "short", train_labels_idx1_ubyte=IDX_LABELS[:11])
    for name, message in (
        ("gone", "gone: no such folder, so no train-images-idx3-ubyte (plain or .gz); give a folder of the four IDX files"),
        ("few", "few: has no t10k-images-idx3-ubyte (plain or .gz); give a folder"),
        ("flat", "its images and labels are [12, 16] and [12]; they must be M x S x S and M"),
        ("wide", "its images and labels are [12, 2, 8] and [12]; they must be"),
        ("short", "its images and labels are [12, 4, 4] and [11]; they must be"),
    ):
        assert message in refusal(f"idx:{tmp_path / name}")
    idx_folder(tmp_path / "more", t10k_labels_idx1_ubyte=IDX_LABELS[12:] + 8)
    with pytest.raises(DyditError, match="a label is 14 of 10 classes"):
        load_held_out(f"idx:{tmp_path / 'more'}")
    assert "no data set 'idx'" in refusal("idx")
    assert "idx wants a path" in refusal("idx")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `fashion-mnist` in $DYDIT_DATA whose files count as the published ones; no other is there."""
    folder = idx_folder(tmp_path / "data" / "fashion-mnist", zipped=True)
    monkeypatch.setattr(fashion, "CONTENTS", idx_digests(folder))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("DYDIT_DATA", str(tmp_path / "data"))
    return folder


@pytest.mark.parametrize("place", ["fashion-mnist", "itself", "debian"])
def test_where_fashion_is_looked_for(tiny: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    if place == "itself":
        monkeypatch.setenv("DYDIT_DATA", str(tiny))
    elif place == "debian":
        monkeypatch.delenv("DYDIT_DATA")
        monkeypatch.setattr(fashion, "DEBIAN", tiny)
    data = load_fashion_split.__wrapped__(held_out=True)
    assert (data.name, len(data), data.num_classes, data.class_names) == ("fashion", 5, 10, CLASSES)


def test_other_pictures_are_not_fashion(tiny: Path) -> None:
    """Digits in files of the same names, packed and laid out alike."""
    (tiny / f"{FILES[0]}.gz").unlink()
    (tiny / FILES[0]).write_bytes(as_idx(255 - PIXELS[:12]))
    with pytest.raises(
        DyditError, match=r"train-images-idx3-ubyte: not the published file \(its content has another SHA-256\)"
    ):
        load_fashion_split.__wrapped__()
    assert len(load_fashion_split.__wrapped__(held_out=True)) == 5


def test_fashion_that_is_nowhere_is_one_line(tiny: Path) -> None:
    (tiny / f"{FILES[3]}.gz").unlink()
    with pytest.raises(DyditError) as error:
        load_fashion_split.__wrapped__()
    assert str(error.value) == (
        "data set fashion: its four IDX files are not there; apt-get install dataset-fashion-mnist, or set DYDIT_DATA to a "
        "folder that has them"
    )


@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"Debian's package dataset-fashion-mnist is not installed: no {DEBIAN}")
def test_the_real_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian compressed them again: their content is the published one's."""
    monkeypatch.delenv("DYDIT_DATA", raising=False)
    data = load_fashion_split.__wrapped__(held_out=True)
    assert data.images.shape == (10_000, 1, 28, 28)
    assert (data.images.min().item(), data.images.max().item()) == (-1, 1)
    assert data.labels.bincount().tolist() == [1000] * 10
    sandal, boot = (data.images[data.labels == CLASSES.index(name), 0, 20:].mean() for name in ("Sandal", "Ankle boot"))
    assert boot > sandal  # a closed shoe has more to it

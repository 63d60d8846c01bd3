"""Where images come from, what brings them to size, and the files of ADM's suite, sound and damaged."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.evaluate import find_extractor, find_images
from dydit_cli.evaluate.feature_network import network_extractor
from dydit_cli.evaluate.features import Pixels
from dydit_cli.evaluate.images import RESIZED, UNDONE, FolderImages, GeneratedImages, Images, Preprocessor, real_images
from dydit_cli.evaluate.reference import NpzImages, open_reference, read_gaussians
from dydit_cli.sampling.images import sample_images
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.shards import sample_npz


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def everything(images: Images, preprocess: Preprocessor, size: int = 4) -> tuple[Pixels, list[int]]:
    work: list[int] = []
    parts = list(images.batches(size, preprocess, work.append))
    assert sum(len(part) for part in parts) == images.count
    assert sum(work) == images.count * images.per
    return np.concatenate(parts), [len(part) for part in parts]


def save(folder: Path, name: str, pixels: Pixels) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(folder / name)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    x, preprocess = noise(3, 8, 8, 3), Preprocessor(None, 3)
    assert np.array_equal(preprocess(x), x)
    assert (preprocess.side, preprocess.resize) == (8, "none")


def test_enlarged_squares_come_back_exactly() -> None:
    x, preprocess = noise(3, 8, 8, 1), Preprocessor(8, 1)
    assert np.array_equal(preprocess(x.repeat(8, axis=1).repeat(8, axis=2)), x)
    assert preprocess.resize == UNDONE


def test_other_sizes_are_resized_with_pillow() -> None:
    x, preprocess = noise(1, 12, 12, 3), Preprocessor(8, 3)
    expected = np.asarray(Image.fromarray(x[0]).resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(preprocess(x)[0], expected)
    assert preprocess.resize == RESIZED
    assert preprocess(noise(2, 16, 24, 3)).shape == (2, 8, 8, 3)
    preprocess(noise(1, 4, 4, 3).repeat(4, axis=1).repeat(4, axis=2))  # squares, but not of one pixel of 8 x 8 each
    assert preprocess.resize == f"{RESIZED}; {UNDONE}"


def test_colours_come_and_go() -> None:
    grey = noise(2, 8, 8, 1)
    colours = Preprocessor(8, 3)(grey)
    assert colours.shape == (2, 8, 8, 3)
    assert np.array_equal(Preprocessor(8, 1)(colours), grey)
    x = noise(1, 8, 8, 3)
    assert np.array_equal(Preprocessor(8, 1)(x)[0, ..., 0], np.asarray(Image.fromarray(x[0]).convert("L")))


def test_a_folder_in_the_order_of_its_names(tmp_path: Path) -> None:
    x = noise(5, 8, 8, 1)
    for i in (3, 0, 4, 1, 2):
        save(tmp_path, f"{i:05d}-class{i + 4}.png", x[i])
    (tmp_path / "notes.txt").write_text("no picture")
    images = find_images(tmp_path)
    assert images is not None
    pixels, sizes = everything(images, Preprocessor(8, 1), 2)
    assert np.array_equal(pixels, x)
    assert sizes == [2, 2, 1]
    assert images.labels is not None
    assert images.labels.tolist() == [4, 5, 6, 7, 8]
    before = images.sha256()
    assert FolderImages(tmp_path).sha256() == before
    save(tmp_path, "00002-class6.png", 255 - x[2])
    assert FolderImages(tmp_path).sha256() != before


def test_a_folder_without_classes_and_with_folders_in_it(tmp_path: Path) -> None:
    save(tmp_path, "a/1-class3.png", noise(9, 9, 3))
    save(tmp_path, "b/2.png", noise(12, 10, 3))
    images = FolderImages(tmp_path)
    assert (images.count, images.labels) == (2, None)
    assert everything(images, Preprocessor(None, 3))[0].shape == (2, 9, 9, 3)


def test_samples_that_dydit_wrote(tmp_path: Path) -> None:
    """Pictures, the array and the checkpoint itself are the same images, classes and record."""
    how = SamplingConfig(settings=SamplerSettings(steps=2), classes=[3, 1], batch=2, device="cpu")
    sample_images("digits-dit", tmp_path / "pictures", how, num=5)
    sample_npz("digits-dit", tmp_path / "array", how, num=5, shard_size=2)
    sources: list[Any] = [find_images(tmp_path / name) for name in ("pictures", "array", "array/samples.npz")]
    sources.append(GeneratedImages(read("digits-dit"), how, 5))
    fitters = [Preprocessor(8, 1) for _ in sources]
    pixels = [everything(source, preprocess)[0] for source, preprocess in zip(sources, fitters, strict=True)]
    for source, one in zip(sources, pixels, strict=True):
        assert np.array_equal(one, pixels[0])
        assert source.labels.tolist() == [3, 1, 3, 1, 3]
        assert {name: source.record[name] for name in ("sampler", "steps", "cfg", "seed", "dtype", "images")} == {
            "sampler": "ddim", "steps": 2, "cfg": 1.5, "seed": 0, "dtype": "fp32", "images": 5,
        }  # fmt: skip
    assert [preprocess.resize for preprocess in fitters] == [UNDONE, "none", "none", "none"]


def test_an_unfinished_array_and_empty_places(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(json.dumps({"format": "dydit-npz", "images": 5}))
    with pytest.raises(DyditError, match="has not finished it; run the same command again"):
        find_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DyditError, match="no images in it"):
        find_images(tmp_path / "empty")
    with pytest.raises(DyditError, match=r"none.npz: no such file; give an .npz"):
        find_images(tmp_path / "none.npz")
    assert find_images("digits-dit") is None
    assert find_images(read("digits-dit").file.parent) is None  # type: ignore[union-attr]


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    save(tmp_path, "1.png", noise(8, 8, 3))
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(DyditError, match=r"2.png: not readable as an image"):
        everything(FolderImages(tmp_path), Preprocessor(None, 3))
    save(tmp_path, "2.png", noise(1, 400, 3))
    with pytest.raises(DyditError, match=r"2.png: 400 x 1 pixels, too long for a square; crop it"):
        everything(FolderImages(tmp_path), Preprocessor(None, 3))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_among_pictures_is_named(tmp_path: Path) -> None:
    save(tmp_path, "1.png", noise(8, 8, 3))
    os.mkfifo(tmp_path / "2.png")
    with pytest.raises(DyditError, match=r"2.png: not readable as an image \(not a regular file\); replace it"):
        everything(FolderImages(tmp_path), Preprocessor(None, 3))


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_an_array_is_read_in_batches(tmp_path: Path, writer: Any) -> None:
    x = noise(11, 6, 6, 3)
    writer(tmp_path / "x.npz", x, np.arange(11) * 90)
    images = NpzImages(tmp_path / "x.npz")
    pixels, sizes = everything(images, Preprocessor(None, 3))
    assert np.array_equal(pixels, x)
    assert sizes == [4, 4, 3]
    assert images.labels is not None  # arr_1, as in ADM's sample files
    assert images.labels.tolist() == [90 * i for i in range(11)]
    assert images.sha256() == hashlib.sha256((tmp_path / "x.npz").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_1": np.zeros(3)}, "has no arr_0 (it has arr_1); give an .npz with images N S S 3"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "arr_0 is float32; the suite wants uint8 from 0 to 255"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "arr_0 has shape (2, 3, 4, 4); it must be N S S 3"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "arr_0 has shape (0, 4, 4, 3)"),
        ({"arr_0": np.asfortranarray(noise(2, 4, 4, 3))}, "in C order"),
        ({"arr_0": np.array([{}, {}], dtype=object)}, "arr_0 is object"),
    ],
)
def test_what_is_no_array_of_images(tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DyditError) as caught:
        NpzImages(tmp_path / "x.npz")
    assert message in str(caught.value)


def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DyditError, match=r"not readable as \.npz"):
        NpzImages(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"nonsense")
    with pytest.raises(DyditError, match="arr_0 is damaged"):
        NpzImages(path)
    np.savez(tmp_path / "whole.npz", noise(5, 8, 8, 3))
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
        short = archive.read("arr_0.npy")[:-100]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", short)
    with pytest.raises(DyditError, match="damaged: arr_0 ends after image 4"):
        everything(NpzImages(path), Preprocessor(None, 3))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(DyditError, match=r"mu is damaged .*allow_pickle"):
        read_gaussians(tmp_path / "objects.npz")


def test_the_moments_of_a_reference_batch(tmp_path: Path) -> None:
    moments = {"mu": np.arange(3.0), "sigma": np.eye(3), "mu_s": np.ones(2), "sigma_s": np.eye(2) * 4}
    np.savez(tmp_path / "all.npz", **moments)  # type: ignore[arg-type]
    pool, spatial = read_gaussians(tmp_path / "all.npz")
    assert pool is not None
    assert spatial is not None
    assert (pool.mean.tolist(), pool.covariance.tolist()) == ([0, 1, 2], np.eye(3).tolist())
    assert (spatial.mean.tolist(), spatial.covariance[0, 0]) == ([1, 1], 4)
    np.savez(tmp_path / "none.npz", noise(2, 4, 4, 3))
    assert read_gaussians(tmp_path / "none.npz") == (None, None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "has mu without sigma; fetch the reference batch again"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "sigma_s": np.eye(3)}, "has sigma_s without mu_s"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "are no mean and covariance"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "mu (3,) int64"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "holds NaN or Inf"),
        ({"pool": np.zeros(3)}, "has neither mu and sigma nor arr_0 (it has pool); give an ADM reference batch"),
    ],
)
def test_what_is_no_reference_batch(tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DyditError) as caught:
        open_reference(tmp_path / "x.npz", network_extractor("digits"))
    assert message in str(caught.value)


def test_the_named_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_fashion: None) -> None:
    for name, count, held_out in (("digits", 1437, 360), ("fashion", 12, 5)):
        sets = [real_images(name), real_images(name, held_out=True)]
        assert [one.count for one in sets] == [count, held_out]
        assert sets[0].sha256() != sets[1].sha256()
        assert find_images(name).sha256() == sets[0].sha256()  # type: ignore[union-attr]
        assert find_images(f"{name}:held-out").sha256() == sets[1].sha256()  # type: ignore[union-attr]
        assert open_reference(None, network_extractor(name)).name == name
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "digits/1.png", noise(8, 8, 1))
    assert find_images("digits").count == 1  # type: ignore[union-attr]


def test_features_by_name() -> None:
    with pytest.raises(DyditError, match="no features 'vgg'; choose one of inception, efficientnet, digits, fashion"):
        find_extractor("vgg")
    with pytest.raises(DyditError, match="--inception is for --features inception"):
        find_extractor("digits", inception="x.pth")

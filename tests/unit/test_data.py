"""Data sets: pictures read from folders, and the stream of batches over any kind."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.data import imagefolder
from dydit_cli.data.dataset import BatchStream, Dataset, ImageData, Skipped, batches
from dydit_cli.data.imagefolder import ImageFolder, centre_crop, describe_skipped, list_pictures, read_picture
from dydit_cli.data.latents import LatentData
from dydit_cli.data.load import load_data
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiTConfig
from tests.datasets import LATENTS, class_folders, noise_picture, refusal

PIXELS = DiTConfig(input_size=8, patch_size=2, in_channels=3, hidden_size=32, depth=2, num_heads=4, num_classes=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first(data: Dataset, count: int, size: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(islice(batches(data, size, generator()), count))


def same(a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in pairs)


def test_classes_are_the_folders_in_the_order_of_their_names(folder: Path) -> None:
    listing = list_pictures(folder)
    assert listing.classes == ("a10", "a2", "b")
    assert listing.files[:5] == ("a10/0.png", "a10/2.png", "a10/3.png", "a10/deeper/1.png", "a2/0.png")
    assert Counter(listing.labels) == {0: 4, 1: 4, 2: 4}


def test_the_middle_square_is_kept() -> None:
    stripes = np.zeros((16, 48, 3), dtype=np.uint8)
    stripes[:, :14, 0] = stripes[:, 34:, 2] = 255
    stripes[:, 14:34, 1] = 255
    for image in (Image.fromarray(stripes), Image.fromarray(stripes.transpose(1, 0, 2))):
        assert np.unique(np.asarray(centre_crop(image, 8)).reshape(-1, 3), axis=0).tolist() == [[0, 255, 0]]


def test_a_large_picture_is_halved_by_averaging() -> None:
    """What a bicubic step alone would alias: noise of which every 2 x 2 block averages to the picture."""
    picture = np.random.default_rng(0).integers(60, 196, (8, 8, 3), dtype=np.uint8)
    blocks = np.kron(picture.astype(int), np.ones((4, 4, 1), dtype=int))
    blocks += 50 * (np.indices((32, 32)).sum(0) % 2 * 2 - 1)[..., None]
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(blocks.astype(np.uint8)), 8)), picture)


@pytest.mark.parametrize(("width", "height"), [(5, 7), (8, 8), (15, 16), (17, 300), (799, 8)])
def test_any_size_becomes_a_square(width: int, height: int) -> None:
    assert centre_crop(Image.fromarray(noise_picture(0, width, height)), 8).size == (8, 8)


def test_every_mode_becomes_colours_or_grey(tmp_path: Path) -> None:
    colours = Image.new("RGB", (8, 8), (200, 100, 0))
    palette = colours.quantize(4)
    palette.info["transparency"] = b"\x80"
    for name, image in (("rgba", colours.convert("RGBA")), ("p", palette), ("rgb", colours)):
        image.save(tmp_path / f"{name}.png")
        assert read_picture(tmp_path / f"{name}.png", 8)[0, 0] == pytest.approx([200, 100, 0], abs=2)
    colours.convert("L").save(tmp_path / "l.png")
    assert len(np.unique(read_picture(tmp_path / "l.png", 8))) == 1
    assert read_picture(tmp_path / "rgb.png", 8, channels=1).shape == (8, 8, 1)
    with pytest.raises(ValueError, match="900 x 8 pixels, too long for a square"):
        centre_crop(Image.new("RGB", (900, 8)), 8)


def test_pictures_come_as_the_model_takes_them(tmp_path: Path) -> None:
    for name, value in (("black", 0), ("white", 255)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), (value, value, value)).save(tmp_path / name / "x.png")
    data = ImageFolder(tmp_path, 8)
    images, labels = data.take(torch.tensor([1, 0]))
    assert (images.shape, images.dtype, labels.tolist()) == ((2, 3, 8, 8), torch.float32, [1, 0])
    assert (images[0].unique().tolist(), images[1].unique().tolist()) == ([1.0], [-1.0])
    assert ImageFolder(tmp_path, 8, channels=1).take(torch.tensor([1]))[0].shape == (1, 1, 8, 8)


def test_an_odd_seed_mirrors(folder: Path) -> None:
    data = ImageFolder(folder, 8)
    plain, _ = data.take(torch.tensor([3, 3]))
    seeded, _ = data.take(torch.tensor([3, 3]), torch.tensor([4, 7]))
    assert torch.equal(seeded[0], plain[0])
    assert torch.equal(seeded[1], plain[1].flip(-1))
    assert not torch.equal(seeded[0], seeded[1])


def test_half_of_a_stream_is_mirrored(folder: Path) -> None:
    data = ImageFolder(folder, 8)
    plain, _ = data.take(torch.arange(12))
    mirrored = 0
    for images, _ in first(data, 40, size=12):
        for image in images:
            as_is, other = (bool((image == versions).flatten(1).all(1).any()) for versions in (plain, plain.flip(-1)))
            assert as_is != other
            mirrored += other
    assert mirrored / 480 == pytest.approx(0.5, abs=0.08)


def test_order_depends_on_the_seed_and_not_on_threads(folder: Path) -> None:
    few, many = ImageFolder(folder, 8, threads=1), ImageFolder(folder, 8, threads=8)
    assert same(first(few, 7), first(many, 7))
    assert not same(first(few, 1), list(islice(batches(few, 5, generator(1)), 1)))


def test_pictures_are_read_when_they_are_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def spy(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
        if path.is_relative_to(folder):  # another test's stream may still be reading ahead
            read.append(path.name)
        return read_picture(path, size, channels)

    monkeypatch.setattr(imagefolder, "read_picture", spy)
    data = ImageFolder(folder, 8)
    assert read == []
    stream = batches(data, 3, generator())
    for taken in (3, 6, 9, 12, 15):
        next(stream)
        assert taken <= len(read) <= taken + 3  # one batch ahead and no more
    assert len(data._ahead) <= 3


def test_looking_ahead_draws_nothing(folder: Path) -> None:
    data, own = ImageFolder(folder, 8), generator()
    next(batches(data, 5, own))
    expected = generator()
    torch.randperm(12, generator=expected)
    torch.randint(2**62, (5,), generator=expected)
    assert torch.equal(own.get_state(), expected.get_state())


@pytest.fixture(params=["digits", "imagefolder", "latents"])
def any_data(request: pytest.FixtureRequest) -> Dataset:
    if request.param == "digits":
        digits = load_data("digits")
        assert isinstance(digits, ImageData)
        return ImageData("digits", digits.images[:12], digits.labels[:12], 10)
    if request.param == "latents":
        return LatentData(request.getfixturevalue("latents"))
    return ImageFolder(request.getfixturevalue("folder"), 8)


def test_a_stream_continues_from_its_state_to_the_bit(any_data: Dataset) -> None:
    own = generator()
    stream = BatchStream(any_data, 5, own)
    for _ in range(3):  # over an epoch's edge
        next(stream)
    state, chance = stream.state(), own.get_state()
    expected = list(islice(stream, 6))
    later = generator(5)
    continued = BatchStream(any_data, 5, later)
    next(continued)
    continued.restore(state)
    later.set_state(chance)
    assert same(list(islice(continued, 6)), expected)


def test_processes_read_their_parts_of_the_same_batches(any_data: Dataset) -> None:
    parts = [BatchStream(any_data, 6, generator(), slice(3 * i, 3 * i + 3)) for i in range(2)]
    for images, labels in first(any_data, 5, size=6):
        (x0, y0), (x1, y1) = (next(stream) for stream in parts)
        assert torch.equal(torch.cat([x0, x1]), images)
        assert torch.equal(torch.cat([y0, y1]), labels)


def test_another_number_of_images_is_no_continuation(folder: Path) -> None:
    stream = batches(ImageFolder(folder, 8), 5, generator())
    with pytest.raises(DyditError, match=r"had 13 images when the run began and has 12 now; resume it with the same data"):
        stream.restore({**stream.state(), "images": 13})


def test_digits_come_as_they_always_did() -> None:
    """No seeds are drawn for what has no versions: the bundled recipes' results stay what they were."""
    data, own = load_data("digits"), generator()
    next(batches(data, 64, own))
    expected = generator()
    torch.randperm(1437, generator=expected)
    assert torch.equal(own.get_state(), expected.get_state())


@pytest.fixture
def damaged(folder: Path) -> Path:
    """One file that is no image, as its header tells, and two that break off in the middle."""
    (folder / "a2" / "0.png").write_text("no image")
    for name in ("a2/2.png", "a2/3.png"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    return folder


def test_unreadable_images_are_skipped_and_listed(damaged: Path) -> None:
    data = ImageFolder(damaged, 8)
    assert len(data) == 11
    assert list(data.skipped) == [Skipped("a2/0.png", "not an image")]
    images, labels = data.take(torch.arange(11))
    assert [one.file for one in data.skipped] == ["a2/0.png", "a2/2.png", "a2/3.png"]
    assert "truncated" in data.skipped[1].reason
    # the next readable one, with its own label, stands in for a damaged one
    assert torch.equal(images[4], images[6])
    assert torch.equal(images[5], images[6])
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_damaged_pictures_do_not_disturb_the_order(damaged: Path) -> None:
    assert same(first(ImageFolder(damaged, 8, threads=1), 7), first(ImageFolder(damaged, 8, threads=8), 7))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_among_pictures_is_skipped(folder: Path) -> None:
    """Opening it would wait for good for somebody who writes into it."""
    os.mkfifo(folder / "a2" / "pipe.png")
    (folder / "b" / "link.png").symlink_to(folder / "a2" / "pipe.png")
    (folder / "b" / "other.png").symlink_to(folder / "a2" / "0.png")
    data = ImageFolder(folder, 8)
    assert len(data) == 13
    assert list(data.skipped) == [Skipped("a2/pipe.png", "not a regular file"), Skipped("b/link.png", "not a regular file")]
    with pytest.raises(ValueError, match="not a regular file"):
        read_picture(folder / "a2" / "pipe.png", 8)


def test_at_most_five_are_named() -> None:
    seven = [Skipped(f"a/{i}.png", "not an image") for i in range(7)]
    assert describe_skipped([]) == ""
    assert describe_skipped(seven[:1]) == "1 unreadable image skipped: a/0.png (not an image)"
    text = describe_skipped(seven)
    assert text.startswith("7 unreadable images skipped: a/0.png (not an image), ")
    assert text.endswith("a/4.png (not an image) and 2 more")


def test_what_is_wrong_with_a_folder_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    (tmp_path / "bad" / "class").mkdir(parents=True)
    (tmp_path / "bad" / "class" / "x.png").write_text("x")
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "x.png")
    for name, message in (
        ("gone", "gone: no such folder; give a folder of class folders"),
        ("flat/x.png", "x.png: not a folder; give a folder of class folders"),
        ("empty", "empty: no images in it; put those of each class into a folder of its own (.bmp"),
        ("flat", "flat: no images in it"),
        ("bad", "bad: none of its 1 images can be read, for instance class/x.png (not an image)"),
    ):
        assert message in refusal(f"imagefolder:{tmp_path / name}", PIXELS)
    four = DiTConfig(**{**PIXELS.static().__dict__, "num_classes": 4})
    assert "has 3 classes and the model 4; choose data that fit the model, or draw" in refusal(f"imagefolder:{folder}", four)
    assert "write them once with dydit encode IMAGES OUT --vae PATH" in refusal(f"imagefolder:{folder}", LATENTS)
    load_data(f"imagefolder:{folder}", PIXELS).check(PIXELS)


def test_names_of_data_sets(folder: Path) -> None:
    kinds = "choose one of digits, fashion, idx:PATH, imagefolder:PATH, latents:PATH"
    for name, message in (
        ("cats", f"no data set 'cats'; {kinds}"),
        ("digits:x", f"no data set 'digits:x'; {kinds}"),
        ("digits:", f"no data set 'digits:'; {kinds}"),
        ("latents", f"no data set 'latents'; {kinds}; latents wants a path"),
        ("imagefolder:", f"no data set 'imagefolder:'; {kinds}; imagefolder wants a path"),
        (str(folder), f"{kinds}; for a folder of pictures write imagefolder:{folder}"),
    ):
        assert message in refusal(name, PIXELS)
    with pytest.raises(DyditError, match="is cropped to its model's size"):
        load_data(f"imagefolder:{folder}")

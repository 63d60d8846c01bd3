"""Data sets: pictures read from folders, latents, and the stream of batches over either."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.data import imagefolder
from dydit_cli.data.dataset import BatchStream, Dataset, ImageData, batches
from dydit_cli.data.encode import encode
from dydit_cli.data.imagefolder import ImageFolder
from dydit_cli.data.latents import LatentData
from dydit_cli.data.load import load_data
from dydit_cli.data.pictures import Skipped, centre_crop, describe_skipped, list_pictures, read_picture
from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig
from dydit_cli.sampling.vae import load_encoder

PIXELS = DiTConfig(input_size=8, patch_size=2, in_channels=3, hidden_size=32, depth=2, num_heads=4, num_classes=3)
LATENTS = DiTConfig(input_size=4, patch_size=2, in_channels=4, hidden_size=32, depth=2, num_heads=4, num_classes=3)


def noise_picture(seed: int, width: int = 12, height: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def class_folders(root: Path, per_class: int = 4) -> Path:
    """b, a10 and a2, so that their order is that of names; one picture lies deeper, and two files are none."""
    for number, name in enumerate(("b", "a10", "a2")):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(per_class):
            place = root / name / ("deeper" if i == 1 else "") / f"{i}.png"
            Image.fromarray(noise_picture(10 * number + i)).save(place)
        (root / name / ".hidden.png").write_bytes(b"x")
        (root / name / "notes.txt").write_text("x")
    (root / ".git").mkdir()
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL: a latent pixel is 2 x 2 pixels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model: Any = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2, latent_channels=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures in shards of 5, 5 and 2."""
    place = tmp_path_factory.mktemp("latents")
    assert encode(class_folders(place / "images"), place / "out", vae, size=8, shard_size=5, device="cpu") is not None
    return place / "out"


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


def test_at_most_five_are_named() -> None:
    seven = [Skipped(f"a/{i}.png", "not an image") for i in range(7)]
    assert describe_skipped([]) == ""
    assert describe_skipped(seven[:1]) == "1 unreadable image skipped: a/0.png (not an image)"
    text = describe_skipped(seven)
    assert text.startswith("7 unreadable images skipped: a/0.png (not an image), ")
    assert text.endswith("a/4.png (not an image) and 2 more")


def refusal(name: str, config: DiTConfig) -> str:
    with pytest.raises(DyditError) as error:
        load_data(name, config).check(config)
    assert "\n" not in str(error.value)
    return str(error.value)


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
    kinds = "choose one of digits, imagefolder:PATH, latents:PATH"
    for name, message in (
        ("cats", f"no data set 'cats'; {kinds}"),
        ("digits:x", f"no data set 'digits:x'; {kinds}"),
        ("latents", f"no data set 'latents'; {kinds}; latents wants a path"),
        ("imagefolder:", f"no data set 'imagefolder:'; {kinds}; imagefolder wants a path"),
        (str(folder), f"{kinds}; for a folder of pictures write imagefolder:{folder}"),
    ):
        assert message in refusal(name, PIXELS)
    with pytest.raises(DyditError, match="is cropped to its model's size"):
        load_data(f"imagefolder:{folder}")


def test_latents_are_the_vaes_of_each_picture_and_its_mirror_image(latents: Path, vae: Path) -> None:
    data, encoder = LatentData(latents), load_encoder(vae, torch.device("cpu"))
    pictures, labels = ImageFolder(latents.parent / "images", 8).take(torch.arange(12))
    index = torch.arange(12)
    assert (len(data), data.num_classes, data.index.shape, data.index.size) == (12, 3, (4, 4, 4), 8)
    mean, std = encoder(pictures)
    taken, taken_labels = data.take(index)
    assert torch.allclose(taken, mean * 0.18215, atol=1e-6)
    assert torch.equal(taken_labels, labels)
    other_mean, other_std = encoder(pictures.flip(-1))
    assert (other_mean - mean.flip(-1)).abs().max() > 1e-3  # a latent cannot be mirrored later
    for m, s, parity in ((mean, std, 0), (other_mean, other_std, 1)):
        seeds = torch.arange(2000) * 2 + parity
        many, _ = data.take(torch.full((2000,), 7), seeds)
        assert torch.allclose(many.mean(0), m[7] * 0.18215, atol=0.03)
        assert torch.allclose(many.std(0), s[7] * 0.18215, rtol=0.1)


def test_a_latents_sample_depends_on_its_seed_alone(latents: Path) -> None:
    data, seeds = LatentData(latents), torch.tensor([11, 12, 13])
    images, labels = data.take(torch.tensor([0, 6, 11]), seeds)
    for i in range(3):
        alone, label = data.take(torch.tensor([[0, 6, 11][i]]), seeds[i : i + 1])
        assert torch.equal(alone[0], images[i])
        assert label[0] == labels[i]


@pytest.fixture
def copy(latents: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(latents, tmp_path / "copy"))


def edit(folder: Path, **values: object) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **values}))


EDITS: list[tuple[dict[str, object], str]] = [
    ({"scaling_factor": 0.13025}, "is of a VAE with scaling factor 0.13025 and the model's has 0.18215; encode the images"),
    ({"format": "other"}, "index.json: not an index of latents (its format is not dydit-latents)"),
    ({"format_version": 2}, "index.json: not an index of latents (version 2; this dydit reads version 1)"),
    ({"count": 13}, "its shards do not fit its index.json; make it again with dydit encode"),
    ({"count": "many"}, "index.json: not an index of latents (count: Input should be a valid integer"),
    ({"classes": ["a", "b"]}, "its shards do not fit its index.json"),
    ({"shape": [4, 2, 2]}, "000000.safetensors: damaged shard (its tensors are [(5, 2, 4, 4, 4), (5, 2, 4, 4, 4), (5,)]"),
    ({"shards": [{"file": "x.safetensors", "count": 12}]}, "x.safetensors: damaged shard (No such file"),
]


@pytest.mark.parametrize(("values", "message"), EDITS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_latents_that_do_not_fit_are_refused(copy: Path, values: dict[str, object], message: str) -> None:
    edit(copy, **values)
    assert message in refusal(f"latents:{copy}", LATENTS)


def test_latents_of_another_size_or_other_classes_are_refused(latents: Path) -> None:
    for change, message in (
        ({"input_size": 8}, "has 4 pixels a side and the model 8; choose data that fit the model"),
        ({"in_channels": 3}, "has 4 channels and the model 3; choose data that fit the model"),
        (
            {"num_classes": 1000},
            "has 3 classes and the model 1000; choose data that fit the model, or draw its label table anew",
        ),
    ):
        assert message in refusal(f"latents:{latents}", DiTConfig(**{**LATENTS.__dict__, **change}))
    LatentData(latents).check(LATENTS)


def test_what_is_missing_of_latents_is_said(copy: Path, tmp_path: Path) -> None:
    shard = copy / "shards" / "000001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "000001.safetensors: damaged shard (" in refusal(f"latents:{copy}", LATENTS)
    shard.unlink()
    assert "000001.safetensors: damaged shard (" in refusal(f"latents:{copy}", LATENTS)
    (copy / "index.json").write_text("{")
    assert "index.json: not an index of latents (" in refusal(f"latents:{copy}", LATENTS)
    (copy / "index.json").unlink()
    assert "encoding them has not ended; run the same dydit encode again" in refusal(f"latents:{copy}", LATENTS)
    assert "no latents (index.json); make them with dydit encode" in refusal(f"latents:{tmp_path}", LATENTS)

"""Data sets of latents: a fresh sample each time, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dydit_cli.data.imagefolder import ImageFolder
from dydit_cli.data.latents import LatentData
from dydit_cli.data.vae import load_encoder
from dydit_cli.model.families.dit import DiTConfig
from dydit_cli.model.latent_norm import SD
from tests.datasets import LATENTS, refusal


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
    (
        {"scaling_factor": 0.13025},
        "has latents z * 0.13025 and the model takes z * 0.18215; encode the images with the model's",
    ),
    ({"latents_mean": [1, 2, 3, 4]}, "has latents (z - [1, 2, ...]) * 0.18215 and the model takes z * 0.18215; encode the"),
    ({"latents_mean": [1, 2]}, "index.json: normalisation of latents of 2 channels, where there are 4"),
    ({"latents_std": [1, 2, 3, 0]}, "index.json: normalisation of latents: its numbers must be finite, and its factor and its"),
    ({"format": "other"}, "index.json: not an index of latents (its format is not dydit-latents)"),
    ({"format_version": 3}, "index.json: not an index of latents (version 3; this dydit reads up to version 2: update dydit"),
    ({"count": 13}, "its shards do not fit its index.json; make it again with dydit encode"),
    ({"count": "many"}, "index.json: not an index of latents (count: Input should be a valid integer"),
    ({"classes": ["a", "b"]}, "its shards do not fit its index.json"),
    ({"shape": [4, 2, 2]}, "000000.safetensors: damaged shard (its tensors are [(5, 2, 4, 4, 4), (5, 2, 4, 4, 4), (5,)]"),
    ({"shards": [{"file": "x.safetensors", "count": 12}]}, "x.safetensors: damaged shard (No such file"),
]


@pytest.mark.parametrize(("values", "message"), EDITS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_latents_that_do_not_fit_are_refused(copy: Path, values: dict[str, object], message: str) -> None:
    edit(copy, **values)
    assert message in refusal(f"latents:{copy}", LATENTS, SD)


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

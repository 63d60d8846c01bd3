"""LightningDiT's folders of latents, against what its own data set makes of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.data.lightningdit import LightningDiTLatents
from dydit_cli.data.load import load_data
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiTConfig
from dydit_cli.model.latent_norm import LatentNorm
from dydit_cli.sampling.sampler import SamplingConfig, open_sampler
from tests.datasets import refusal
from tests.vaes import make_vae

MODEL = DiTConfig(input_size=6, patch_size=1, in_channels=16, hidden_size=48, depth=2, num_heads=4, num_classes=10)


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(
        golden / "families" / "lightningdit" / "latents", tmp_path / "latents", copy_function=shutil.copyfile
    )
    Path(copy).chmod(0o755)
    return Path(copy)


@pytest.fixture
def theirs(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "families" / "lightningdit" / "ldit_dataset.safetensors")


def choices(draw: Tensor) -> Tensor:
    """Seeds that choose as their draws do: an odd one mirrors."""
    return torch.where(draw > 0.5, 4, 7)


def test_items_order_and_mirroring(folder: Path, theirs: dict[str, Tensor]) -> None:
    """Bit-equal: the same float32 operations in the same order."""
    data = load_data(f"latents:{folder}", MODEL)
    data.check(MODEL)
    seeds = choices(theirs["uniform_draw"])
    assert 0 < int((seeds % 2).sum()) < len(data) == 8  # both are among them
    latents, labels = data.take(torch.arange(8), seeds)
    assert torch.equal(latents, theirs["feature"])
    assert torch.equal(labels, theirs["label"])
    assert torch.equal(data.take(torch.tensor([6]), seeds[6:7])[0][0], theirs["feature"][6])
    plain = load_file(folder / "latents_rank00_shard000.safetensors")["latents"][:2]
    assert torch.equal(data.take(torch.arange(2))[0], (plain - theirs["mean"]) / theirs["std"])


def test_the_multiplier(folder: Path, theirs: dict[str, Tensor]) -> None:
    stats = {name: theirs[name] for name in ("mean", "std")}
    torch.save({**stats, "multiplier": 0.18215}, folder / "latents_stats.pt")
    data = LightningDiTLatents(folder)
    latents, _ = data.take(torch.arange(2), choices(theirs["uniform_draw"][:2]))
    assert torch.equal(latents, theirs["feature_multiplier0.18215"])
    raw = data.latents.restore(latents)
    assert torch.allclose(raw, latents * theirs["std"] / 0.18215 + theirs["mean"], atol=1e-6)


def test_statistics_are_measured_where_they_are_missing(folder: Path, theirs: dict[str, Tensor]) -> None:
    """Theirs are float32 means of 288 numbers a channel: 1e-6 absolute, where values are of order 1."""
    (folder / "latents_stats.pt").unlink()
    norm = LightningDiTLatents(folder).latents
    assert torch.allclose(torch.tensor(norm.mean), theirs["mean"].flatten(), rtol=0, atol=1e-6)
    assert torch.allclose(torch.tensor(norm.std), theirs["std"].flatten(), rtol=1e-6, atol=0)
    assert norm.factor == 1
    assert not (folder / "latents_stats.pt").exists()


def test_what_does_not_fit_is_refused(folder: Path, theirs: dict[str, Tensor]) -> None:
    name = f"latents:{folder}"
    own = LightningDiTLatents(folder).latents
    other = refusal(name, MODEL, replace(own, mean=tuple(m + 1 for m in own.mean)))
    assert other.startswith(f"data set {name} has latents {own.describe()} and the model takes (z - [")
    assert other.endswith("; put the model's own latents_stats.pt beside the latents")
    assert "has 16 channels and the model 32" in refusal(name, replace(MODEL, in_channels=32))
    assert "has 6 pixels a side and the model 8" in refusal(name, replace(MODEL, input_size=8))
    most = int(theirs["label"].max())
    assert f"has {most + 1} classes and the model {most}" in refusal(name, replace(MODEL, num_classes=most))
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, folder / "latents_stats.pt")
    assert "normalisation of latents of 4 channels, where there are 16" in refusal(name, MODEL)
    (folder / "latents_stats.pt").write_bytes(b"x")
    assert "latents_stats.pt: damaged" in refusal(name, MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents_flip": None}, "not latents as LightningDiT writes them ("),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "which do not fit together"),
        (
            {"latents": torch.zeros(3, 16, 4, 4), "latents_flip": torch.zeros(3, 16, 4, 4)},
            "its latents are [16, 4, 4], and those",
        ),
        ({"labels": torch.full((3,), -1)}, "its latents have no labels, or negative ones"),
    ],
)
def test_damaged_files_are_named(folder: Path, change: dict[str, Tensor | None], message: str) -> None:
    file = folder / "latents_rank00_shard001.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(file) | change).items() if tensor is not None}
    save_file(tensors, file)
    with pytest.raises(DyditError) as error:
        LightningDiTLatents(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_model_of_the_set_learns_its_normalisation(folder: Path, theirs: dict[str, Tensor]) -> None:
    expected = LatentNorm(1.0, tuple(theirs["mean"].flatten().tolist()), tuple(theirs["std"].flatten().tolist()))
    assert load_data(f"latents:{folder}", MODEL).latents == expected


def test_their_checkpoints_want_their_statistics(golden: Path, folder: Path, tmp_path: Path) -> None:
    """One tells in its options that there are some, one tells nothing; VAEs whose configuration has only a factor, as any of
    that class has, do not tell them either."""
    files = golden / "families" / "lightningdit"
    reading = LoadOptions(num_heads=4)
    for name, channels in (("ldit_a.pt", 16), ("ldit_b_train.pt", 4)):
        loaded = read(files / name, reading)
        assert (loaded.config.family, loaded.config.in_channels, loaded.latents) == ("lightningdit", channels, None)
        vae = make_vae({4: "kl", 16: "kl16"}[channels], tmp_path / name)
        with pytest.raises(DyditError, match="has no statistics of its latents, and the checkpoint stores none; give the ones"):
            open_sampler(loaded, SamplingConfig(vae=vae, device="cpu"))
    given = read(files / "ldit_a.pt", replace(reading, latent_stats=str(folder)))
    assert given.latents == LightningDiTLatents(folder).latents
    open_sampler(given, SamplingConfig(vae=tmp_path / "ldit_a.pt", device="cpu"))

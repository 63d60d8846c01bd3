"""The record of how latents are normalised: its formula, its files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.latent_stats import read_norm
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.convert import convert
from dydit_cli.compress.prune import prune
from dydit_cli.data.measure import measure
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DiTConfig
from dydit_cli.model.latent_norm import SD, LatentNorm
from tests.conftest import TINY, randomize
from tests.datasets import LATENTS

NORM = LatentNorm(0.5, (1.0, -2.0, 3.0, 0.25), (1.0, 2.0, 4.0, 0.125))


def test_the_formula_and_its_inverse() -> None:
    z = torch.randn(3, 5, 4, 2, 2, dtype=torch.float64)  # channels are the third from the end
    x = NORM.normalise(z)
    for c in range(4):
        assert torch.equal(x[:, :, c], (z[:, :, c] - NORM.mean[c]) / NORM.std[c] * 0.5)
    assert torch.allclose(NORM.restore(x), z, atol=1e-12)
    single = z.float()[0]
    assert torch.equal(SD.normalise(single), single * 0.18215)  # to the bit what it always was
    assert torch.equal(SD.restore(single), single / 0.18215)


@pytest.mark.parametrize(
    ("values", "norm"),
    [
        ({"scaling_factor": 0.18215}, SD),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, LatentNorm(0.3611, (0.1159,))),
        ({"scaling_factor": 1.0, "shift_factor": None, "latents_std": None}, LatentNorm(1.0)),
        ({"latents_mean": [1, 2], "latents_std": (3, 4)}, LatentNorm(1.0, (1.0, 2.0), (3.0, 4.0))),
    ],
)
def test_diffusers_keys(values: dict[str, object], norm: LatentNorm) -> None:
    assert LatentNorm.from_dict(values) == norm
    assert LatentNorm.from_dict(json.loads(json.dumps(norm.to_dict()))) == norm


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "neither scaling_factor nor latents_mean and latents_std"),
        ({"scaling_factor": "1"}, "scaling_factor must be a number"),
        ({"scaling_factor": True}, "scaling_factor must be a number"),
        ({"scaling_factor": 1, "latents_mean": [[1.0]]}, "latents_mean must be a number, or one for each channel"),
        ({"scaling_factor": 0}, "its factor and its std over 0"),
        ({"scaling_factor": float("nan")}, "must be finite"),
        ({"latents_mean": [1, 2], "latents_std": [1, 2, 3]}, "a mean of 2 channels and a std of 3"),
    ],
)
def test_what_is_no_normalisation_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(DyditError, match=message):
        LatentNorm.from_dict(values)


def test_what_is_the_same_and_how_it_is_said() -> None:
    assert SD.same(LatentNorm(0.18215, (0.0,) * 4, (1.0,) * 4))
    assert not SD.same(LatentNorm(0.1822))
    assert not NORM.same(replace(NORM, mean=(1.0, -2.0, 3.0, 0.26)))
    assert not NORM.same(LatentNorm(0.5, NORM.mean[:3], NORM.std[:3]))
    assert SD.describe() == "z * 0.18215"
    assert LatentNorm(0.3611, (0.1159,)).describe() == "(z - 0.1159) * 0.3611"
    assert NORM.describe() == "(z - [1, -2, ...]) / [1, 2, ...] * 0.5"


def test_measuring_a_set() -> None:
    latents = (
        torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 2.0, 0.1])[:, None, None] + torch.tensor([0.0, 5.0, -1.0])[:, None, None]
    )
    norm = measure(latents.__getitem__, 50)
    assert torch.allclose(torch.tensor(norm.mean), latents.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(torch.tensor(norm.std), latents.std((0, 2, 3)), rtol=1e-5)
    assert norm.factor == 1
    with pytest.raises(DyditError, match="its std over 0"):
        measure(lambda i: torch.ones(2, 4, 4), 3)


def test_more_images_than_are_measured() -> None:
    seen: list[int] = []

    def row(i: int) -> torch.Tensor:
        seen.append(i)
        return torch.tensor([[[float(i % 7)]]])

    assert measure(row, 12_000) == measure(row, 12_000)
    assert len(set(seen)) == 10_000
    assert seen[:10_000] == seen[10_000:] == sorted(set(seen))
    assert max(seen) > 11_000


def test_statistics_in_files(tmp_path: Path) -> None:
    mean, std = torch.tensor(NORM.mean).view(1, 4, 1, 1), torch.tensor(NORM.std).view(1, 4, 1, 1)
    torch.save({"mean": mean, "std": std}, tmp_path / "latents_stats.pt")
    ones = replace(NORM, factor=1.0)
    assert read_norm(tmp_path / "latents_stats.pt") == read_norm(tmp_path) == ones
    torch.save({"mean": mean, "std": std, "multiplier": 0.5}, tmp_path / "other.pt")
    assert read_norm(tmp_path / "other.pt") == NORM
    (tmp_path / "norm.json").write_text(json.dumps(NORM.to_dict()))
    assert read_norm(tmp_path / "norm.json") == NORM
    assert read_norm("sd") == SD
    torch.save({"mean": mean}, tmp_path / "half.pt")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("half.pt", "half.pt: holds no statistics of latents .tensors mean and std.$"),
        ("list.json", "list.json: holds no normalisation of latents$"),
        ("empty", "empty: no statistics of latents; give latents_stats.pt"),
        ("gone", "gone: no statistics of latents; give latents_stats.pt"),
    ):
        with pytest.raises(DyditError, match=message):
            read_norm(tmp_path / name)


def test_a_checkpoint_carries_it_through_every_step(tmp_path: Path) -> None:
    write(replace(Checkpoint.of(randomize(DiT(LATENTS), scale=0.05), []), latents=NORM), tmp_path / "static")
    convert(tmp_path / "static", tmp_path / "dynamic")
    prune(tmp_path / "static", tmp_path / "pruned", method="magnitude", keep=0.5)
    export(tmp_path / "dynamic", tmp_path / "exported", format="native", complete=True)
    for name in ("static", "dynamic", "pruned", "exported"):
        assert read(tmp_path / name).latents == read_norm(tmp_path / name) == NORM


def test_a_checkpoint_that_does_not_tell(tmp_path: Path) -> None:
    model = randomize(DiT(LATENTS))
    write(Checkpoint.of(model, []), tmp_path / "unknown")
    assert "latents" not in json.loads((tmp_path / "unknown" / "config.json").read_text())
    assert read(tmp_path / "unknown").latents is None
    write(Checkpoint.of(model, [{"action": "finetune", "data": "latents:x"}]), tmp_path / "old")
    assert read(tmp_path / "old").latents == SD  # nothing else was taken before the key was written
    (tmp_path / "norm.json").write_text(json.dumps(NORM.to_dict()))
    given = LoadOptions(latent_stats=str(tmp_path / "norm.json"))
    assert read(tmp_path / "unknown", given).latents == NORM
    with pytest.raises(DyditError, match=r"old: stores that its latents are z \* 0.18215, and .*norm.json says \(z - \[1, -2"):
        read(tmp_path / "old", given)
    write(Checkpoint.of(randomize(DiT(TINY)), []), tmp_path / "pixels")
    with pytest.raises(DyditError, match="pixels: makes pixels; --latent-stats is for models of latents"):
        read(tmp_path / "pixels", given)


@pytest.mark.parametrize(
    ("options", "norm"),
    [
        ({"latent_norm": True, "latent_multiplier": 1.0}, None),  # by statistics, which are in another file
        ({"latent_norm": False, "latent_multiplier": 0.5}, LatentNorm(0.5)),
        ({"data_path": "x"}, SD),
        ({}, None),
    ],
)
def test_what_lightningdits_options_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], norm: LatentNorm | None
) -> None:
    monkeypatch.setattr(DiTConfig, "measured_latents", True)
    torch.save({"ema": randomize(DiT(LATENTS)).state_dict(), "config": {"data": options}}, tmp_path / "train.pt")
    reading = LoadOptions(num_heads=LATENTS.num_heads, family="dit")
    assert read(tmp_path / "train.pt", reading).latents == norm


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ("0.5", 'config.json: "latents" must be an object'),
        ({"scaling_factor": -1}, "config.json: normalisation of latents: its numbers must be finite"),
        (
            {"latents_mean": [1, 2], "latents_std": [1, 2]},
            "config.json: normalisation of latents of 2 channels, where there are 4",
        ),
    ],
)
def test_a_damaged_normalisation_is_named(tmp_path: Path, latents: object, message: str) -> None:
    write(Checkpoint.of(DiT(LATENTS), []), tmp_path / "model")
    header = tmp_path / "model" / "config.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "latents": latents}))
    with pytest.raises(DyditError) as error:
        read(tmp_path / "model")
    assert message in str(error.value)

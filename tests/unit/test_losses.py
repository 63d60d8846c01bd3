"""Losses at every timestep and by patch: against the training loss, the same noise for every model, and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from dydit_cli.artifacts.losses import Losses, mean_and_error
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.cli.app import app
from dydit_cli.data.digits import load_digits_split
from dydit_cli.diffusion.objective import loss_terms
from dydit_cli.diffusion.process import GaussianDiffusion
from dydit_cli.diffusion.schedule import linear_schedule
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.options import LossSettings, parse_timesteps
from dydit_cli.evaluate.timestep_loss import chosen, distinct, maps_at, measure_losses
from dydit_cli.figures.losses import loss_gap_table
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from tests.conftest import randomize

CONFIG = DiTConfig(input_size=8, patch_size=2, in_channels=1, hidden_size=24, depth=2, num_heads=3, num_classes=10)
QUICK = LossSettings(images=5, timesteps=4, maps_at=(600, 100), map_images=3, map_noises=2)


@pytest.fixture
def static(tmp_path: Path) -> Path:
    write(Checkpoint.of(randomize(DiT(CONFIG), scale=0.1), []), tmp_path / "static")
    return tmp_path / "static"


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    write(Checkpoint.of(randomize(DyDiT(DyDiTConfig.from_static(CONFIG, token_router_reduction=4))), []), tmp_path / "dynamic")
    return tmp_path / "dynamic"


@pytest.fixture
def measured(static: Path, dynamic: Path, tmp_path: Path) -> Losses:
    return measure_losses([dynamic, static], tmp_path / "losses", settings=QUICK, device="cpu")


def test_it_is_the_training_loss(measured: Losses, dynamic: Path) -> None:
    """Of held-out digits, the DyDiT's routers without noise: masked execution finds what sparse did."""
    from dydit_cli.checkpoint.read import load

    x0, y = chosen(load_digits_split(held_out=True), QUICK)
    assert measured.timesteps.tolist() == [0, 333, 666, 999]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(333))
    t, schedule = torch.full((5,), 333), linear_schedule()
    x_t = schedule.add_noise(x0, t, noise)
    with torch.no_grad():
        wanted = loss_terms(schedule, load(dynamic)(x_t, t, y), x0, x_t, t, noise).mse
    assert measured.names == ["dynamic", "static"]
    assert measured.mse.shape == (2, 4, 5)
    assert measured.mse[0, 1].tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


def test_patches_are_the_last_models(measured: Losses, static: Path) -> None:
    from dydit_cli.checkpoint.read import load

    assert measured.patches.shape == (2, 3, 4, 4)
    assert measured.patch_timesteps.tolist() == [100, 600]
    assert len(set(measured.labels.tolist())) == 3
    generator = torch.Generator().manual_seed((1 << 32) + 600)
    x0, y = torch.from_numpy(measured.images), torch.from_numpy(measured.labels)
    t, found = torch.full((3,), 600), torch.zeros(3, 8, 8)
    with torch.no_grad():
        for _ in range(2):
            noise = torch.randn(x0.shape, generator=generator)
            out = load(static)(linear_schedule().add_noise(x0, t, noise), t, y)
            found += (out[:, :1] - noise).square()[:, 0] / 2
    assert measured.patches[1, 2, 1, 3] == pytest.approx(found[2, 2:4, 6:8].mean().item(), rel=1e-4)


def test_a_model_sees_the_same_noise_in_any_company(measured: Losses, static: Path) -> None:
    """And in any batch; another seed is another noise."""
    alone = measure_losses([static], settings=LossSettings(**{**vars(QUICK), "batch": 2}), device="cpu")
    assert np.allclose(alone.mse[0], measured.mse[1], rtol=1e-5)
    with pytest.raises(
        DyditError, match="loss-gap is drawn of two to four models and 1 was measured; measure again: dydit losses"
    ):
        loss_gap_table(alone)
    other = measure_losses([static], settings=LossSettings(**{**vars(QUICK), "seed": 1}), device="cpu")
    assert not np.allclose(other.mse[0], measured.mse[1], rtol=1e-2)


def test_the_excess_has_the_errors_of_pairs(measured: Losses) -> None:
    mean, error = measured.excess(0)
    pairs = measured.mse[0].astype(float) - measured.mse[1]
    assert mean.tolist() == pytest.approx(pairs.mean(axis=1).tolist())
    assert error[2] == pytest.approx(pairs[2].std(ddof=1) / 5**0.5)
    assert np.isnan(mean_and_error(measured.mse[0][:, :1])[1]).all()


def test_images_of_different_classes_come_first() -> None:
    assert distinct(torch.tensor([3, 3, 1, 3, 0]), 4).tolist() == [4, 2, 0, 1]
    assert distinct(torch.tensor([3, 3, 1, 3, 0]), 9).tolist() == [4, 2, 0, 1, 3]


def test_files_come_back(measured: Losses, tmp_path: Path) -> None:
    again = Losses.read(tmp_path / "losses")
    assert again.summary["data"] == "digits"
    assert again.summary["held_out"] is True
    assert np.array_equal(again.mse, measured.mse)
    table = pd.read_csv(tmp_path / "losses" / "losses.csv")
    pd.testing.assert_frame_equal(table, measured.table)
    assert table.columns.to_list() == ["model", "timestep", "mse", "mse_standard_error"]
    assert len(table) == 8


def test_what_is_no_folder_of_losses_is_named(measured: Losses, tmp_path: Path) -> None:
    folder = tmp_path / "losses"
    (folder / "losses.npz").write_bytes(b"PK")
    with pytest.raises(DyditError, match=r"losses: damaged losses \(.*\); make it anew: dydit losses"):
        Losses.read(folder)
    (folder / "losses.json").write_text(json.dumps({"format": "dydit-losses", "format_version": 9}))
    with pytest.raises(DyditError, match="losses of version 9, this dydit reads 1; make it anew: dydit losses"):
        Losses.read(folder)
    (folder / "losses.json").write_text("{}")
    with pytest.raises(DyditError, match=r"losses.json: not losses: its format is None; make one with: dydit losses"):
        Losses.read(folder)
    (folder / "losses.csv").unlink()
    with pytest.raises(DyditError, match=r"not losses: it has no losses.csv"):
        Losses.read(folder)


def test_what_cannot_be_measured_is_named(static: Path, tmp_path: Path) -> None:
    write(Checkpoint.of(DiT(DiTConfig(input_size=4, hidden_size=24, depth=1, num_heads=3)), []), tmp_path / "latent")
    ddpm = GaussianDiffusion()
    for message, act in (
        ("no checkpoint to measure losses of", lambda: measure_losses([])),
        ("data set digits has 1 channels and the model 4", lambda: measure_losses([static, tmp_path / "latent"])),
        ("map noises 0: take at least 1", lambda: LossSettings(map_noises=0)),
        (
            "no timestep 1000 to draw maps at: the schedule has 0 to 999",
            lambda: maps_at(LossSettings(maps_at=(1000,)), ddpm),
        ),
        ("no timesteps to draw maps at", lambda: maps_at(LossSettings(maps_at=()), ddpm)),
        ("1001 timesteps; measure at 1 to 1000", lambda: LossSettings(timesteps=1001)),
        ("--maps-at 5;6: write timesteps, for instance 20,100,500", lambda: parse_timesteps("5;6")),
    ):
        with pytest.raises(DyditError, match=message):
            act()


def test_the_command(static: Path, dynamic: Path, tmp_path: Path) -> None:
    arguments = ["losses", str(dynamic), str(static), "--out", str(tmp_path / "out"), "--images", "2", "--timesteps", "3"]
    quick = ["--maps-at", "10,20", "--map-images", "1", "--map-noises", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, *quick, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["mse"]["static"] == pytest.approx(float(Losses.read(tmp_path / "out").mse[1].mean()))
    assert (summary["seed"], summary["map_timesteps"], summary["device"]) == (0, [10, 20], "cpu")
    again = CliRunner().invoke(app, [*arguments, *quick])
    assert (again.exit_code, "already exists" in again.stderr) == (2, True)
    text = CliRunner().invoke(app, [*arguments, *quick, "--force"], env={"COLUMNS": "120"}).stdout
    assert "t 999 to 750" in text
    assert "2 held-out images of digits, seed 0, cpu" in " ".join(text.split())

"""Autoencoders of diffusers' classes: what they encode to, how they normalise, and which are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dydit_cli.data.vae import load_encoder, load_vae
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiTConfig
from dydit_cli.model.latent_norm import SD, LatentNorm
from tests.datasets import LATENTS
from tests.vaes import make_vae

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "channels", "factor", "norm", "random"),
    [
        ("kl", 4, 2, SD, True),
        ("shift", 4, 2, LatentNorm(0.5, (0.25,)), True),
        ("mean", 4, 2, LatentNorm(0.5, (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 4.0, 8.0)), True),
        ("dc", 4, 2, LatentNorm(0.41407), False),
        ("tiny", 4, 2, LatentNorm(1.0), False),
        ("vq", 4, 2, SD, False),
        ("clips", 2, 8, LatentNorm(1.0, (0.1, 0.2), (2.0, 3.0)), True),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
def test_each_class_and_its_own_normalisation(
    tmp_path: Path, kind: str, channels: int, factor: int, norm: LatentNorm, random: bool
) -> None:
    encoder = load_encoder(make_vae(kind, tmp_path), CPU)
    assert (encoder.channels, encoder.factor, encoder.vae.norm) == (channels, factor, norm)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = encoder(pictures)
    assert mean.shape == std.shape == (2, channels, 32 // factor, 32 // factor)
    assert bool((std > 0).all()) is random
    assert (std == 0).all() or random
    config = DiTConfig(**{**LATENTS.__dict__, "in_channels": channels})
    with torch.inference_mode():
        theirs = torch.cat([encoder.vae.decode(one[None]) for one in mean])
    assert torch.allclose(load_vae(tmp_path, CPU, None, config)(norm.normalise(mean)), theirs, atol=1e-5)
    stored = LatentNorm(2.0, (1.0,), (3.0,))  # what a checkpoint stores goes before what its VAE says
    assert torch.allclose(load_vae(tmp_path, CPU, stored, config)(stored.normalise(mean)), theirs, atol=1e-5)


def test_a_distilled_vae_decodes_latents_that_are_normalised_already(tmp_path: Path) -> None:
    x = torch.randn(1, 4, 4, 4)
    vae = make_vae("tiny", tmp_path)
    assert torch.equal(load_vae(vae, CPU, SD)(x), load_vae(vae, CPU)(x))


def set_config(vae: Path, **values: object) -> None:
    told = json.loads((vae / "config.json").read_text())
    kept = {key: value for key, value in {**told, **values}.items() if value is not None}
    (vae / "config.json").write_text(json.dumps(kept))


def missing(vae: Path, config: DiTConfig) -> bool:
    try:
        load_vae(vae, CPU, None, config)
    except DyditError as error:
        return "has no statistics of its latents, and the checkpoint stores none; give the ones" in str(error)
    return False


def test_statistics_that_nothing_tells_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four, sixteen = LATENTS, replace(LATENTS, in_channels=16)
    kl, kl16, none = (make_vae(kind, tmp_path / kind) for kind in ("kl", "kl16", "none"))
    assert [missing(kl, four), missing(kl16, sixteen), missing(none, four)] == [False, False, True]
    for vae in (kl, kl16):  # SD's own configuration does not say its number, which is the class's default
        set_config(vae, scaling_factor=None)
    assert [missing(kl, four), missing(kl16, sixteen)] == [False, True]
    assert load_encoder(kl16, CPU).vae.norm is None
    monkeypatch.setattr(DiTConfig, "measured_latents", True)  # as of a family that is trained on measured latents
    assert [missing(kl, four), missing(make_vae("mean", tmp_path / "mean"), four)] == [True, False]
    load_vae(kl, CPU, SD, four)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("UNet2DModel", {}, "its class is 'UNet2DModel', which is no autoencoder that dydit takes pictures from"),
    ("AutoencoderOfMine", {}, "its class is 'AutoencoderOfMine', which is no autoencoder"),
    ("AutoencoderRAE", {}, "its class is 'AutoencoderRAE', which is no autoencoder"),
    ("configure", {}, "its class is 'configure', which is no autoencoder"),
    ("AutoencoderDC", {"encoder_block_types": "ResBlock"}, "not a readable AutoencoderDC ("),
    ("AutoencoderKL", {"scaling_factor": -1}, "normalisation of latents: its numbers must be finite"),
]


@pytest.mark.parametrize(("name", "values", "message"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_is_no_autoencoder_of_pictures(tmp_path: Path, name: str, values: dict[str, Any], message: str) -> None:
    set_config(make_vae("kl", tmp_path), _class_name=name, **values)
    for load in (load_encoder, load_vae):
        with pytest.raises(DyditError) as error:
            load(tmp_path, CPU)
        assert message in str(error.value)
        assert str(error.value).startswith(f"{tmp_path}: ")
        assert "\n" not in str(error.value)


def test_latents_that_a_vae_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(DyditError, match="this AutoencoderKL does not decode latents of 8 channels"):
        load_vae(make_vae("kl", tmp_path), CPU, SD, replace(LATENTS, in_channels=8))

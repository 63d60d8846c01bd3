"""The autoencoder that turns latents into pictures, and pictures into latents: any of diffusers' that takes pictures.

Its class stands in its config.json, and so does how its latents z are normalised for a model: scaling_factor, shift_factor,
latents_mean and latents_std, which diffusers' pipelines apply as (z - mean) / std * factor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dydit_cli.errors import DyditError, naming
from dydit_cli.hub import may_be_hub_id
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.latent_norm import SD, LatentNorm

Decode = Callable[[Tensor], Tensor]

PROBE = 64  # pixels a side of what is encoded once to see what comes out

REFUSED = ("AutoencoderRAE",)  # takes pictures of one size in [0, 1], and normalises its latents itself

DISTILLED = "AutoencoderTiny"  # its own latents are another VAE's that are normalised already


@dataclass(frozen=True)
class Autoencoder:
    """A diffusers model in float32. `norm` is what its configuration says, None where it says nothing.

    One that was made for clips takes a picture as a clip of one frame.
    """

    path: str
    model: Any
    norm: LatentNorm | None
    clips: bool

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """B 3 S S in [-1, 1] -> mean and std of the latents' Gaussians, B C s s; std 0 where there is no distribution."""
        out = self.model.encode(self._frames(images))
        if hasattr(out, "latent_dist"):
            mean, std = out.latent_dist.mean, out.latent_dist.std
        else:
            mean = out.latent if hasattr(out, "latent") else out.latents
            std = torch.zeros_like(mean)
        return self._pictures(mean), self._pictures(std)

    def decode(self, latents: Tensor) -> Tensor:
        """B C s s, as `encode` gives them -> B 3 S S."""
        return self._pictures(self.model.decode(self._frames(latents)).sample)

    def _frames(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2) if self.clips else x  # B C S S -> B C 1 S S

    def _pictures(self, x: Tensor) -> Tensor:
        return x.squeeze(2) if self.clips else x  # B C 1 S S -> B C S S

    @torch.inference_mode()
    def probe(self, work: str, *shape: int) -> Tensor:
        """What `work`, encode or decode, makes of zeros. Raises `DyditError` where that is no batch of pictures."""
        try:
            out = getattr(self, work)(torch.zeros(shape, device=self.model.device))
            out = out[0] if isinstance(out, tuple) else out
            if (
                out.ndim != 4
                or out.shape[0] != 1
                or out.shape[2] != out.shape[3]
                or (work, out.shape[1] == 3) == ("decode", False)
            ):
                raise ValueError(f"they become {list(out.shape)}")
        except Exception as error:  # whatever another class makes of them
            what = "pictures" if work == "encode" else f"latents of {shape[1]} channels"
            name = type(self.model).__name__
            raise DyditError(f"{self.path}: this {name} does not {work} {what} ({_first_line(error)})") from None
        return out


@dataclass(frozen=True)
class Encoder:
    """A VAE's encoder. `factor`: pixels of a picture for one of its latent; `sha256` is of the weights, by their names."""

    vae: Autoencoder
    channels: int
    factor: int
    sha256: str

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """B 3 S S in [-1, 1] -> mean and std of the latents' Gaussians, unscaled, each B C S/factor S/factor on cpu."""
        mean, std = self.vae.encode(images.to(self.vae.model.device))
        return mean.float().cpu(), std.float().cpu()


def load_encoder(path: str | Path, device: torch.device) -> Encoder:
    """As `load_vae`, the other way. It runs in float32."""
    vae = _open(path, device)
    digest = hashlib.sha256()
    for name, weight in sorted(vae.model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    side = max(PROBE, int(getattr(vae.model, "spatial_compression_ratio", None) or 0))
    _, channels, height, _ = vae.probe("encode", 1, 3, side, side).shape
    return Encoder(vae, channels, side // height, digest.hexdigest())


def load_vae(
    path: str | Path, device: torch.device, stored: LatentNorm | None = None, config: ModelConfig | None = None
) -> Decode:
    """A decoder of latents, M C s s to M 3 S S in [-1, 1]: a diffusers autoencoder's folder, or a hub id of one.

    `stored` is how the latents were normalised, and the VAE's own way where that is None. It runs in float32, image by
    image, so that a picture does not depend on its batch. Raises `DyditError` where it does not decode what a model of
    `config` makes, and where nothing says how that was normalised.
    """
    vae = _open(path, device)
    if config is not None:
        vae.probe("decode", 1, config.in_channels, 2, 2)
    norm = vae.norm if stored is None else stored
    if vae.norm is not None and type(vae.model).__name__ == DISTILLED and not (norm and norm.statistics):
        norm = vae.norm
    if norm is None or (stored is None and config is not None and config.measured_latents and not norm.statistics):
        raise DyditError(
            f"{path}: its configuration has no statistics of its latents, and the checkpoint stores none; "
            "give the ones that it was trained with: --latent-stats FILE, such as latents_stats.pt"
        )

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        return torch.cat([vae.decode(norm.restore(latent[None].to(device))).float().cpu() for latent in latents])

    return decode


def _open(path: str | Path, device: torch.device) -> Autoencoder:
    """Raises `DyditError` in one line for whatever is wrong with it."""
    import diffusers

    here = Path(path).exists()
    if (Path(path) / "vae" / "config.json").is_file():
        raise DyditError(f"{path}: a whole pipeline; give its VAE: {Path(path) / 'vae'}")
    if not (Path(path) / "config.json").is_file() and (here or not may_be_hub_id(str(path))):
        raise DyditError(f"{path}: not a VAE; give a diffusers AutoencoderKL folder or another autoencoder's, or a hub id")
    name = "AutoencoderKL"
    try:
        told: dict[str, Any] = diffusers.AutoencoderKL.load_config(str(path), local_files_only=here)
        name = str(told.get("_class_name", name))
        kind = getattr(diffusers, name, None)
        if _is_autoencoder(kind) and name not in REFUSED:
            vae: Any = kind.from_pretrained(str(path), local_files_only=here, use_safetensors=True)  # type: ignore[union-attr]
        else:
            vae = None
    # diffusers, the hub client and its network library each raise their own
    except Exception as error:
        what = f"not a readable {name}" if here else "no such folder here, and the Hugging Face hub does not give it"
        raise DyditError(f"{path}: {what} ({_first_line(error)})") from None
    if vae is None:
        raise DyditError(
            f"{path}: its class is {name[:80]!r}, which is no autoencoder that dydit takes pictures from; give one of "
            "diffusers', such as AutoencoderKL or AutoencoderDC"
        )
    first = next((m for m in vae.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    with naming(path):
        return Autoencoder(str(path), vae.to(device).eval(), _norm(vae.config, told), isinstance(first, nn.Conv3d))


def _is_autoencoder(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "encode") and hasattr(kind, "decode")


def _norm(config: Any, told: dict[str, Any]) -> LatentNorm | None:
    """What a VAE's configuration says of its latents: `told` is its file, `config` that and its class's defaults."""
    values = {key: value for key, value in config.items() if value is not None}
    statistics = "latents_mean" in values and "latents_std" in values
    if "scaling_factor" not in values and not statistics:
        return None
    # the default of most classes is the number of SD's VAE, of 4 channels: of another VAE it says nothing
    default = values.get("scaling_factor") == SD.factor and told.get("scaling_factor") is None
    if default and not statistics and "shift_factor" not in values and values.get("latent_channels", 4) != 4:
        return None
    return LatentNorm.from_dict(values)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__

"""How a VAE's latents become what a model takes, and back: one record, from the data to the checkpoint to the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    from typing import Self

KEYS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")  # diffusers' names, and those of our own files


@dataclass(frozen=True)
class LatentNorm:
    """A model's latents are (z - mean) / std * factor of a VAE's latents z.

    `mean` and `std` hold one number for all channels, or one for each. Raises `DyditError` for what cannot be inverted.
    """

    factor: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        numbers = (self.factor, *self.mean, *self.std)
        if not all(math.isfinite(number) for number in numbers) or not min(self.factor, *self.std) > 0:
            raise DyditError("normalisation of latents: its numbers must be finite, and its factor and its std over 0")
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise DyditError(f"normalisation of latents: a mean of {len(self.mean)} channels and a std of {len(self.std)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Of diffusers' keys, as `to_dict` has them; a factor alone or statistics alone will do. `shift_factor` is a mean."""
        factor, shift, mean, std = (values.get(key) for key in KEYS)
        if factor is None and (mean is None or std is None):
            raise DyditError("no normalisation of latents: neither scaling_factor nor latents_mean and latents_std")
        mean = mean if mean is not None else shift
        return cls(
            _numbers("scaling_factor", 1.0 if factor is None else factor)[0],
            _numbers("latents_mean", 0.0 if mean is None else mean),
            _numbers("latents_std", 1.0 if std is None else std),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a mean of 0 and a std of 1 go without saying."""
        statistics = {"latents_mean": list(self.mean), "latents_std": list(self.std)} if self.statistics else {}
        return {"scaling_factor": self.factor, **statistics}

    @property
    def statistics(self) -> bool:
        """Whether there is more than a factor."""
        return (self.mean, self.std) != ((0.0,), (1.0,))

    def normalise(self, z: Tensor) -> Tensor:
        """... C S S of the VAE -> the same of the model, in z's dtype and on its device."""
        return (z - _channels(self.mean, z)) / _channels(self.std, z) * self.factor

    def restore(self, x: Tensor) -> Tensor:
        """The inverse: ... C S S of the model -> the same of the VAE."""
        return x * _channels(self.std, x) / self.factor + _channels(self.mean, x)

    def check(self, channels: int) -> Self:
        """Itself; raises `DyditError` where it is of another number of channels."""
        own = max(len(self.mean), len(self.std))
        if own not in (1, channels):
            raise DyditError(f"normalisation of latents of {own} channels, where there are {channels}")
        return self

    def same(self, other: LatentNorm) -> bool:
        """Whether both give the same latents, but for rounding."""

        def near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
            size = max(len(a), len(b))
            a, b = (x * size if len(x) == 1 else x for x in (a, b))
            return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-6) for x, y in zip(a, b, strict=True))

        return near((self.factor,), (other.factor,)) and near(self.mean, other.mean) and near(self.std, other.std)

    def describe(self) -> str:
        """The formula in z; of statistics by channel the first two."""

        def text(numbers: tuple[float, ...]) -> str:
            shown = ", ".join(f"{number:.4g}" for number in numbers[:2])
            return shown if len(numbers) == 1 else f"[{shown}{', ...' if len(numbers) > 2 else ''}]"

        mean = f"(z - {text(self.mean)})" if self.mean != (0.0,) else "z"
        return f"{mean}{f' / {text(self.std)}' if self.std != (1.0,) else ''} * {self.factor:g}"


SD = LatentNorm(0.18215)  # Stable Diffusion's first VAE, of 4 channels, which the public DiT, SiT and Latte were trained with


def _channels(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """C 1 1, or 1 1 1."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not numbers or any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise DyditError(f"normalisation of latents: {name} must be a number, or one for each channel")
    return tuple(float(number) for number in numbers)

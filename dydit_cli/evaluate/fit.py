"""Brings images to the one size and the colours that a feature extractor takes, and remembers what that took."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dydit_cli.data.pictures import centre_crop
from dydit_cli.evaluate.features import Pixels

RESIZED = "centre crop, halved by averaging, then Pillow bicubic (as ADM)"
UNDONE = "enlarged squares of dydit sample's PNGs taken back exactly"


class Fitter:
    """Images to `side` pixels a side and `channels` colours (1 of grey, or 3); `steps` is what was done to any of them.

    Without a `side` the first image's shorter one is everyone's.
    """

    def __init__(self, side: int | None, channels: int) -> None:
        self.side, self.channels = side, channels
        self.steps: set[str] = set()

    @property
    def resize(self) -> str:
        """For the protocol: `none` where every image had the size."""
        return "; ".join(sorted(self.steps)) or "none"

    def __call__(self, pixels: Pixels) -> Pixels:
        """M H W C, C of 1 or 3, to M side side channels."""
        if self.side is None:
            self.side = min(pixels.shape[1:3])
        if pixels.shape[1:3] != (self.side, self.side):
            pixels = np.stack([self._resized(image, self.side) for image in pixels])
        return self._coloured(pixels)

    def _resized(self, image: Pixels, side: int) -> Pixels:
        shrunken = without_enlargement(image, side)
        if shrunken is not None:
            self.steps.add(UNDONE)
            return shrunken
        self.steps.add(RESIZED)
        grey = image.shape[-1] == 1
        square = centre_crop(Image.fromarray(image[..., 0] if grey else image), side)
        return np.asarray(square).reshape(side, side, image.shape[-1])

    def _coloured(self, pixels: Pixels) -> Pixels:
        if pixels.shape[-1] == self.channels:
            return pixels
        if self.channels == 3:
            return np.repeat(pixels, 3, axis=-1)
        # ITU-R 601 as in Pillow; the weights sum to 2^16, so that repeated grey comes back exactly
        weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
        grey: Pixels = ((weighted + (1 << 15)) >> 16).astype(np.uint8)[..., None]
        return grey


def without_enlargement(image: Pixels, side: int) -> Pixels | None:
    """The image S S C whose pixels `image` shows as equal squares, as `dydit sample` writes small ones; else None."""
    height, width, _ = image.shape
    times = height // side
    if height != width or times < 2 or height != times * side:
        return None
    small = image[::times, ::times]
    enlarged = small.repeat(times, axis=0).repeat(times, axis=1)
    return small if np.array_equal(enlarged, image) else None

"""Where in the images the MLPs worked (figure 6 of the DyDiT paper)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.figures.style import HEAT, new_figure
from dydit_cli.profiling.profile import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 20
COLUMNS = 5


def token_share(profile: Profile) -> NDArray[np.float64]:
    """K S S, of the images whose masks were kept: how often each of their tokens was computed, over steps, blocks and
    guidance halves, from 0 to 1."""
    side = math.isqrt(profile.config.num_tokens)
    shares = profile.record.tokens.mean(axis=(0, 1, 2), dtype=np.float64)  # K N
    return shares.reshape(-1, side, side)


def draw_tokens(profile: Profile) -> Figure:
    """Each generated image beside the map of its tokens, at most 20 images."""
    shares = token_share(profile)[:SHOWN]
    rows, columns = math.ceil(len(shares) / COLUMNS), min(len(shares), COLUMNS)
    figure = new_figure(max(2.0 * columns + 0.6, 4.5), 1.02 * rows + 0.7)
    axes = np.atleast_2d(figure.subplots(rows, 2 * columns, squeeze=False))
    low, high = float(shares.min()), float(shares.max())
    heat: Any = None
    for ax in axes.flat:
        ax.set_axis_off()
    for i, share in enumerate(shares):
        row, column = divmod(i, COLUMNS)
        picture, tokens = axes[row, 2 * column], axes[row, 2 * column + 1]
        picture.imshow(displayable(profile.samples[i]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        picture.set_title(f"class {profile.labels[i]}", fontsize=8, pad=2)
        heat = tokens.imshow(100 * share, cmap=HEAT, vmin=100 * low, vmax=100 * high, interpolation="nearest")
        tokens.set_title(f"{100 * share.mean():.0f} %", fontsize=8, pad=2)
    bar = figure.colorbar(heat, ax=axes, shrink=0.8 if rows > 1 else 1.0, pad=0.01)
    bar.set_label("computed by an MLP\n[% of steps and blocks]")
    figure.suptitle("Each image and how often each of its tokens was computed")
    return figure


def displayable(sample: NDArray[np.float32]) -> NDArray[np.float64]:
    """A sample C S S as S S (one channel) or S S 3, from 0 to 1. A latent shows its first three channels, stretched."""
    image = sample.astype(np.float64)
    if image.shape[0] in (1, 3):
        image = (image.clip(-1, 1) + 1) / 2
    else:
        image = image[:3]
        low, high = np.percentile(image, [1, 99])
        image = ((image - low) / max(high - low, 1e-9)).clip(0, 1)
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)

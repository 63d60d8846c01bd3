"""A sampling run step by step: what ran, the images and their token maps, as pictures that one dial moves together.

Legend: T model calls of a sampling run, L depth, H heads (and groups), N tokens, K images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from dydit_cli import units
from dydit_cli.artifacts.profile import FILMED, Profile
from dydit_cli.figures.style import BLUE, GREY, LIGHT, ORANGE
from dydit_cli.figures.tokens import token_grid
from dydit_cli.reports.pictures import as_image, encoded
from dydit_cli.reports.section import Film, Picture

MOST_STEPS = 250

GAP = 2  # rows between heads and channel groups

CAPTION = (
    "Drag, or point at the map: a column is a sampling step, from noise to image; its rows are the attention heads (blue) and "
    "the channel groups (orange) of all blocks, pale where they are skipped{forecast}. Beside it are the first images as the "
    "model is given them at this step, and how many of the blocks' MLPs each of their tokens goes through: white is all, black "
    "is none."
)


def film_of(profile: Profile, name: str) -> Film | None:
    """None of a static model, of videos, and of a run with very many steps."""
    record, config = profile.record, profile.config
    T = len(record.timesteps)
    if not config.dynamic or config.frames is not None or not 1 < T <= MOST_STEPS:
        return None
    maps = record.tokens[:, :, :, :FILMED].mean(axis=(1, 2))  # T K N
    screens = [sprites((255 * maps).round().astype(np.uint8).reshape(T, -1, *token_grid(profile), 1), "token map of image {}")]
    if profile.film is not None:
        screens.insert(0, sprites(profile.film.transpose(0, 1, 3, 4, 2), "image {}, step by step"))
    forecast = ", grey where a cache forecasts the step" if record.forecasts.any() else ""
    texts = steps_in_words(profile)
    return Film(name, profile.timeline.label, texts, strip_of(profile), screens, CAPTION.format(forecast=forecast))


def sprites(images: NDArray[np.uint8], text: str) -> list[Picture]:
    """images: T K S S C -> a picture for each of K, its T steps one below the other."""
    columns = images.swapaxes(0, 1).reshape(images.shape[1], -1, *images.shape[3:])  # K TS S C
    return [encoded(as_image(column), text.format(i), largest=column.shape[0]) for i, column in enumerate(columns)]


def strip_of(profile: Profile) -> Picture:
    """A column for each step, a row for each head and then each group of all blocks."""
    record = profile.record
    parts = []
    for masks, color in ((record.heads, BLUE), (record.groups, ORANGE)):
        rows = masks.reshape(len(masks), -1).T[..., None]  # LH T 1
        drawn = np.where(rows, ImageColor.getrgb(color), ImageColor.getrgb(LIGHT))
        parts.append(np.where(record.forecasts[None, :, None] > 0, ImageColor.getrgb(GREY), drawn))
    gap = np.full((GAP, *parts[0].shape[1:]), 255)
    pixels = np.concatenate([parts[0], gap, parts[1]]).astype(np.uint8)
    return encoded(Image.fromarray(pixels), "heads and channel groups at every step", largest=max(pixels.shape))


def steps_in_words(profile: Profile) -> list[str]:
    """What each step computes."""
    size, prefix = units.scale_of(float(profile.table["dynamic_macs"].max()))
    columns = ("timestep", "active_heads_share", "active_groups_share", "active_tokens_share", "dynamic_macs")
    return [
        f"t {profile.timeline.text(t)}: {heads:.0%} of heads, {groups:.0%} of channel groups, {tokens:.0%} of tokens; "
        f"{macs / size:.1f} {prefix}MACs"
        for t, heads, groups, tokens, macs in zip(*(profile.table[name].tolist() for name in columns), strict=True)
    ]

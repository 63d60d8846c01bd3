"""Where in the images the MLPs worked (figure 6 of the DyDiT paper), summed over the sampling steps and by phases of them.

Legend: K images with masks, T sampling steps, S tokens a side, F frames of a video.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dydit_cli.figures.base import figure
from dydit_cli.figures.maps import draw_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dydit_cli.artifacts.profile import Profile

SHOWN = 10

PHASES = 5

SHARE = "computed_percent_of_steps_and_blocks"


def token_share(profile: Profile, steps: slice = slice(None)) -> NDArray[np.float64]:
    """K S S, or of videos K F S S, of the images whose masks were kept: how often each of their tokens was computed, over
    `steps`, blocks and guidance halves, from 0 to 1."""
    shares = profile.record.tokens[steps].mean(axis=(0, 1, 2), dtype=np.float64)  # K N
    return shares.reshape(-1, *token_grid(profile))


def token_grid(profile: Profile) -> tuple[int, ...]:
    """S S, or of a video F S S."""
    config = profile.config
    side = config.input_size // config.patch_size
    return (side, side) if config.frames is None else (config.frames, side, side)


def tokens_table(profile: Profile) -> pd.DataFrame:
    """One row a shown image, span of sampling steps (all of them, then from noise to image) and token."""
    timesteps = profile.record.timesteps
    frames = []
    for span in spans(len(timesteps)):
        share = 100 * token_share(profile, span)[:SHOWN]  # K S S, or K F S S
        image, *frame, row, column = (axis.ravel() for axis in np.indices(share.shape))
        part = timesteps[span]
        frames.append(
            pd.DataFrame(
                {
                    "image": image,
                    "label": profile.labels[image],
                    "steps": "all" if len(part) == len(timesteps) else "phase",
                    "from_timestep": part[0],
                    "to_timestep": part[-1],
                    **({"frame": frame[0]} if frame else {}),
                    "token_row": row,
                    "token_column": column,
                    SHARE: share.ravel(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def spans(steps: int) -> list[slice]:
    """All sampling steps, then, where there are several, up to five phases of them, as equal as can be."""
    phases = min(PHASES, steps)
    edges = [round(i * steps / phases) for i in range(phases + 1)]
    return [slice(0, steps), *(slice(a, b) for a, b in pairwise(edges) if phases > 1)]


@figure(
    "tokens",
    "profile",
    title="Where in the images the compute went",
    caption="Each generated image beside how often each of its tokens went through an MLP: summed over all sampling steps, "
    "and in four phases from noise to image.",
    table=tokens_table,
)
def draw_tokens(profile: Profile) -> Figure:
    """Each generated image, at most 10, beside the maps of its tokens: over all steps, and over phases from noise to image; of
    videos at most three, frame by frame, above the maps."""
    cuts = spans(len(profile.record.timesteps))
    maps = tokens_table(profile)[SHARE].to_numpy().reshape(len(cuts), -1, *token_grid(profile))  # spans K S S
    low, high = float(maps.min()), float(maps.max())
    return draw_maps(
        profile.samples[: maps.shape[1]],
        profile.labels,
        maps,
        ["all steps", *(span_title(profile.record.timesteps[cut], profile.timeline.text) for cut in cuts[1:])],
        [[f"{share.mean():.0f} %" for share in of_span] for of_span in maps],
        limits=(min(low, high - 1), high),
        scale="how often an MLP computed the token [% of the steps and blocks]",
        title="How often each token was computed",
    )


def span_title(timesteps: NDArray[Any], text: Callable[[float], str]) -> str:
    """`t 999 to 816`, or `t 999` for a single step."""
    first, last = text(timesteps[0]), text(timesteps[-1])
    return f"t {first}" + (f" to {last}" if len(timesteps) > 1 else "")

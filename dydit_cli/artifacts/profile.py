"""What `dydit profile` leaves: a sampling run's routing and MACs, as tables and arrays.

Legend: T model calls of a sampling run, L depth, H heads (and groups), N tokens, M images, K of them with masks, G guidance
halves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dydit_cli import marks
from dydit_cli.artifacts.base import Folder
from dydit_cli.diffusion.process import process_of
from dydit_cli.diffusion.timeline import Timeline
from dydit_cli.files import atomic_folder, write_json
from dydit_cli.model.caching import CacheAt, Forecast
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import config_from_dict
from dydit_cli.model.macs import BlockMacs, forecast_macs, macs_of_units, routed_macs, static_macs, surrounding_macs
from dydit_cli.model.merging import Merging
from dydit_cli.model.routing import Routing

TABLE_FILE, BLOCKS_FILE, IMAGES_FILE, ROUTING_FILE = "timesteps.csv", "blocks.csv", "images.csv", "routing.npz"

FILMED = 4  # images that are kept as they come to be

# columns under the names that earlier files have
RENAMED = {
    "dynamic_macs_labelled": "dynamic_macs_cond",
    "dynamic_macs_unlabelled": "dynamic_macs_uncond",
    "frame_macs": "embed_and_head_macs",
}


@dataclass(frozen=True)
class Profile(Folder):
    """`summary` is profile.json, `table` timesteps.csv; samples (M C S S, float32) and labels (M,) are the images.

    `blocks` and `images`, blocks.csv and images.csv, are computed from the record. `film` (T K C S S, uint8) are the first
    images as the model was given them at every call; None where they are no pixels or would be large.
    """

    kind = "profile"
    name = "a profile"
    made_by = "dydit profile CKPT --out DIR"
    mark = marks.PROFILE
    files = (mark, TABLE_FILE, BLOCKS_FILE, IMAGES_FILE, ROUTING_FILE)
    format, format_version = "dydit-profile", 2

    summary: dict[str, Any]
    table: pd.DataFrame
    record: RoutingRecord
    samples: NDArray[np.float32]
    labels: NDArray[np.int64]
    film: NDArray[np.uint8] | None = None

    @property
    def config(self) -> ModelConfig:
        return config_from_dict(self.summary["model"])

    @property
    def phases(self) -> pd.DataFrame:
        return phase_table(self.table, self.timeline)

    @property
    def timeline(self) -> Timeline:
        """The scale of the model's timesteps."""
        return process_of(self.config).timeline

    @property
    def blocks(self) -> pd.DataFrame:
        return block_table(self.record, self.config)

    @property
    def images(self) -> pd.DataFrame:
        return image_table(self.record, self.config, self.labels)

    def write(self, folder: str | Path) -> None:
        """Writes all files at once."""
        with atomic_folder(folder) as temporary:
            self.table.to_csv(temporary / TABLE_FILE, index=False)
            self.blocks.to_csv(temporary / BLOCKS_FILE, index=False)
            self.images.to_csv(temporary / IMAGES_FILE, index=False)
            record = self.record
            some: dict[str, Any] = {"forecasts": record.forecasts} if record.forecasts.any() else {}
            if self.film is not None:
                some["film"] = self.film
            np.savez_compressed(
                temporary / ROUTING_FILE,
                timesteps=record.timesteps,
                heads=record.heads,
                groups=record.groups,
                token_counts=record.token_counts,
                tokens_bits=np.packbits(record.tokens, axis=-1),
                tokens_shape=np.array(record.tokens.shape),
                samples=self.samples,
                labels=self.labels,
                **some,
            )
            write_json(temporary / self.mark, self.summary)

    @classmethod
    def read(cls, path: str | Path) -> Profile:
        folder = Path(path)
        summary = cls.read_summary(folder)
        with cls.reading(folder), np.load(folder / ROUTING_FILE, allow_pickle=False) as arrays:
            table = pd.read_csv(folder / TABLE_FILE).rename(columns=RENAMED)
            shape = tuple(int(n) for n in arrays["tokens_shape"])
            tokens = np.unpackbits(arrays["tokens_bits"], axis=-1, count=shape[-1]).reshape(shape).astype(bool)
            steps, heads, groups = (arrays[name] for name in ("timesteps", "heads", "groups"))
            tome = summary.get("tome")
            merging = None if tome is None else Merging.of(config_from_dict(summary["model"]), tome)
            record = RoutingRecord(
                steps,
                heads,
                groups,
                arrays["token_counts"],
                tokens,
                merging,
                arrays["forecasts"] if "forecasts" in arrays else np.zeros(len(steps), dtype=np.int64),
                summary.get("cache_at", "sublayers"),
            )
            return cls(summary, table, record, arrays["samples"], arrays["labels"], arrays.get("film"))


BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class RoutingRecord:
    """heads, groups: T L H, the same for every image; token_counts: T L G M; tokens: T L G K N, the masks of the first
    K images; timesteps: T, in the order of the model's calls. `merging` is what a `MergedModel` did in every attention.
    `forecasts` (T) are from how many kept outputs a cache made a call's, 0 where it was computed; `cache_at` what it kept."""

    timesteps: NDArray[Any]
    heads: BoolArray
    groups: BoolArray
    token_counts: NDArray[np.int32]
    tokens: BoolArray
    merging: Merging | None = None
    forecasts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    cache_at: CacheAt = "sublayers"

    def __post_init__(self) -> None:
        if not len(self.forecasts):
            object.__setattr__(self, "forecasts", np.zeros(len(self.timesteps), dtype=np.int64))

    def forecast(self, step: int) -> Forecast | None:
        """What the step was made of, where a cache did not compute it."""
        values = int(self.forecasts[step])
        return Forecast(self.cache_at, values) if values else None

    @property
    def images(self) -> int:
        return self.token_counts.shape[3]

    def block_macs(self, step: int, config: ModelConfig) -> BlockMacs:
        """The step's MACs; L x G * M in every field, the half with its label (cond) first."""
        tokens = torch.from_numpy(self.token_counts[step]).long().flatten(1)  # L GM
        forecast = self.forecast(step)
        if forecast is not None:
            return forecast_macs(forecast, tokens, config)
        heads, channels = (
            config.site(structure).active_units(torch.from_numpy(masks[step]))[:, None].expand_as(tokens)
            for structure, masks in (("heads", self.heads), ("groups", self.groups))
        )
        return macs_of_units(heads, channels, tokens, config, self.merging)

    def routing(self, step: int) -> Routing:
        """The step's masks for a batch of G * K samples, the half with its label (cond) first."""
        _T, L, G, K, N = self.tokens.shape
        tokens = torch.from_numpy(self.tokens[step].reshape(L, G * K, N)).float()
        heads, groups = (
            torch.from_numpy(masks[step]).float()[:, None].expand(-1, G * K, -1) for masks in (self.heads, self.groups)
        )  # each L GK H
        return Routing(heads, groups, tokens, self.forecast(step))


PARTS = ("attention", "mlp", "routers", "modulation", "norms")

HALVES = ("cond", "uncond")  # of guidance


def timestep_table(record: RoutingRecord, config: ModelConfig) -> pd.DataFrame:
    """One row a sampling step: step, timestep, static_macs, dynamic_macs with its spread over images and halves, ratio,
    the share of heads, groups and tokens that is active, `routed_ratio` (attention and MLP alone, what fine-tuning
    steers), MACs by part, and with guidance `dynamic_macs` of each half; with a cache whether it is `forecast`, 1, or computed,
    0."""
    static = static_macs(config)
    everything = routed_macs(config)
    rows = []
    for step, timestep in enumerate(record.timesteps.tolist()):
        blocks = record.block_macs(step, config)
        embed_and_head = surrounding_macs(record.forecast(step), config)
        total = blocks.total.sum(dim=0).double() + embed_and_head  # GM
        halves = total.view(record.token_counts.shape[2], -1).mean(dim=1).tolist()
        parts = {f"{part}_macs": _mean(blocks, part) for part in PARTS}
        rows.append(
            {
                "step": step,
                "timestep": timestep,
                **_forecast_column(record, step),
                "static_macs": static,
                "dynamic_macs": total.mean().item(),
                "dynamic_macs_std": total.std(correction=0).item(),
                "dynamic_macs_min": int(total.min()),
                "dynamic_macs_max": int(total.max()),
                "ratio": total.mean().item() / static,
                "routed_ratio": (parts["attention_macs"] + parts["mlp_macs"]) / everything,
                "active_heads_share": float(record.heads[step].mean()),
                "active_groups_share": float(record.groups[step].mean()),
                "active_tokens_share": float(record.token_counts[step].mean()) / config.num_tokens,
                **parts,
                "embed_and_head_macs": embed_and_head,
                **({f"dynamic_macs_{half}": value for half, value in zip(HALVES, halves, strict=True)} if halves[1:] else {}),
            }
        )
    return pd.DataFrame(rows)


def block_table(record: RoutingRecord, config: ModelConfig) -> pd.DataFrame:
    """One row a sampling step, block and guidance half: active heads, groups and tokens (mean, spread and extremes over
    images) and MACs by part."""
    frames = []
    for step, timestep in enumerate(record.timesteps.tolist()):
        L, G, M = record.token_counts[step].shape
        tokens = record.token_counts[step].reshape(L * G, M).astype(np.int64)
        blocks = record.block_macs(step, config)
        frames.append(
            pd.DataFrame(
                {
                    "step": step,
                    "timestep": timestep,
                    **_forecast_column(record, step),
                    "block": np.repeat(np.arange(L), G),
                    "half": list(HALVES[:G]) * L,
                    "active_heads": np.repeat(record.heads[step].sum(axis=1), G),
                    "active_groups": np.repeat(record.groups[step].sum(axis=1), G),
                    "active_tokens_mean": tokens.mean(axis=1),
                    "active_tokens_std": tokens.std(axis=1),
                    "active_tokens_min": tokens.min(axis=1),
                    "active_tokens_max": tokens.max(axis=1),
                    **{
                        f"{part}_macs": getattr(blocks, part).view(L * G, M).double().mean(dim=1).numpy()
                        for part in (*PARTS, "total")
                    },
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def image_table(record: RoutingRecord, config: ModelConfig, labels: NDArray[np.int64]) -> pd.DataFrame:
    """One row an image: its class, the MACs of generating it (all steps and halves), their ratio to the static model's,
    and the share of its tokens that the MLPs saw, by half."""
    T, _L, G, M = record.token_counts.shape
    macs = torch.zeros(M, dtype=torch.int64)
    for step in range(T):
        around = G * surrounding_macs(record.forecast(step), config)
        macs += record.block_macs(step, config).total.sum(dim=0).view(G, M).sum(dim=0) + around
    shares = record.token_counts.mean(axis=(0, 1), dtype=np.float64) / config.num_tokens  # G M
    columns = {f"active_tokens_share_{half}": share for half, share in zip(HALVES, shares, strict=False)}
    return pd.DataFrame(
        {
            "image": np.arange(M),
            "label": labels,
            "macs_per_image": macs.numpy(),
            "ratio": macs.numpy() / (T * G * static_macs(config)),
            **columns,
        }
    )


def phase_table(table: pd.DataFrame, timeline: Timeline) -> pd.DataFrame:
    """Means of `timestep_table` over four equal phases of the schedule, the noisiest first; `phase` names timesteps."""
    phase, names = timeline.phase_of(table["timestep"].to_numpy()), timeline.phases()
    means = table.drop(columns=["step", "timestep"]).groupby(phase).mean()
    means.insert(0, "phase", [names[i] for i in means.index])
    means.insert(1, "steps", table.groupby(phase).size())
    return means.reset_index(drop=True)


def _forecast_column(record: RoutingRecord, step: int) -> dict[str, int]:
    return {"forecast": int(record.forecasts[step] > 0)} if record.forecasts.any() else {}


def _mean(blocks: BlockMacs, part: str) -> float:
    values: torch.Tensor = getattr(blocks, part)
    return values.sum(dim=0).double().mean().item()

"""`dydit profile`: a sampling run, its routing and MACs at every timestep, as files that figures draw from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import dydit_cli
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.read import Reading, Source, read
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import Progress, cycle_labels
from dydit_cli.diffusion.sampler import ALWAYS, SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_folder, check_output, write_json
from dydit_cli.model.config import DiTConfig, config_from_dict
from dydit_cli.model.sparse import SparseDyDiT, executor
from dydit_cli.model.tome import Merging, TomeDiT
from dydit_cli.profiling.clock import Clock
from dydit_cli.profiling.record import KEPT_MASKS, Recorder, RoutingRecord
from dydit_cli.profiling.table import block_table, image_table, phase_table, timestep_table

FORMAT, FORMAT_VERSION = "dydit-profile", 2
SUMMARY_FILE, TABLE_FILE, BLOCKS_FILE, IMAGES_FILE = "profile.json", "timesteps.csv", "blocks.csv", "images.csv"
ROUTING_FILE = "routing.npz"
FILES = (SUMMARY_FILE, TABLE_FILE, BLOCKS_FILE, IMAGES_FILE, ROUTING_FILE)


@dataclass(frozen=True)
class Profile:
    """`summary` is profile.json, `table` timesteps.csv; samples (M C S S, float32) and labels (M,) are what was drawn.

    `blocks` and `images`, blocks.csv and images.csv, are counted from the record when they are asked for.
    """

    summary: dict[str, Any]
    table: pd.DataFrame
    record: RoutingRecord
    samples: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def config(self) -> DiTConfig:
        return config_from_dict(self.summary["model"])

    @property
    def phases(self) -> pd.DataFrame:
        return phase_table(self.table)

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
            )
            write_json(temporary / SUMMARY_FILE, self.summary)


def profile(
    checkpoint: Source,
    out: str | Path | None = None,
    *,
    images: int = 16,
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    batch: int = 64,
    keep_masks: int = KEPT_MASKS,
    time: bool = False,
    tome: float | None = None,
    reading: Reading = Reading(),
    device: str = "auto",
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Profile:
    """Samples `images` images, classes in turn, and counts what every step executed; writes to `out` if given.

    Token masks are kept of the first `keep_masks` images, numbers of tokens of all. `time` runs every step twice more,
    sparse and static, and adds their seconds. A static model's profile is what it always does, or with `tome` what is
    left when it merges this share of its tokens before attention (`model.tome`). Raises `DyditError` for an existing
    `out` (without `force`), images under 1, or guidance in a part of the schedule only.
    """
    if out is not None:
        check_output(out, force)
    loaded = read(checkpoint, reading)
    result = profile_checkpoint(
        loaded, name=str(loaded.path), images=images, settings=settings, seed=seed, batch=batch, keep_masks=keep_masks,
        time=time, tome=tome, device=device, on_progress=on_progress,
    )  # fmt: skip
    if out is not None:
        result.write(out)
    return result


def profile_checkpoint(
    checkpoint: Checkpoint,
    *,
    name: str,
    images: int,
    settings: SamplerSettings,
    seed: int,
    batch: int,
    keep_masks: int = KEPT_MASKS,
    time: bool = False,
    tome: float | None = None,
    device: str,
    on_progress: Callable[[Progress], None] | None = None,
) -> Profile:
    """As `profile`, of a model that is in memory; `name` is what the summary calls it."""
    if images < 1:
        raise DyditError(f"{images} images: profile at least 1")
    if settings.cfg_interval != ALWAYS:
        raise DyditError("a profile counts the same guidance at every step; leave the guidance interval (cfg_interval) out")
    config, place = checkpoint.config, pick_device(device)
    model = executor(checkpoint.build().to(place).float(), "sparse", tome=tome)
    halves = 1 if settings.cfg == 1 else 2
    recorder = Recorder(model, halves, max(1, keep_masks))  # type: ignore[arg-type]
    clock = Clock(model, recorder, settings.timesteps) if time and isinstance(model, SparseDyDiT | TomeDiT) else None
    labels = cycle_labels(list(range(config.num_classes)), images)
    samples = recorder.sample(labels, settings, seed=seed, batch=batch, denoiser=clock, on_progress=on_progress)
    record = recorder.record()
    table = timestep_table(record, config)
    if clock:
        table = clock.add_to(table)
    static, dynamic = float(table["static_macs"].mean()), float(table["dynamic_macs"].mean())
    forwards, tally = settings.steps * halves, recorder.tally
    summary = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "checkpoint": name,
        "model": config.to_dict(),
        "lineage": checkpoint.lineage,
        "unit": "MAC (1 multiply-accumulate = 1 FLOP of fvcore and the papers), mean per forward and image",
        "macs_static": static,
        "macs_dynamic": dynamic,
        "macs_static_per_image": static * forwards,
        "macs_dynamic_per_image": dynamic * forwards,
        "ratio": dynamic / static,
        "routed_ratio": float(table["routed_ratio"].mean()),
        "flops_ratio_asked": asked_ratio(checkpoint.lineage),
        "tome": tome or None,
        "tokens_in_attention": config.num_tokens if recorder.merging is None else recorder.merging.kept,
        "active_heads_share": float(table["active_heads_share"].mean()),
        "active_groups_share": float(table["active_groups_share"].mean()),
        "active_tokens_share": float(table["active_tokens_share"].mean()),
        "forwards_per_image": forwards,
        "executed_macs": dict(tally.counted),
        "formula_macs": dict(tally.formula),
        "counters_agree": tally.agree,
        "operations_without_handle": dict(tally.unknown),
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": settings.cfg,
        "cfg_channels": settings.cfg_channels,
        "spacing": settings.timestep_spacing,
        "images": images,
        "images_with_masks": record.tokens.shape[3],
        "seed": seed,
        "dtype": "float32",
        "device": place.type,
        "versions": {"dydit": dydit_cli.__version__, "torch": torch.__version__},
    }
    if clock:
        summary |= clock.summary(dynamic / static)
    return Profile(summary, table, record, samples.numpy(), labels.numpy())


def asked_ratio(lineage: list[dict[str, Any]]) -> float | None:
    """The lambda of the last fine-tuning or calibration in a checkpoint's lineage; None where there was none."""
    found = [entry["flops_ratio"] for entry in lineage if "flops_ratio" in entry]
    return float(found[-1]) if found else None


def read_profile(folder: str | Path) -> Profile:
    """Reads what `Profile.write` wrote; raises `DyditError` in one line where it is missing, damaged or of another version."""
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DyditError(f"{folder}: not a profile: it has no {missing[0]}; make one with: dydit profile CKPT --out DIR")
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        if not isinstance(summary, dict) or summary.get("format") != FORMAT:
            raise DyditError(f"{folder / SUMMARY_FILE}: not a dydit profile; make one with: dydit profile CKPT --out DIR")
        if summary.get("format_version") != FORMAT_VERSION:
            version = summary.get("format_version")
            raise DyditError(f"{folder}: profile version {version!r}, this dydit reads {FORMAT_VERSION}; profile again")
        table = pd.read_csv(folder / TABLE_FILE)
        with np.load(folder / ROUTING_FILE, allow_pickle=False) as arrays:
            shape = tuple(int(n) for n in arrays["tokens_shape"])
            tokens = np.unpackbits(arrays["tokens_bits"], axis=-1, count=shape[-1]).reshape(shape).astype(bool)
            steps, heads, groups = (arrays[name] for name in ("timesteps", "heads", "groups"))
            tome = summary.get("tome")
            merging = None if tome is None else Merging.of(config_from_dict(summary["model"]), tome)
            record = RoutingRecord(steps, heads, groups, arrays["token_counts"], tokens, merging)
            return Profile(summary, table, record, arrays["samples"], arrays["labels"])
    except (OSError, ValueError, TypeError, KeyError, IndexError, EOFError) as error:
        raise DyditError(f"{folder}: damaged profile ({error}); profile again") from None

"""What an evaluation, a conversion and the encoding of latents will take."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.compress.equivalence import EquivalenceCheck
from dydit_cli.compress.options import ConvertOptions
from dydit_cli.costs.memory import LiveBytes, bytes_of, forward_memory, touch, weight_bytes
from dydit_cli.costs.plan import Machine, Plan, held, output
from dydit_cli.costs.sampling import sampling_cost
from dydit_cli.costs.timing import describe_part, part_of, seconds_of, time_forward
from dydit_cli.data.encode import DTYPES, SHARD_CLIPS, SHARD_SIZE
from dydit_cli.data.imagefolder import list_clips, list_pictures
from dydit_cli.data.latents import FORMAT, SETTINGS_FILE, SHARDS
from dydit_cli.data.vae import load_encoder
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Extractor
from dydit_cli.evaluate.images import Images
from dydit_cli.evaluate.reference import Reference
from dydit_cli.files import Resumable, Shards, check_output
from dydit_cli.model.families import with_routers
from dydit_cli.model.macs import static_macs
from dydit_cli.sampling.options import SamplingConfig

EVALUATION_BYTES = 4000


def evaluation_plan(
    images: Images | tuple[Checkpoint, int],
    reference: Reference,
    extractor: Extractor,
    config: SamplingConfig,
    out: Path | None,
) -> Plan:
    """Of `dydit evaluate` of images, or of so many of a checkpoint that are drawn for it."""
    device = pick_device(config.device)
    if isinstance(images, tuple):
        cost = sampling_cost(images[0], config, images[1])
        machine, memory, seconds, count = cost.machine, cost.memory, cost.seconds, images[1]
        timing = f"sampling: {cost.timing}; features: a batch of them, timed here"
    else:
        machine, memory, seconds, count = Machine.now(device), {}, 0.0, images.count
        timing = "features: a batch of them, timed here"
    side = extractor.side or 256
    batch = np.zeros((min(config.batch, count), side, side, extractor.channels), dtype=np.uint8)
    with LiveBytes() as live:
        features = extractor.extract(batch)
    every = count + (reference.images.count if reference.images is not None else 0)
    own = seconds_of(partial(extractor.extract, batch), device, warm_up=0) * every / len(batch)
    return machine.plan(
        {**memory, "network of features": live.peak, "features": every * features.pool.shape[1] * 4},
        seconds=None if seconds is None else seconds + own,
        timing=timing,
        outputs=[] if out is None else [output(out, EVALUATION_BYTES, force=True)],
        notes=["not in the time: reading the images, and comparing the features"],
    )


def conversion_plan(static: Checkpoint, destination: Path, options: ConvertOptions, force: bool) -> Plan:
    """Of `dydit convert`; raises `DyditError` for a DyDiT."""
    if static.config.dynamic:
        raise DyditError(f"{static.path}: is a DyDiT already; fine-tune it: dydit finetune {static.path} --out DIR")
    config = with_routers(static.config, width_routing=options.width_routing, token_routing=options.token_routing)
    touch(static.weights)
    device = torch.device("cpu")
    machine, part = Machine.now(device), part_of(static)
    inputs = EquivalenceCheck.inputs_of(config)
    block = weight_bytes(config) // config.depth
    forward = forward_memory(config, inputs, device)
    spent = time_forward(part, inputs, device)
    seconds = 2 * spent * static_macs(static.config) / static_macs(part.config)
    return machine.plan(
        {
            "a block, and its conversion": 3 * block,
            "activations, of both models": 2 * (sum(forward.values()) - forward["weights"]),
        },
        seconds=seconds,
        timing=f"the proof alone, {describe_part(part, static, inputs, spent)}",
        outputs=[output(destination, weight_bytes(config) - weight_bytes(static.config) + bytes_of(static.weights), force)],
    )


def encoding_plan(
    images: Path, out: Path, vae: str, size: int, frames: int | None, batch: int, shard_size: int | None, dtype: str,
    device: str, force: bool,
) -> Plan:  # fmt: skip
    """Of `dydit encode`, of the shards that are missing. Raises `DyditError` for a folder without pictures, and no VAE."""
    place, items = pick_device(device), None
    if frames is None:
        counts = [1] * len(list_pictures(images).files)
    else:
        _, items, _ = list_clips(images, frames)
        counts = [len(item) for item in items]
    before = held(place)
    machine = Machine.now(place)
    encoder = load_encoder(vae, place)
    if size < 1 or size % encoder.factor:
        raise DyditError(f"size {size}: {vae} makes a latent pixel of {encoder.factor}; give a multiple of that")
    weights = held(place) - before
    shards = Shards(out / SHARDS, len(counts), shard_size or (SHARD_SIZE if frames is None else SHARD_CLIPS), ".safetensors")
    missing = range(shards.count) if force else shards.missing()
    left = sum(counts[i] for shard in missing for i in shards.items(shard))
    row = 2 * 2 * encoder.channels * (size // encoder.factor) ** 2 * DTYPES[dtype].itemsize  # mean and std, twice
    pictures = torch.zeros(2 * min(batch, max(left, 1)), 3, size, size)
    with LiveBytes() as live:
        encoder(pictures)
    seconds = seconds_of(partial(encoder, pictures), place, warm_up=0) * math.ceil(left / batch)
    resumable = Resumable(out, SETTINGS_FILE, FORMAT, "latents", "OUT")
    largest = max((sum(counts[i] for i in shards.items(shard)) for shard in missing), default=0)
    return machine.plan(
        {"VAE": weights, "activations": live.peak, "a shard": largest * row},
        seconds=seconds,
        timing="a batch of the VAE, timed here, without reading the pictures",
        outputs=[
            output(out, sum(counts) * row, force, lambda: check_output(out, force) if force else resumable.check({}), True)
        ],
    )

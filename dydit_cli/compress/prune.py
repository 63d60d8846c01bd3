"""Structural pruning: a static model with fewer heads and MLP channels in every block, or with fewer blocks.

All criteria of the width are compared at the same MACs. What is kept stays in its order and unchanged: the pruned model is
the original with the outputs of the other heads, channels and blocks at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.compress.calibration import CalibrationData
from dydit_cli.compress.methods import Kept, find_method
from dydit_cli.compress.options import PruneOptions
from dydit_cli.compress.structures import narrowed, shallower
from dydit_cli.data.load import default_data, load_data
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.macs import routed_macs, static_macs
from dydit_cli.model.sites import Weights


@dataclass(frozen=True)
class Pruning:
    """What `prune` did. `kept_blocks` are numbers of the original's, and `kept_heads` those of their heads there, block by
    block; MACs are per forward and image.

    `ratio` is of all MACs, `routed_ratio` of those of attention and MLP in the blocks, which `keep` asks for; `seen` is
    what importance was measured on, and `trained_on` the data set that the model's lineage names last.
    """

    source: str
    found: str
    destination: str
    method: str
    keep: float
    seen: str
    trained_on: str | None
    seed: int
    depth: int
    depth_before: int
    heads: int
    heads_before: int
    head_width: int
    mlp_width: int
    mlp_width_before: int
    kept_blocks: list[int]
    kept_heads: list[list[int]]
    parameters: int
    parameters_before: int
    macs: int
    macs_before: int
    ratio: float
    routed_ratio: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def prune(
    source: CheckpointLike,
    destination: str | Path,
    options: PruneOptions = PruneOptions(),
    *,
    reading: LoadOptions = LoadOptions(),
    device: str = "auto",
    force: bool = False,
    on_stage: Callable[[str, int, str], None] = lambda what, total, unit: None,
    on_work: Callable[[int], None] = lambda amount: None,
    **changes: Any,
) -> Pruning:
    """Prunes the static checkpoint `source` to a share of its blocks' MACs, into the folder `destination`.

    `changes` replace single fields of `options`, as in `prune(source, destination, keep=0.7)`. Raises `DyditError` where
    the source is no static one, the data do not fit it, the destination exists (without `force`) or a number is out of
    range; then nothing is written.
    """
    options = replace(options, **changes)
    name, keep, seed = options.method, options.keep, options.seed
    destination = check_output(destination, force)
    method = find_method(name)
    if not 0 < keep <= 1:
        raise DyditError(f"share to keep {keep:g}; it must be over 0 and at most 1")
    static = read(source, reading)
    if static.config.dynamic:
        raise DyditError(
            f"{static.path}: is a DyDiT; pruning takes its all-on static model: "
            f"dydit export {static.path} DIR --format native --complete"
        )
    config = method.smaller(static.config, keep)
    batches = max(1, method.batches) if options.batches is None else options.batches
    calibration = CalibrationData(seed, None, batches, options.batch_size, options.timesteps, options.threshold)
    if method.batches:
        images = load_data(options.data or default_data(static.trained_on, static.config), static.config)
        images.check(static.config, static.latents)
        calibration = replace(calibration, data=images, on_work=on_work)
        on_stage(name, calibration.batches * method.passes(static.config, config, calibration), "passes")
    kept = method.choose(static.build().float().to(pick_device(device)), config, calibration)
    facts = {"method": name, "keep": keep, "seen": kept.seen, "seed": seed}
    if len(kept.blocks) < static.config.depth:
        facts |= {"depth": config.depth, "blocks": kept.blocks}
    step = lineage.entry("prune", static, **facts, heads=config.num_heads, mlp_width=config.mlp_hidden)
    weights = kept_weights(static.weights, static.config, kept)
    pruned = replace(static, config=config, weights=weights, lineage=[*static.lineage, step]).check()
    write(pruned, destination)
    before = static.config
    return Pruning(
        source=str(static.path),
        found="; ".join((static.found, *static.notes)),
        destination=str(destination),
        method=name,
        keep=keep,
        seen=kept.seen,
        trained_on=static.trained_on,
        seed=seed,
        depth=config.depth,
        depth_before=before.depth,
        heads=config.num_heads,
        heads_before=before.num_heads,
        head_width=config.head_dim,
        mlp_width=config.mlp_hidden,
        mlp_width_before=before.mlp_hidden,
        kept_blocks=kept.blocks,
        kept_heads=[heads.tolist() for heads in kept.heads],
        parameters=_count(weights),
        parameters_before=_count(static.weights),
        macs=static_macs(config),
        macs_before=static_macs(before),
        ratio=static_macs(config) / static_macs(before),
        routed_ratio=routed_macs(config) / routed_macs(before),
    )


def kept_weights(weights: Mapping[str, Tensor], config: ModelConfig, kept: Kept) -> Weights:
    """Those of `weights`, a model's of `config`, that are `kept`, under the names that they have in the smaller model."""
    fewer = shallower(weights, config, kept.blocks)
    return narrowed(fewer, replace(config, depth=len(kept.blocks)), {"heads": kept.heads, "groups": kept.channels})


def _count(weights: dict[str, Tensor]) -> int:
    return sum(w.numel() for w in weights.values())

"""Structural pruning: a static model with the same depth and width, and fewer heads and MLP channels in every block.

Every block keeps as many as the others, so that all criteria are compared at the same MACs. What is kept stays in its
order and unchanged: the pruned model is the original with the other heads' and channels' outputs at zero.

Legend: L depth, H heads, D head width, C width, F MLP width, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.compress.criteria import CRITERIA, CalibrationData, Scores
from dydit_cli.compress.options import PruneOptions
from dydit_cli.compress.structures import narrowed
from dydit_cli.data.load import default_data, load_data
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.macs import attention_macs, mlp_macs, routed_macs, static_macs


@dataclass(frozen=True)
class Pruning:
    """What `prune` did. `kept_heads` are their numbers in the original, block by block; MACs are per forward and image.

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
    heads: int
    heads_before: int
    head_width: int
    mlp_width: int
    mlp_width_before: int
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
    method, keep, seed = options.method, options.keep, options.seed
    destination = check_output(destination, force)
    if method not in CRITERIA:
        raise DyditError(f"no pruning method {method!r}; choose one of {', '.join(CRITERIA)}")
    static = read(source, reading)
    if static.config.dynamic:
        raise DyditError(
            f"{static.path}: is a DyDiT; pruning takes its all-on static model: "
            f"dydit export {static.path} DIR --format native --complete"
        )
    config, criterion = narrower(static.config, keep), CRITERIA[method]
    batches = max(1, criterion.batches) if options.batches is None else options.batches
    calibration = CalibrationData(seed, None, batches, options.batch_size, options.timesteps, options.threshold)
    if criterion.batches:
        images = load_data(options.data or default_data(static.trained_on, static.config), static.config)
        images.check(static.config, static.latents)
        calibration = replace(calibration, data=images, on_work=on_work)
        on_stage(method, calibration.batches * criterion.passes(calibration), "passes")
    scores = criterion.score(static.build().float().to(pick_device(device)), calibration)
    heads, channels = chosen(scores, config)
    facts = {"method": method, "keep": keep, "seen": scores.seen, "seed": seed}
    step = lineage.entry("prune", static, **facts, heads=config.num_heads, mlp_width=config.mlp_hidden)
    weights = narrowed(static.weights, static.config, {"heads": list(heads), "groups": list(channels)})
    pruned = replace(static, config=config, weights=weights, lineage=[*static.lineage, step]).check()
    write(pruned, destination)
    before = static.config
    return Pruning(
        source=str(static.path),
        found="; ".join((static.found, *static.notes)),
        destination=str(destination),
        method=method,
        keep=keep,
        seen=scores.seen,
        trained_on=static.trained_on,
        seed=seed,
        depth=config.depth,
        heads=config.num_heads,
        heads_before=before.num_heads,
        head_width=config.head_dim,
        mlp_width=config.mlp_hidden,
        mlp_width_before=before.mlp_hidden,
        kept_heads=heads.tolist(),
        parameters=_count(weights),
        parameters_before=_count(static.weights),
        macs=static_macs(config),
        macs_before=static_macs(before),
        ratio=static_macs(config) / static_macs(before),
        routed_ratio=routed_macs(config) / routed_macs(before),
    )


def narrower(config: ModelConfig, keep: float) -> ModelConfig:
    """`config` with the share `keep` of its heads, at least one, and the MLP width that brings attention and MLP of a block
    together nearest to `keep` of their MACs.

    Raises `DyditError` where `keep` is not over 0 and at most 1, or less than a head and a channel cost.
    """
    if not 0 < keep <= 1:
        raise DyditError(f"share to keep {keep:g}; it must be over 0 and at most 1")
    H, F = config.num_heads, config.mlp_hidden
    heads, both = max(1, round(keep * H)), attention_macs(config) + mlp_macs(config)
    channel = mlp_macs(config) // F
    attention = attention_macs(config) // H * heads
    width = min(F, round((keep * both - attention) / channel))
    if width < 1:
        least = (attention + channel) / both
        raise DyditError(f"share to keep {keep:g}: with {heads} of {H} heads and one channel it is {least:.3f}; keep more")
    return config.narrowed(heads, width)


def chosen(scores: Scores, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Which heads (L x kept) and channels (L x kept) of each block `config`, the narrower one, has room for, ascending."""
    kept = ((scores.heads, config.num_heads), (scores.channels, config.mlp_hidden))
    heads, channels = (
        score.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values for score, count in kept
    )
    return heads, channels


def _count(weights: dict[str, Tensor]) -> int:
    return sum(w.numel() for w in weights.values())

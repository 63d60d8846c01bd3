"""Architecture from names and shapes, so that a bare state dict needs no configuration beside it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.model.config import SIZES, DiTConfig, DyDiTConfig, TimestepVariant

Weights = dict[str, Tensor]

ROUTER = "blocks.0.attn_rate.router.weight"

TOKEN_ROUTER = "blocks.0.token_selection.mlp_head.0.weight"


@dataclass(frozen=True)
class Hints:
    """What is known beside the weights; None is unknown."""

    num_heads: int | None = None
    input_size: int | None = None
    timestep_variant: TimestepVariant = "original"
    norm2_eps: float = 1e-6


@dataclass
class Inferred:
    """A configuration and, as short phrases, what it was read from."""

    config: DiTConfig
    notes: list[str] = field(default_factory=list)


def shape_of(weights: Weights, name: str, dims: int) -> tuple[int, ...]:
    """The shape of a weight that must be there with so many dimensions, none of them empty."""
    if name not in weights:
        raise DyditError(f"missing {name}")
    shape = tuple(weights[name].shape)
    if len(shape) != dims or 0 in shape:
        raise DyditError(f"{name} has shape {list(shape)}; it needs {dims} dimensions, none of them 0")
    return shape


def infer(weights: Weights, hints: Hints) -> Inferred:
    """The configuration of weights under our names. Raises `DyditError` in one line where they are no DiT's, or asks
    for the one number that they do not tell (heads; input size, where there are no positions)."""
    C, channels, P, _ = shape_of(weights, "x_embedder.proj.weight", 4)
    blocks = {int(m.group(1)) for m in (re.match(r"blocks\.(\d{1,4})\.", name) for name in weights) if m}
    depth = max(blocks, default=-1) + 1
    if not depth or len(blocks) != depth:
        gap = next((i for i in range(depth) if i not in blocks), 0)
        raise DyditError(f"missing blocks.{gap}" if depth else "no blocks: these are not a DiT's weights")
    rows, _ = shape_of(weights, "y_embedder.embedding_table.weight", 2)
    hidden, _ = shape_of(weights, "blocks.0.mlp.fc1.weight", 2)
    _, attention = shape_of(weights, "blocks.0.attn.proj.weight", 2)
    out, _ = shape_of(weights, "final_layer.linear.weight", 2)
    if out not in (P * P * channels, 2 * P * P * channels):
        raise DyditError(f"final_layer.linear.weight has {out} rows; {P * P * channels} or twice that fit the patches")
    notes: list[str] = []
    dynamic = any(name.endswith(".router.weight") for name in weights)
    heads, always_on = _heads(weights, depth, C, attention, hints.num_heads, notes) if dynamic else (None, True)
    if heads is None:
        heads = _static_heads(depth, C, attention, hints.num_heads, notes)
    if (attention, hidden) != (C, 4 * C):
        notes.append(f"attention {attention} and MLP {hidden} wide in a model of width {C}")
    values: dict[str, Any] = {
        "input_size": _input_size(weights, P, hints.input_size, notes),
        "patch_size": P,
        "in_channels": channels,
        "hidden_size": C,
        "depth": depth,
        "num_heads": heads,
        "attention_width": None if attention == C else attention,
        "mlp_width": hidden,
        "num_classes": rows - 1,
        "learn_sigma": out == 2 * P * P * channels,
        "timestep_variant": hints.timestep_variant,
        "norm2_eps": hints.norm2_eps,
    }
    if not dynamic:
        return Inferred(DiTConfig(**values), notes)
    router_hidden, _ = shape_of(weights, TOKEN_ROUTER, 2)
    if C // max(1, C // router_hidden) != router_hidden:
        raise DyditError(f"{TOKEN_ROUTER} has {router_hidden} rows, which is no whole fraction of the width {C}")
    return Inferred(DyDiTConfig(**values, token_router_reduction=C // router_hidden, always_on=always_on), notes)


def _input_size(weights: Weights, patch: int, hint: int | None, notes: list[str]) -> int:
    if "pos_embed" not in weights:
        if hint is None:
            raise DyditError("no positions and no configuration beside the weights: say the input size with --input-size N")
        return hint
    _, tokens, _ = shape_of(weights, "pos_embed", 3)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise DyditError(f"pos_embed has {tokens} tokens, which are no square")
    size = side * patch
    if hint is not None and hint != size:
        raise DyditError(f"input size {hint} does not fit: pos_embed has {tokens} tokens, which is size {size}")
    notes.append(f"input size {size} from {tokens} positions")
    return size


def _published(depth: int, width: int, attention: int) -> tuple[str, int] | None:
    """The published size of this depth and width, and its heads: of a pruned one those that are left, whole ones."""
    for size, (size_depth, size_width, heads) in SIZES.items():
        head_dim = size_width // heads
        if (size_depth, size_width) == (depth, width) and attention % head_dim == 0:
            return size, attention // head_dim
    return None


def _static_heads(depth: int, width: int, attention: int, hint: int | None, notes: list[str]) -> int:
    """From what is asked for, else from the published size of this depth and width."""
    if hint is not None:
        return hint
    published = _published(depth, width, attention)
    if published is not None:
        size, heads = published
        notes.append(f"{heads} heads as DiT-{size} has" if attention == width else f"{heads} heads as wide as DiT-{size}'s")
        return heads
    divisors = ", ".join(str(n) for n in range(1, attention + 1) if attention % n == 0)
    raise DyditError(
        f"depth {depth} and width {width} are no published size, and weights do not tell the heads: "
        f"say them with --num-heads N, one of {divisors}"
    )


def _heads(weights: Weights, depth: int, width: int, attention: int, hint: int | None, notes: list[str]) -> tuple[int, bool]:
    """Heads and whether the first one is always on, from the router's rows: H - 1, or H in the older release."""
    rows, _ = shape_of(weights, ROUTER, 2)
    published = _published(depth, width, attention)
    known = hint or (published[1] if published else None)
    candidates = [(heads, heads > rows) for heads in (rows + 1, rows) if attention % heads == 0 and heads > 1]
    fitting = [pair for pair in candidates if known is None or pair[0] == known]
    if len(fitting) == 1:
        heads, always_on = fitting[0]
        release = "" if always_on else " (the older release: no head is always on)"
        notes.append(f"{heads} heads from {rows} router rows{release}")
        return fitting[0]
    if not fitting:
        said = f"{known} heads" if known else f"the width {attention}"
        raise DyditError(f"{ROUTER} has {rows} rows, which does not fit {said}: it takes one less than heads, or as many")
    raise DyditError(
        f"{ROUTER} has {rows} rows: {rows + 1} heads, or {rows} in the older release; say which with --num-heads N"
    )

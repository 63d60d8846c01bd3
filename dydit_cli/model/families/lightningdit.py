"""LightningDiT (arXiv 2501.01423): DiT's block with RMSNorm, SwiGLU and rotary positions, trained by flow matching.

Which of them a model has its configuration says, and a file's weights tell. Released models see latents of 32 channels, one
token a latent pixel.

Legend: B batch, N tokens, C width, h active heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.config import FlowConfig, ModelConfig, check_flag
from dydit_cli.model.families import Family, Hints, Inferred, dit, of_shapes_alone, shape_of, sit
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.model.families.dit_blocks import MAX_PERIOD, Attention
from dydit_cli.model.sites import Weights

SIZES = dit.SIZES | {"1p0B": (24, 1536, 24), "1p6B": (28, 1792, 28)}
TABLES = ("freqs_cos", "freqs_sin")
ROPE = "feat_rope"


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig(FlowConfig, DiTConfig):
    """A static LightningDiT.

    `rope` turns queries and keys by their token's row and column. `rms_norm`, `qk_norm`, `swiglu` and `shift` are as
    `DiTConfig` says; `qk_norm` is an RMSNorm where `rms_norm` is true, else a LayerNorm. With `learn_sigma` the final layer has
    rows for a variance that the forward pass leaves out.
    """

    input_size: int = 16
    patch_size: int = 1
    in_channels: int = 32
    learn_sigma: bool = False
    rms_norm: bool = True
    qk_norm: bool = False
    swiglu: bool = True
    rope: bool = True
    shift: bool = True

    kind: ClassVar[str] = "lightningdit"
    family: ClassVar[str] = "lightningdit"
    title: ClassVar[str] = "LightningDiT"
    measured_latents: ClassVar[bool] = True
    published = SIZES

    def __post_init__(self) -> None:
        for name in ("rms_norm", "qk_norm", "swiglu", "rope", "shift"):
            check_flag(self, name)
        super().__post_init__()
        if self.rope and self.head_dim % 4:
            raise DyditError(f"model configuration: heads are {self.head_dim} wide; rotary positions need a multiple of 4")


@dataclass(frozen=True, kw_only=True)
class DyLightningDiTConfig(DyDiTConfig, LightningDiTConfig):
    """A LightningDiT with routers."""

    kind: ClassVar[str] = "dylightningdit"


def rotary_tables(side: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's angles, N x D each, float32.

    The first half of the width turns by the row, the second by the column: pairs of neighbours by 10000^(-2 i / (D / 2)).
    """
    half = head_dim // 2
    if of_shapes_alone():
        return torch.empty(side**2, head_dim), torch.empty(side**2, head_dim)
    omega = MAX_PERIOD ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)  # D/4
    angles = (torch.arange(side, dtype=torch.float32)[:, None] * omega).repeat_interleave(2, dim=1)  # side D/2
    rows, columns = angles[:, None].expand(side, side, -1), angles[None, :].expand(side, side, -1)
    turned = torch.cat([rows, columns], dim=2).flatten(0, 1)  # N D
    return turned.cos(), turned.sin()


class RotaryPositions(nn.Module):
    """The tables of one grid of tokens, which public checkpoints store."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, side: int, head_dim: int) -> None:
        super().__init__()
        for name, table in zip(TABLES, rotary_tables(side, head_dim), strict=True):
            self.register_buffer(name, table)

    def rotate(self, x: Tensor) -> Tensor:
        """x: B h N D; its pairs of neighbours turned by their token's angles."""
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # each B h N D/2
        turned = torch.stack([-second, first], dim=-1).flatten(-2)  # B h N D
        return torch.addcmul(x * self.freqs_cos, turned, self.freqs_sin)


class LightningDiT(DiT):
    """Predicts a velocity, B C S S, from a noisy input, a timestep in [0, 1] and a class."""

    config: LightningDiTConfig

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__(config)
        if config.rope:
            self.feat_rope = RotaryPositions(config.input_size // config.patch_size, config.head_dim)
            for attention in self.modules():
                if isinstance(attention, Attention):
                    attention.rotate = self.feat_rope.rotate

    def head(self, h: Tensor, c: Tensor) -> Tensor:
        return super().head(h, c)[:, : self.config.in_channels]


class DyLightningDiT(DynamicBackbone, LightningDiT):
    """A Dynamic LightningDiT."""

    config: DyLightningDiTConfig
    make_block = DyDiT.make_block


def infer(weights: Weights, hints: Hints) -> Inferred:
    """As a DiT's; the names tell what blocks are made of, and adaLN's rows whether it shifts.

    Tables of rotary positions may be left out: where all else is as published, they are taken to be meant.
    """
    C, *_ = shape_of(weights, "x_embedder.proj.weight", 4)
    rows, _ = shape_of(weights, "blocks.0.adaLN_modulation.1.weight", 2)
    own = {
        "rms_norm": "blocks.0.norm1.weight" in weights,
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "swiglu": "blocks.0.mlp.w12.weight" in weights,
        "shift": rows != 4 * C,
    }
    stored = f"{ROPE}.{TABLES[0]}" in weights
    own["rope"] = stored or (own["rms_norm"] and own["swiglu"])
    inferred = dit.infer(weights, hints, LightningDiTConfig, DyLightningDiTConfig, **own, **sit.flow_fields(hints))
    if own["rope"] and not stored:
        inferred.notes.append("rotary positions as LightningDiT has, though no tables of them are stored")
    return inferred


def fill(weights: Weights, config: ModelConfig) -> Weights:
    """`weights` with fixed and rotary positions where a file leaves them out, or has tables of another grid."""
    weights = dit.fill(weights, config)
    assert isinstance(config, LightningDiTConfig)
    if not config.rope:
        return weights
    tables = rotary_tables(config.input_size // config.patch_size, config.head_dim)
    missing = {
        f"{ROPE}.{name}": table
        for name, table in zip(TABLES, tables, strict=True)
        if f"{ROPE}.{name}" not in weights or weights[f"{ROPE}.{name}"].shape != table.shape
    }
    return {**weights, **missing}


FAMILY = Family(
    name="lightningdit",
    static_config=LightningDiTConfig,
    dynamic_config=DyLightningDiTConfig,
    static_model=LightningDiT,
    dynamic_model=DyLightningDiT,
    sizes={
        f"LightningDiT-{size}/{patch}": {"depth": depth, "hidden_size": width, "num_heads": heads, "patch_size": patch}
        for size, (depth, width, heads) in SIZES.items()
        for patch in (1, 2)
    },
    published_giga={},
    process="flow",
    # a qk-norm alone is REPA's too, whose files also have projectors
    matches=lambda names: (
        any(name.startswith(f"{ROPE}.") for name in names)
        or not {"blocks.0.mlp.w12.weight", "blocks.0.norm1.weight"}.isdisjoint(names)
        or ("blocks.0.attn.q_norm.weight" in names and not any(name.startswith("projectors.") for name in names))
    ),
    infer=infer,
    fill=fill,
)

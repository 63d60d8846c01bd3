"""Latte (arXiv 2401.03048): a DiT of videos, whose blocks look along a frame and along time in turn, and DyLatte.

Tokens stand frame by frame, B (F T) C, in all that is not attention: adaLN, MLPs, routers and their masks are a DiT's. A
block of even number attends within each frame, one of odd number along the frames of each place.

Legend: B batch, F frames, T tokens of a frame, N = F * T, C width, H heads, D head width, P patch, S input size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.config import check_whole
from dydit_cli.model.families import Family, Hints, Inferred, dit, shape_of
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiTConfig
from dydit_cli.model.families.dit_blocks import Attention, Block, DynamicBlock, sincos_axis
from dydit_cli.model.options import GuidanceChannels
from dydit_cli.model.sites import Site, Weights

FRAMES = 16  # of the published models
FRAME_TABLE = "temp_embed"


@dataclass(frozen=True, kw_only=True)
class LatteConfig(DiTConfig):
    """A static Latte of videos of `num_frames` frames. With `num_classes` 0 there are no labels, and no table of them."""

    num_frames: int = FRAMES

    kind: ClassVar[str] = "latte"
    family: ClassVar[str] = "latte"
    title: ClassVar[str] = "Latte"
    least_classes: ClassVar[int] = 0
    guided_channels: ClassVar[GuidanceChannels] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "num_frames")
        if self.depth % 2:
            raise DyditError(
                f"model configuration: depth {self.depth} is odd; a Latte has a temporal block to each spatial one"
            )

    @property
    def frames(self) -> int:
        return self.num_frames

    def sites(self, block: int) -> tuple[Site, ...]:
        heads, groups = super().sites(block)
        return replace(heads, context=self.num_frames if is_temporal(block) else self.frame_tokens), groups

    def layers(self) -> list[tuple[int, ...]]:
        """A spatial block and the temporal one after it."""
        return [(i, i + 1) for i in range(0, self.depth, 2)]

    def block_title(self, block: int) -> str:
        return f"{block} {'temporal' if is_temporal(block) else 'spatial'}"

    # The embedders and the final layer cost what a DiT's of N tokens do. adaLN is computed once a video; the public code
    # repeats it for every frame or place, which the paper's figures count: 30 of the 1893 G of a Latte-XL/2.

    def num_parameters(self) -> int:
        positions = self.frame_tokens + self.num_frames - self.num_tokens  # of places and of frames, not of each token
        no_table = 0 if self.num_classes else self.hidden_size
        return super().num_parameters() + positions * self.hidden_size - no_table


@dataclass(frozen=True, kw_only=True)
class DyLatteConfig(DyDiTConfig, LatteConfig):
    """A Latte with routers (arXiv 2504.06803)."""

    kind: ClassVar[str] = "dylatte"


def is_temporal(block: int) -> bool:
    """Whether a block attends along time."""
    return block % 2 == 1


class SpatialAttention(Attention):
    """Among the T tokens of each of the `frames`."""

    frames: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._back(super().attend(self._apart(q), self._apart(k), self._apart(v)), len(q))

    def _apart(self, x: Tensor) -> Tensor:
        """B h N D -> BF h T D."""
        B, h, _, D = x.shape
        return x.view(B, h, self.frames, -1, D).transpose(1, 2).reshape(B * self.frames, h, -1, D)

    def _back(self, x: Tensor, batch: int) -> Tensor:
        """BF h T D -> B h N D."""
        _, h, T, D = x.shape
        return x.view(batch, self.frames, h, T, D).transpose(1, 2).reshape(batch, h, -1, D)


class TemporalAttention(SpatialAttention):
    """Among the frames of each of the T places."""

    def _apart(self, x: Tensor) -> Tensor:
        """B h N D -> BT h F D."""
        B, h, _, D = x.shape
        return x.view(B, h, self.frames, -1, D).permute(0, 3, 1, 2, 4).reshape(-1, h, self.frames, D)

    def _back(self, x: Tensor, batch: int) -> Tensor:
        """BT h F D -> B h N D."""
        _, h, F, D = x.shape
        return x.view(batch, -1, h, F, D).permute(0, 2, 3, 1, 4).reshape(batch, h, -1, D)


class Latte(DiT):
    """Predicts noise, and the variance's interpolation where `learn_sigma`, from a noisy video, a timestep and a class.

    Videos are B F C S S, outputs B F Cout S S.
    """

    config: LatteConfig

    def __init__(self, config: LatteConfig) -> None:
        super().__init__(config)
        if not config.num_classes:
            del self.y_embedder
        frames = sincos_axis(config.hidden_size, config.num_frames).float()
        self.temp_embed = nn.Parameter(frames.unsqueeze(0), requires_grad=False)  # 1 F C, fixed as the positions are

    def make_block(self, i: int) -> nn.Module:
        return with_frames(Block(self.config), i, self.config)

    def embed(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.config.num_frames:
            raise DyditError(f"videos of {x.shape[1]} frames; the model takes {self.config.num_frames}")
        frames: Tensor = super().embed(x.flatten(0, 1))  # BF T C
        return frames.view(len(x), -1, self.config.hidden_size)  # B N C

    def enter_block(self, i: int, h: Tensor) -> Tensor:
        """Adds the frames' positions before the first temporal block."""
        if i != 1:
            return h
        by_frame = h.view(len(h), self.config.num_frames, -1, self.config.hidden_size)  # B F T C
        return (by_frame + self.temp_embed.unsqueeze(2)).view(h.shape)

    def condition(self, e: Tensor, y: Tensor) -> Tensor:
        if self.config.num_classes:
            return super().condition(e, y)
        return e + torch.zeros_like(y, dtype=e.dtype).unsqueeze(-1)  # of the shape that labels give it

    def head(self, h: Tensor, c: Tensor) -> Tensor:
        rows: Tensor = self.final_layer(h, c)  # B N P*P*Cout
        images = self.unpatchify(rows.view(len(h) * self.config.num_frames, -1, rows.shape[-1]))  # BF Cout S S
        return images.view(len(h), self.config.num_frames, *images.shape[1:])


class DyLatte(DynamicBackbone, Latte):
    """A Dynamic Latte."""

    config: DyLatteConfig

    def make_block(self, i: int) -> nn.Module:
        return with_frames(DynamicBlock(self.config), i, self.config)


def with_frames(block: Block, i: int, config: LatteConfig) -> Block:
    """`block`, of number i, with the attention of its kind."""
    attention = TemporalAttention if is_temporal(i) else SpatialAttention
    block.attn = attention(config)
    block.attn.frames = config.num_frames
    return block


def infer(weights: Weights, hints: Hints) -> Inferred:
    """As a DiT's, and the frames."""
    _, frames, _ = shape_of(weights, FRAME_TABLE, 3)
    classes = {} if LatteConfig.label_table in weights else {"num_classes": 0}
    inferred = dit.infer(weights, hints, LatteConfig, DyLatteConfig, num_frames=frames, **classes)
    inferred.notes.append(f"{frames} frames" + (", and no classes: there is no label table" if classes else ""))
    return inferred


def to_public(weights: Weights) -> dict[str, Weights]:
    """As the public loader takes them: it wants a dict with the weights as `ema`."""
    return {"ema": weights}


FAMILY = Family(
    name="latte",
    static_config=LatteConfig,
    dynamic_config=DyLatteConfig,
    static_model=Latte,
    dynamic_model=DyLatte,
    sizes={name.replace("DiT", "Latte"): size for name, size in dit.FAMILY.sizes.items()},
    # of 16 frames of 32 x 32 latents (arXiv 2401.03048)
    published_giga={"Latte-XL/2": 1893},
    process="gaussian",
    matches=lambda names: FRAME_TABLE in names,
    infer=infer,
    fill=dit.fill,
    to_public=to_public,
)

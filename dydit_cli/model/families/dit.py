"""DiT (arXiv 2212.09748) and DyDiT (arXiv 2410.03456): everything that is this family's own, and what others build on.

In order: the configuration and its sites, the models, the names in other people's files, the record. What blocks are made of
is in `dit_blocks`.

Legend: B batch, N tokens, C width, H heads (and channel groups), D head width, A = H * D attention width (C, unless pruned),
F MLP width, P patch, S input size, L depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.config import NORM_MACS_PER_ELEMENT, ModelConfig, RoutedConfig, check_choice, check_whole
from dydit_cli.model.families import Family, Hints, Inferred, depth_of, shape_of
from dydit_cli.model.families.dit_blocks import (
    FREQUENCIES,
    Block,
    DynamicBlock,
    FinalLayer,
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    sincos_positions,
)
from dydit_cli.model.options import TimestepVariant
from dydit_cli.model.sites import Site, Weights

# name: (depth, hidden size, heads), table 1 of the DiT paper
SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
PATCH_SIZES = (2, 4, 8)
WIDTHS = ("attention_width", "mlp_width")


@dataclass(frozen=True, kw_only=True)
class DiTConfig(ModelConfig):
    """A static Diffusion Transformer (arXiv 2212.09748).

    `input_size` is the input's height and width: pixels of the latent, or of the image for pixel models.
    `timestep_variant` says which sinusoid the weights were trained with: the authors' divides by 128, diffusers' by 127.
    `norm2_eps` is the epsilon of the norm before the MLP: 1e-6 in the authors' code, 1e-5 in diffusers.
    `attention_width` (heads times head width) and `mlp_width` are what pruning left of every block; None is the whole:
    `hidden_size`, and `mlp_ratio` times that.
    """

    timestep_variant: TimestepVariant = "original"
    norm2_eps: float = 1e-6
    attention_width: int | None = None
    mlp_width: int | None = None

    kind: ClassVar[str] = "dit"
    family: ClassVar[str] = "dit"
    title: ClassVar[str] = "DiT"
    published: ClassVar[Mapping[str, tuple[int, int, int]]] = SIZES

    # what else a block can be made of: a family that has it says so, by a field of the same name
    rms_norm = False  # RMSNorms with a weight where DiT has LayerNorms without
    qk_norm = False  # queries and keys are normed, head by head
    swiglu = False  # a gated MLP, two thirds as wide
    shift = True  # adaLN shifts before attention and MLP, as the final layer always does

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, *(name for name in WIDTHS if getattr(self, name) is not None))
        if self.attention_width is not None and self.attention_width % self.num_heads:
            raise DyditError(
                f"model configuration: attention_width {self.attention_width} must be a multiple of num_heads {self.num_heads}"
            )
        if (self.attention_width is None and self.hidden_size % self.num_heads) or self.hidden_size % 4:
            raise DyditError(
                f"model configuration: hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads} and of 4"
            )
        if not isinstance(self.norm2_eps, float) or not 0 < self.norm2_eps < 1:
            raise DyditError(f"model configuration: norm2_eps is {self.norm2_eps!r}; it must lie between 0 and 1")
        check_choice(self, "timestep_variant", TimestepVariant)
        # one way to say a width: configurations are compared, and what is whole goes without saying
        for name, whole in zip(WIDTHS, (self.hidden_size, self.whole_mlp), strict=True):
            if getattr(self, name) == whole:
                object.__setattr__(self, name, None)

    @property
    def attention_hidden(self) -> int:
        """Heads times head width: `hidden_size`, or what pruning left of it."""
        return self.hidden_size if self.attention_width is None else self.attention_width

    @property
    def head_dim(self) -> int:
        return self.attention_hidden // self.num_heads

    @property
    def whole_mlp(self) -> int:
        """Channels of an MLP of which nothing is pruned."""
        hidden = int(self.hidden_size * self.mlp_ratio)
        return int(2 / 3 * hidden) if self.swiglu else hidden

    @property
    def mlp_hidden(self) -> int:
        return self.whole_mlp if self.mlp_width is None else self.mlp_width

    @property
    def modulations(self) -> int:
        """How many vectors adaLN gives a block: shift, scale and gate of both halves."""
        return 6 if self.shift else 4

    @property
    def size_name(self) -> str:
        """`DiT-XL/2` where the sizes are a published model's, else `DiT-<depth>x<hidden>/<patch>`, and what pruning left."""
        if any(getattr(self, name) is not None for name in WIDTHS):
            left = f"{self.num_heads} heads of {self.head_dim}, MLP {self.mlp_hidden}"
            return f"{self.title}-{self.depth}x{self.hidden_size}/{self.patch_size}, {left}"
        for size, sizes in self.published.items():
            if (self.depth, self.hidden_size, self.num_heads) == sizes:
                return f"{self.title}-{size}/{self.patch_size}"
        return f"{self.title}-{self.depth}x{self.hidden_size}/{self.patch_size}"

    def sites(self, block: int) -> tuple[Site, ...]:
        C, H, D = self.hidden_size, self.num_heads, self.head_dim
        half = self.modulations // 2  # its gate is the last
        norms = 2 * D * (NORM_MACS_PER_ELEMENT + (not self.rms_norm)) if self.qk_norm else 0  # a LayerNorm with weights: 5
        mlp = Site("groups", ("mlp.fc1",), "mlp.fc2", C, self.mlp_hidden, H, gate=2 * half - 1)
        return (
            Site(
                "heads", ("attn.qkv",), "attn.proj", C, H, H, D, repeats=3, context=self.num_tokens, norms=norms, gate=half - 1
            ),
            replace(mlp, inputs=("mlp.w12",), output="mlp.w3", repeats=2) if self.swiglu else mlp,
        )

    def narrowed(self, heads: int, channels: int) -> DiTConfig:
        return replace(self, num_heads=heads, attention_width=heads * self.head_dim, mlp_width=channels)

    def timestep_macs(self) -> int:
        return (FREQUENCIES + self.hidden_size) * self.hidden_size

    def embed_and_head_macs(self) -> int:
        N, C, P = self.num_tokens, self.hidden_size, self.patch_size
        patches = N * C * self.in_channels * P * P
        final = 2 * C * C + NORM_MACS_PER_ELEMENT * N * C + N * C * P * P * self.out_channels
        return patches + self.timestep_macs() + final

    def modulation_macs(self) -> int:
        return self.modulations * self.hidden_size**2

    def gate_macs(self) -> int:
        return self.hidden_size**2

    def norm_macs(self) -> int:
        return NORM_MACS_PER_ELEMENT * self.hidden_size

    def num_parameters(self) -> int:
        """Of the static model as the papers count, the fixed positions included, in closed form."""
        C, A, MLP_WIDTH, N, P = self.hidden_size, self.attention_hidden, self.mlp_hidden, self.num_tokens, self.patch_size
        rows = 3 * A + self.modulations * C + self.site("groups").repeats * MLP_WIDTH
        block = rows * (C + 1) + (A + 1) * C + (MLP_WIDTH + 1) * C
        block += 2 * C * self.rms_norm + 2 * self.head_dim * (2 - self.rms_norm) * self.qk_norm
        patches, labels = (self.in_channels * P * P + 1) * C, (self.num_classes + 1) * C
        timesteps, final = (FREQUENCIES + 1 + C + 1) * C, (C + 1) * (2 * C + P * P * self.out_channels)
        return self.depth * block + patches + labels + timesteps + final + C * self.rms_norm + N * C

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        for name in WIDTHS:  # what is whole goes without saying
            if values[name] is None:
                del values[name]
        return values


@dataclass(frozen=True, kw_only=True)
class DyDiTConfig(RoutedConfig, DiTConfig):
    """A DiT with routers for heads and MLP channel groups (TDW) and for tokens (SDT), arXiv 2410.03456 section 3.

    The MLP's hidden width is cut into `num_heads` contiguous channel groups; where it does not divide, the first have one more.
    """

    kind: ClassVar[str] = "dydit"
    routers: ClassVar[tuple[str, ...]] = ("attn_rate", "mlp_rate", "token_selection")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_hidden < self.num_heads:
            raise DyditError(
                f"model configuration: the MLP's {self.mlp_hidden} channels cannot be cut into {self.num_heads} groups"
            )


class DiT(Backbone):
    """Predicts noise, and the variance's interpolation where `learn_sigma`, from a noisy input, a timestep and a class.

    Weights start as in the DiT paper: Xavier-uniform, with adaLN and the final layer at zero.
    """

    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        C = config.hidden_size
        self.x_embedder = PatchEmbed(config.in_channels, C, config.patch_size)
        self.t_embedder = TimestepEmbedder(C, config.timestep_variant)
        self.y_embedder = LabelEmbedder(config.num_classes, C)
        # a fixed table, yet a parameter: public checkpoints store it and public parameter counts include it
        positions = sincos_positions(C, config.input_size // config.patch_size)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(self.make_block(i) for i in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.reset_parameters()

    def make_block(self, i: int) -> nn.Module:
        return Block(self.config)

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
        modulations = [module for name, module in self.named_modules() if name.endswith("adaLN_modulation.1")]
        for layer in (*modulations, self.final_layer.linear):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor) -> Tensor:
        return self.x_embedder(x) + self.pos_embed

    def embed_timestep(self, t: Tensor) -> Tensor:
        e: Tensor = self.t_embedder(t)
        return e

    def condition(self, e: Tensor, y: Tensor) -> Tensor:
        c: Tensor = e + self.y_embedder(y)
        return c

    def head(self, h: Tensor, c: Tensor) -> Tensor:
        return self.unpatchify(self.final_layer(h, c))

    def unpatchify(self, x: Tensor) -> Tensor:
        """B N P*P*Cout -> B Cout S S."""
        P, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        x = x.view(x.shape[0], side, side, P, P, self.config.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], self.config.out_channels, side * P, side * P)


class DyDiT(DynamicBackbone, DiT):
    """A Dynamic Diffusion Transformer (arXiv 2410.03456)."""

    config: DyDiTConfig

    def make_block(self, i: int) -> nn.Module:
        return DynamicBlock(self.config)


# a weight's name in the public files, with or without routers
NAMES = re.compile(
    r"pos_embed|x_embedder\.proj\.\w+|t_embedder\.mlp\.[02]\.\w+|y_embedder\.embedding_table\.weight"
    r"|final_layer\.(linear|adaLN_modulation\.1)\.\w+|blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12]|adaLN_modulation\.1"
    r"|(attn|mlp)_rate\.router|token_selection\.mlp_head\.[02])\.\w+"
)
ROUTER = "blocks.0.attn_rate.router.weight"
TOKEN_ROUTER = "blocks.0.token_selection.mlp_head.0.weight"
HEAD_WIDE = ("blocks.0.attn.q_norm.weight", "feat_rope.freqs_cos")  # as wide as a head, in families that have them


def matches(names: Collection[str]) -> bool:
    """Whether there is no name but a DiT's."""
    return "x_embedder.proj.weight" in names and all(map(NAMES.fullmatch, names))


def infer(
    weights: Weights,
    hints: Hints,
    static: type[DiTConfig] = DiTConfig,
    routed: type[DyDiTConfig] = DyDiTConfig,
    **own: Any,
) -> Inferred:
    """The configuration of weights under our names. Raises `DyditError` in one line where they are no DiT's, or asks
    for the one number that they do not tell (heads; input size, where there are no positions).

    A family that builds on DiT gives its configurations, and as `own` the fields that it read off the weights itself.
    """
    C, channels, P, _ = shape_of(weights, "x_embedder.proj.weight", 4)
    depth = depth_of(weights, r"blocks\.(\d{1,4})\.")
    if "num_classes" not in own:
        own["num_classes"] = shape_of(weights, static.label_table, 2)[0] - 1
    if own.get("swiglu"):
        _, hidden = shape_of(weights, "blocks.0.mlp.w3.weight", 2)
    else:
        hidden, _ = shape_of(weights, "blocks.0.mlp.fc1.weight", 2)
    _, attention = shape_of(weights, "blocks.0.attn.proj.weight", 2)
    out, _ = shape_of(weights, "final_layer.linear.weight", 2)
    if out not in (P * P * channels, 2 * P * P * channels):
        raise DyditError(f"final_layer.linear.weight has {out} rows; {P * P * channels} or twice that fit the patches")
    notes: list[str] = []
    known = _told_heads(weights, attention, hints.num_heads, notes)
    published = _published(static, depth, C, attention)
    dynamic = any(name.endswith(".router.weight") for name in weights)
    heads, always_on = _heads(weights, attention, known or (published and published[1]), notes) if dynamic else (known, True)
    if heads is None:
        heads = _static_heads(depth, C, attention, published, notes)
    size: list[str] = []
    values: dict[str, Any] = {
        **own,
        "input_size": _input_size(weights, P, hints.input_size, size),
        "patch_size": P,
        "in_channels": channels,
        "hidden_size": C,
        "depth": depth,
        "num_heads": heads,
        "attention_width": None if attention == C else attention,
        "mlp_width": hidden,
        "learn_sigma": out == 2 * P * P * channels,
        "timestep_variant": hints.timestep_variant or "original",
        "norm2_eps": 1e-6 if hints.norm2_eps is None else hints.norm2_eps,
    }
    config = static(**values)
    if (config.attention_width, config.mlp_width) != (None, None):
        notes.append(f"attention {attention} and MLP {hidden} wide in a model of width {C}")
    if not dynamic:
        return Inferred(config, notes + size)
    router_hidden, _ = shape_of(weights, TOKEN_ROUTER, 2)
    if C // max(1, C // router_hidden) != router_hidden:
        raise DyditError(f"{TOKEN_ROUTER} has {router_hidden} rows, which is no whole fraction of the width {C}")
    return Inferred(routed(**values, token_router_reduction=C // router_hidden, always_on=always_on), notes + size)


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


def _published(of: type[DiTConfig], depth: int, width: int, attention: int) -> tuple[str, int] | None:
    """The published size of this depth and width, and its heads: of a pruned one those that are left, whole ones."""
    for size, (size_depth, size_width, heads) in of.published.items():
        head_dim = size_width // heads
        if (size_depth, size_width) == (depth, width) and attention % head_dim == 0:
            return f"{of.title}-{size}", attention // head_dim
    return None


def _told_heads(weights: Weights, attention: int, hint: int | None, notes: list[str]) -> int | None:
    """From a weight that is as wide as a head, else what is asked for."""
    name = next((name for name in HEAD_WIDE if name in weights), None)
    if name is None:
        return hint
    width = weights[name].shape[-1] if weights[name].dim() else 0
    if not width or attention % width or hint not in (None, attention // width):
        heads = "heads" if hint is None else f"{hint} heads"
        raise DyditError(f"{name} has shape {list(weights[name].shape)}; {heads} that are {attention} wide together do not fit")
    notes.append(f"{attention // width} heads from {name}")
    return attention // width


def _static_heads(depth: int, width: int, attention: int, published: tuple[str, int] | None, notes: list[str]) -> int:
    """From the published size of this depth and width."""
    if published is not None:
        size, heads = published
        notes.append(f"{heads} heads as {size} has" if attention == width else f"{heads} heads as wide as {size}'s")
        return heads
    divisors = ", ".join(str(n) for n in range(1, attention + 1) if attention % n == 0)
    raise DyditError(
        f"depth {depth} and width {width} are no published size, and weights do not tell the heads: "
        f"say them with --num-heads N, one of {divisors}"
    )


def _heads(weights: Weights, attention: int, known: int | None, notes: list[str]) -> tuple[int, bool]:
    """Heads and whether the first one is always on, from the router's rows: H - 1, or H in the older release."""
    rows, _ = shape_of(weights, ROUTER, 2)
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


# ours: diffusers'; each stands for a weight and a bias, and {i} for a block's number
DIFFUSERS_FRAME = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}

DIFFUSERS_BLOCK = {
    "blocks.{i}.adaLN_modulation.1": "transformer_blocks.{i}.norm1.linear",
    "blocks.{i}.attn.proj": "transformer_blocks.{i}.attn1.to_out.0",
    "blocks.{i}.mlp.fc1": "transformer_blocks.{i}.ff.net.0.proj",
    "blocks.{i}.mlp.fc2": "transformer_blocks.{i}.ff.net.2",
}

# the same in every block over there, once here
DIFFUSERS_EMBEDDERS = {
    "t_embedder.mlp.0.weight": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight",
}

QKV, DIFFUSERS_QKV = "blocks.{i}.attn.qkv", "transformer_blocks.{i}.attn1.to_{part}"

ENDS = ("weight", "bias")


def is_diffusers(names: set[str]) -> bool:
    """Whether a state dict's names are diffusers'."""
    return any(name.startswith("transformer_blocks.") for name in names)


def diffusers_depth(names: set[str]) -> int:
    """The number of blocks that the names speak of."""
    found = [int(m.group(1)) for m in (re.match(r"transformer_blocks\.(\d{1,4})\.", name) for name in names) if m]
    return max(found, default=-1) + 1


def diffusers_renames(depth: int) -> dict[str, str]:
    """Ours to diffusers' for everything that is a rename alone."""
    table = {f"{our}.{end}": f"{their}.{end}" for our, their in DIFFUSERS_FRAME.items() for end in ENDS}
    for i in range(depth):
        table |= {
            f"{our}.{end}".format(i=i): f"{their}.{end}".format(i=i) for our, their in DIFFUSERS_BLOCK.items() for end in ENDS
        }
    return table


def from_diffusers(theirs: Weights) -> Weights:
    """A DiTTransformer2DModel's weights under our names, without positions.

    Raises `DyditError` for a missing or unknown name, and where the embedders differ from block to block.
    """
    rest = dict(theirs)
    depth = diffusers_depth(set(rest))

    def take(name: str) -> Tensor:
        if name not in rest:
            raise DyditError(f"missing {name}")
        return rest.pop(name)

    ours = {our: take(their) for our, their in diffusers_renames(depth).items()}
    for i in range(depth):
        for end in ENDS:
            parts = [take(f"{DIFFUSERS_QKV}.{end}".format(i=i, part=part)) for part in "qkv"]
            if len({(part.shape, part.dtype) for part in parts}) > 1:
                raise DyditError(f"transformer_blocks.{i}.attn1: to_q, to_k and to_v differ in shape or dtype")
            ours[f"{QKV}.{end}".format(i=i)] = _side_by_side(parts)
    for our, their in DIFFUSERS_EMBEDDERS.items():
        first = ours[our] = take(their.format(i=0))
        for i in range(1, depth):
            other = take(their.format(i=i))
            if other.shape != first.shape or not (first.is_meta or torch.equal(other, first)):
                raise DyditError(f"{their.format(i=i)} differs from block 0's; a DiT has one embedder for all blocks")
    rest.pop("pos_embed.pos_embed", None)  # a persistent buffer in some diffusers versions; recomputed
    if rest:
        raise DyditError(f"unknown {min(rest)}" + (f" and {len(rest) - 1} more" if len(rest) > 1 else ""))
    return ours


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """One after the other along the first dimension; of the meta device without torch.cat, which imports torch's compiler."""
    first = parts[0]
    if not first.is_meta:
        return torch.cat(parts)
    rows = [len(parts) * n for n in first.shape[:1]]
    return torch.empty(*rows, *first.shape[1:], dtype=first.dtype, device="meta")


def to_diffusers(ours: Weights, depth: int) -> Weights:
    """The inverse of `from_diffusers`, of a static model's weights."""
    theirs = {their: ours[our] for our, their in diffusers_renames(depth).items()}
    for i in range(depth):
        for end in ENDS:
            parts = ours[f"{QKV}.{end}".format(i=i)].chunk(3)
            theirs |= {f"{DIFFUSERS_QKV}.{end}".format(i=i, part=p): w.clone() for p, w in zip("qkv", parts, strict=True)}
        theirs |= {their.format(i=i): ours[our].clone() for our, their in DIFFUSERS_EMBEDDERS.items()}
    return theirs


def fill(weights: Weights, config: ModelConfig) -> Weights:
    """`weights` with the fixed positions where a file leaves them out."""
    if "pos_embed" in weights:
        return weights
    return {**weights, "pos_embed": sincos_positions(config.hidden_size, config.input_size // config.patch_size)}


FAMILY = Family(
    name="dit",
    static_config=DiTConfig,
    dynamic_config=DyDiTConfig,
    static_model=DiT,
    dynamic_model=DyDiT,
    sizes={
        f"DiT-{size}/{patch}": {"depth": depth, "hidden_size": width, "num_heads": heads, "patch_size": patch}
        for size, (depth, width, heads) in SIZES.items()
        for patch in PATCH_SIZES
    },
    # GFLOPs at 32x32 latents (Peebles and Xie 2023, appendix A, table 4)
    published_giga={
        "DiT-S/2": 6.06, "DiT-S/4": 1.41, "DiT-S/8": 0.36,
        "DiT-B/2": 23.01, "DiT-B/4": 5.56, "DiT-B/8": 1.42,
        "DiT-L/2": 80.71, "DiT-L/4": 19.70, "DiT-L/8": 5.01,
        "DiT-XL/2": 118.64, "DiT-XL/4": 29.05, "DiT-XL/8": 7.39,
    },
    process="gaussian",
    matches=matches,
    infer=infer,
    fill=fill,
)  # fmt: skip

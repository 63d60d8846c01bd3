"""Names in other people's checkpoints. Ours are the public DiT's and DyDiT's own, so those need no table.

diffusers renames, splits qkv into q, k and v, repeats the two embedders in every block and stores no positions.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from dydit_cli.errors import DyditError

Weights = dict[str, Tensor]

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


def renames(depth: int) -> dict[str, str]:
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

    ours = {our: take(their) for our, their in renames(depth).items()}
    for i in range(depth):
        for end in ENDS:
            parts = [take(f"{DIFFUSERS_QKV}.{end}".format(i=i, part=part)) for part in "qkv"]
            if len({(part.shape, part.dtype) for part in parts}) > 1:
                raise DyditError(f"transformer_blocks.{i}.attn1: to_q, to_k and to_v differ in shape or dtype")
            ours[f"{QKV}.{end}".format(i=i)] = torch.cat(parts)
    for our, their in DIFFUSERS_EMBEDDERS.items():
        first = ours[our] = take(their.format(i=0))
        for i in range(1, depth):
            if not torch.equal(take(their.format(i=i)), first):
                raise DyditError(f"{their.format(i=i)} differs from block 0's; a DiT has one embedder for all blocks")
    rest.pop("pos_embed.pos_embed", None)  # a persistent buffer in some diffusers versions; recomputed
    if rest:
        raise DyditError(f"unknown {min(rest)}" + (f" and {len(rest) - 1} more" if len(rest) > 1 else ""))
    return ours


def to_diffusers(ours: Weights, depth: int) -> Weights:
    """The inverse of `from_diffusers`, of a static model's weights."""
    theirs = {their: ours[our] for our, their in renames(depth).items()}
    for i in range(depth):
        for end in ENDS:
            parts = ours[f"{QKV}.{end}".format(i=i)].chunk(3)
            theirs |= {f"{DIFFUSERS_QKV}.{end}".format(i=i, part=p): w.clone() for p, w in zip("qkv", parts, strict=True)}
        theirs |= {their.format(i=i): ours[our].clone() for our, their in DIFFUSERS_EMBEDDERS.items()}
    return theirs

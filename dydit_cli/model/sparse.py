"""A DyDiT executed with the switched-off work left out: the same weights and the same function as under masks.

Active tokens of the whole batch are gathered into one matrix, go through one MLP and are added back; heads and channel
groups that are off are never multiplied. Sums go into their place (`out=`), since this path is for evaluation alone.

Legend: B batch, N tokens, C width, h active heads, D head width, A active tokens of the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dydit_cli.model.dydit import DyDiT, DynamicBlock
from dydit_cli.model.planning import BlockWidth, Modulations, StepModulation, plan_width
from dydit_cli.model.routing import BlockRouting, Routing
from dydit_cli.model.weight_cache import AttentionPart, MlpPart, SliceStats, WeightAccess, WeightSlices


@dataclass(frozen=True)
class Pointwise:
    """`modulated(x, shift, gain, eps)` is adaLN's LayerNorm(x) * gain + shift, gain being 1 + scale. `gelu(x)` may overwrite
    x."""

    modulated: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    gelu: Callable[[Tensor], Tensor]


def modulated(x: Tensor, shift: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x: ... C; shift and gain broadcast to it."""
    h = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(shift, h, gain, out=h)


def gelu_(x: Tensor) -> Tensor:
    """The tanh approximation, in place."""
    out: Tensor = torch.ops.aten.gelu_.default(x, approximate="tanh")
    return out


def _modulated_to_fuse(x: Tensor, shift: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps) * gain + shift


def _gelu_to_fuse(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


EAGER = Pointwise(modulated, gelu_)


@cache
def compiled(backend: str = "inductor") -> Pointwise:
    """Both functions fused by `backend`; compiled when they first run."""
    modulated, gelu = (torch.compile(f, dynamic=True, backend=backend) for f in (_modulated_to_fuse, _gelu_to_fuse))
    return Pointwise(modulated, gelu)


FREE_SHARE = 4  # copies of weights may take a quarter of the memory that is free


class SparseDyDiT(nn.Module):
    """Runs `model` (evaluation only) without what its routers switch off; call it as you would call the model.

    A batch of mixed timesteps is run in groups of equal t. `access` says how the weights of active heads and groups are
    taken: `views` of the model's own (the default on cpu) or contiguous `copies` (on a GPU), which are kept up to
    `plan_memory` bytes (by default a quarter of what is free). Weights that change under it take effect after `forget`.
    `compile` fuses the elementwise work with torch.compile.
    """

    def __init__(
        self,
        model: DyDiT,
        *,
        access: WeightAccess | None = None,
        plan_memory: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.config = model.config
        place = model.pos_embed.device
        access = access or ("views" if place.type == "cpu" else "copies")
        self._slices = WeightSlices(access, free_memory(place) // FREE_SHARE if plan_memory is None else plan_memory)
        self._plan: dict[int, list[BlockWidth]] = {}
        self.modulations = Modulations(self.model)
        self.pointwise = compiled() if compile else EAGER

    @property
    def stats(self) -> SliceStats:
        """How the weights of active sets were come by."""
        return self._slices.stats

    def forget(self) -> None:
        """Drops copies of weights and what was computed ahead, as at the start of a sampling run; the plan stays."""
        self._slices.forget()
        self.modulations.forget()

    def plan(self, timesteps: Sequence[int]) -> None:
        """Decides heads and groups for all these timesteps at once; without it each is decided when it first comes.

        Give them in the order in which they will be run: adaLN of small batches is computed some steps ahead.
        """
        missing = [t for t in dict.fromkeys(timesteps) if t not in self._plan]
        if missing:
            self._plan |= plan_width(self.model, missing)

    @torch.no_grad()
    def prepare(self, timestep: int, y: Tensor) -> StepModulation:
        """What a call at `timestep` for labels y (B,) shares with others; done by the call itself where not before."""
        self.plan([timestep])
        order = list(self._plan)
        return self.modulations.at(timestep, y, order[order.index(timestep) + 1 :])

    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        """As `DyDiT.forward` in evaluation mode."""
        timesteps = t.unique().tolist()
        self.plan(timesteps)
        if len(timesteps) == 1:
            out, routing = self._run(x, y, timesteps[0])
            return (out, routing) if return_routing else out
        parts = [(t == timestep).nonzero().squeeze(1) for timestep in timesteps]
        results = [self._run(x[part], y[part], timestep) for part, timestep in zip(parts, timesteps, strict=True)]
        back = torch.cat(parts).argsort()
        out = torch.cat([result for result, _ in results])[back]
        if not return_routing:
            return out
        heads, groups, tokens = (
            torch.cat([getattr(routing, name) for _, routing in results], dim=1)[:, back]
            for name in ("heads", "groups", "tokens")
        )
        return out, Routing(heads, groups, tokens)

    def _run(self, x: Tensor, y: Tensor, timestep: int) -> tuple[Tensor, Routing]:
        model, B = self.model, len(x)
        modulation = self.prepare(timestep, y)
        h = model.embed(x)  # B N C
        routed = []
        for i, (block, width) in enumerate(zip(model.blocks, self._plan[timestep], strict=True)):
            assert isinstance(block, DynamicBlock)
            attention = self._slices.attention(i, block, width.heads)
            mlp = self._slices.mlp(i, block, width.groups)
            tokens = run_block(block, attention, mlp, h, modulation.blocks[i], self.pointwise)
            routed.append(BlockRouting(width.head_mask.expand(B, -1), width.group_mask.expand(B, -1), tokens))
        return model.unpatchify(model.final_layer(h, modulation.c)), Routing.stack(routed)


def free_memory(place: torch.device) -> int:
    """Bytes that are free where `place` is; 0 where that cannot be told."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def run_block(
    block: DynamicBlock,
    attention: Sequence[AttentionPart],
    mlp: Sequence[MlpPart],
    x: Tensor,
    modulation: Tensor,
    pointwise: Pointwise = EAGER,
) -> Tensor:
    """Adds the block's work to x (B N C) in place; modulation: B 6C, as in `StepModulation`. Returns the token mask, B N."""
    B, N, C = x.shape
    modulated = pointwise.modulated
    shift_a, gain_a, gate_a, shift_m, gain_m, gate_m = modulation.chunk(6, dim=1)  # each B C
    h = modulated(x, shift_a.unsqueeze(1), gain_a.unsqueeze(1), block.norm1.eps)  # B N C
    x.addcmul_(gate_a.unsqueeze(1), sparse_attention(attention, h, block.attn.proj.bias))

    mask, active = select_tokens(block, x)  # B N; A
    if len(active) == 0:
        return mask
    if len(active) == B * N:
        h = modulated(x, shift_m.unsqueeze(1), gain_m.unsqueeze(1), block.norm2.eps).view(-1, C)  # BN C
        x.addcmul_(gate_m.unsqueeze(1), sparse_mlp(mlp, h, block.mlp.fc2.bias, pointwise.gelu).view(B, N, C))
        return mask
    sample = active // N  # A
    h, shift, gain, gate = gather(x.view(-1, C), active, sample, (shift_m, gain_m, gate_m))  # each A C
    h = sparse_mlp(mlp, modulated(h, shift, gain, block.norm2.eps), block.mlp.fc2.bias, pointwise.gelu)  # A C
    scatter_add(x.view(-1, C), active, h.mul_(gate))
    return mask


def select_tokens(block: DynamicBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """The token mask of x (B N C), B N, and the places of its ones in the flattened batch, (A,)."""
    mask = block.token_selection(x, 1.0, 0.0)  # B N
    return mask, mask.flatten().nonzero().squeeze(1)


def gather(flat: Tensor, active: Tensor, sample: Tensor, per_sample: Sequence[Tensor]) -> list[Tensor]:
    """Rows `active` of flat (BN C), and of each B C tensor the row of every active token's sample; all A C."""
    return [flat.index_select(0, active), *(values.index_select(0, sample) for values in per_sample)]


def scatter_add(flat: Tensor, active: Tensor, h: Tensor) -> None:
    """Adds h (A C) to rows `active` of flat (BN C) in place."""
    flat.index_add_(0, active, h)


def sparse_attention(parts: Sequence[AttentionPart], x: Tensor, bias: Tensor) -> Tensor:
    """x: B N C -> B N C, the active heads alone; a block without any leaves proj's bias."""
    B, N, C = x.shape
    flat, total = x.view(-1, C), bias.expand(B * N, C)  # each BN C
    for i, part in enumerate(parts):
        qkv = torch.addmm(part.bias, flat, part.qkv.t()).view(B, N, part.heads, 3, -1)  # B N h 3 D
        q, k, v = qkv.transpose(1, 2).unbind(3)  # each B h N D
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B * N, -1)  # BN hD
        total = torch.addmm(total, out, part.proj.t(), out=total if i else None)
    return total.view(B, N, C)


def sparse_mlp(parts: Sequence[MlpPart], x: Tensor, bias: Tensor, gelu: Callable[[Tensor], Tensor] = EAGER.gelu) -> Tensor:
    """x: A C -> A C, the active channel groups alone; a block without any leaves fc2's bias."""
    total = bias.expand_as(x)
    for i, part in enumerate(parts):
        hidden = gelu(torch.addmm(part.bias, x, part.fc1.t()))  # A gW
        total = torch.addmm(total, hidden, part.fc2.t(), out=total if i else None)
    return total if parts else total.clone()

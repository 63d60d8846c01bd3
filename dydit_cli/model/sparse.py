"""A DyDiT executed with the switched-off work left out: the same weights and the same function as under masks.

Heads and channel groups depend on the timestep alone, so the weights of the active ones are sliced once per block and
set and kept. Active tokens of the whole batch are gathered into one matrix, go through one MLP and are added back.

Legend: B batch, N tokens, C width, H heads, D head width, A active tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT, DynamicBlock
from dydit_cli.model.layers import modulate
from dydit_cli.model.routing import BlockRouting, Routing

Execution = Literal["sparse", "masked", "complete"]


@dataclass(frozen=True)
class AttentionSlice:
    """The active heads' rows of qkv and columns of proj; `heads` is how many."""

    heads: int
    qkv_weight: Tensor
    qkv_bias: Tensor
    proj_weight: Tensor


@dataclass(frozen=True)
class MlpSlice:
    """The active groups' rows of fc1 and columns of fc2."""

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor


@dataclass(frozen=True)
class BlockPlan:
    """What one block runs at one timestep; the masks are H floats each."""

    heads: Tensor
    groups: Tensor
    attention: AttentionSlice
    mlp: MlpSlice


class SparseDyDiT(nn.Module):
    """Runs `model` (evaluation only) without what its routers switch off; call it as you would call the model.

    A batch of mixed timesteps is run in groups of equal t.
    """

    def __init__(self, model: DyDiT) -> None:
        super().__init__()
        self.model = model.eval()
        self.config = model.config
        self._plans: dict[int, list[BlockPlan]] = {}
        self._slices: dict[tuple[int, str, bytes], AttentionSlice | MlpSlice] = {}

    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        """As `DyDiT.forward` in evaluation mode."""
        timesteps = t.unique().tolist()
        if len(timesteps) == 1:
            out, routing = self._run(x, t, y, timesteps[0])
            return (out, routing) if return_routing else out
        parts = [(t == timestep).nonzero().squeeze(1) for timestep in timesteps]
        results = [self._run(x[part], t[part], y[part], timestep) for part, timestep in zip(parts, timesteps, strict=True)]
        back = torch.cat(parts).argsort()
        out = torch.cat([result for result, _ in results])[back]
        if not return_routing:
            return out
        heads, groups, tokens = (
            torch.cat([getattr(routing, name) for _, routing in results], dim=1)[:, back]
            for name in ("heads", "groups", "tokens")
        )
        return out, Routing(heads, groups, tokens)

    def _run(self, x: Tensor, t: Tensor, y: Tensor, timestep: int) -> tuple[Tensor, Routing]:
        model = self.model
        e = model.t_embedder(t[:1])  # 1 C, the same for the whole batch
        c = e + model.y_embedder(y)  # B C
        h = model.embed(x)  # B N C
        routed = []
        for block, plan in zip(model.blocks, self._plan(timestep, e), strict=True):
            assert isinstance(block, DynamicBlock)
            h, tokens = run_block(block, plan, h, c)
            routed.append(BlockRouting(plan.heads.expand(len(x), -1), plan.groups.expand(len(x), -1), tokens))
        return model.unpatchify(model.final_layer(h, c)), Routing.stack(routed)

    def _plan(self, timestep: int, e: Tensor) -> list[BlockPlan]:
        if timestep not in self._plans:
            plans = []
            for i, block in enumerate(self.model.blocks):
                assert isinstance(block, DynamicBlock)
                heads, groups = block.attn_rate(e, 1.0, 0.0), block.mlp_rate(e, 1.0, 0.0)  # each 1 H
                plans.append(BlockPlan(heads, groups, self._attention(i, block, heads[0]), self._mlp(i, block, groups[0])))
            self._plans[timestep] = plans
        return self._plans[timestep]

    def _attention(self, i: int, block: DynamicBlock, heads: Tensor) -> AttentionSlice:
        active = heads.bool()
        key = (i, "heads", bytes(active.tolist()))
        if key not in self._slices:
            H, C = len(active), self.config.hidden_size
            qkv, proj = block.attn.qkv, block.attn.proj
            self._slices[key] = AttentionSlice(
                heads=int(active.sum()),
                qkv_weight=qkv.weight.view(3, H, -1, C)[:, active].reshape(-1, C),
                qkv_bias=qkv.bias.view(3, H, -1)[:, active].reshape(-1),
                proj_weight=proj.weight.view(C, H, -1)[:, active].reshape(C, -1),
            )
        found = self._slices[key]
        assert isinstance(found, AttentionSlice)
        return found

    def _mlp(self, i: int, block: DynamicBlock, groups: Tensor) -> MlpSlice:
        active = groups.bool()
        key = (i, "groups", bytes(active.tolist()))
        if key not in self._slices:
            G, C = len(active), self.config.hidden_size
            fc1, fc2 = block.mlp.fc1, block.mlp.fc2
            self._slices[key] = MlpSlice(
                fc1_weight=fc1.weight.view(G, -1, C)[active].reshape(-1, C),
                fc1_bias=fc1.bias.view(G, -1)[active].reshape(-1),
                fc2_weight=fc2.weight.view(C, G, -1)[:, active].reshape(C, -1),
            )
        found = self._slices[key]
        assert isinstance(found, MlpSlice)
        return found


def run_block(block: DynamicBlock, plan: BlockPlan, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """x: B N C; c: B C -> the block's output B N C and its token mask B N."""
    B, N, C = x.shape
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=1)  # each B C
    h = modulate(block.norm1(x), shift_a, scale_a)  # B N C
    x = x + gate_a.unsqueeze(1) * sparse_attention(plan.attention, h, block.attn.proj.bias)

    mask = block.token_selection(x, 1.0, 0.0)  # B N
    active = mask.flatten().nonzero().squeeze(1)  # A
    if len(active) == 0:
        return x, mask
    flat = x.reshape(B * N, C)
    if len(active) == B * N:
        h = sparse_mlp(plan.mlp, modulate(block.norm2(x), shift_m, scale_m), block.mlp.fc2.bias)
        return x + gate_m.unsqueeze(1) * h, mask
    sample = active // N  # A
    h = block.norm2(flat[active]) * (1 + scale_m[sample]) + shift_m[sample]  # A C
    h = gate_m[sample] * sparse_mlp(plan.mlp, h, block.mlp.fc2.bias)
    return flat.index_add(0, active, h).view(B, N, C), mask


def sparse_attention(part: AttentionSlice, x: Tensor, proj_bias: Tensor) -> Tensor:
    """x: B N C -> B N C, with the active heads alone."""
    B, N, _ = x.shape
    if part.heads == 0:  # only without an always-on head: zeros into proj leave its bias
        return proj_bias.expand_as(x)
    qkv = F.linear(x, part.qkv_weight, part.qkv_bias).view(B, N, 3, part.heads, -1)  # B N 3 h D
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B h N D
    out = F.scaled_dot_product_attention(q, k, v)  # B h N D
    return F.linear(out.transpose(1, 2).reshape(B, N, -1), part.proj_weight, proj_bias)


def sparse_mlp(part: MlpSlice, x: Tensor, fc2_bias: Tensor) -> Tensor:
    """x: ... C -> ... C, with the active channel groups alone."""
    return F.linear(F.gelu(F.linear(x, part.fc1_weight, part.fc1_bias), approximate="tanh"), part.fc2_weight, fc2_bias)


class CompleteDyDiT(nn.Module):
    """A DyDiT with every router on (the complete model)."""

    def __init__(self, model: DyDiT) -> None:
        super().__init__()
        self.model = model.eval()
        self.config = model.config

    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        if return_routing:
            return self.model(x, t, y, return_routing=True, complete=True)
        return self.model(x, t, y, complete=True)


Executable = DiT | SparseDyDiT | CompleteDyDiT


def executor(model: DiT, execution: Execution) -> Executable:
    """`model` as it is to be run: `sparse` leaves work out, `masked` runs dense under masks, `complete` all of it.

    A static model is returned as it is. Raises `DyditError` for another word.
    """
    if execution not in get_args(Execution):
        raise DyditError(f"no execution {execution!r}; choose one of {', '.join(get_args(Execution))}")
    if not isinstance(model, DyDiT) or execution == "masked":
        return model
    return SparseDyDiT(model) if execution == "sparse" else CompleteDyDiT(model)

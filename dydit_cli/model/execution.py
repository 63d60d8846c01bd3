"""How a model is run: masked, sparse, complete, or with merged tokens."""

from __future__ import annotations

from typing import Literal, get_args, overload

from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT
from dydit_cli.model.options import Execution as Execution
from dydit_cli.model.routing import Routing
from dydit_cli.model.sparse import SparseDyDiT
from dydit_cli.model.tome import TomeDiT


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


Executable = DiT | SparseDyDiT | CompleteDyDiT | TomeDiT


def executor(
    model: DiT, execution: Execution, *, compile: bool = False, plan_memory: int | None = None, tome: float | None = None
) -> Executable:
    """`model` as it is to be run: `sparse` leaves work out, `masked` runs dense under masks, `complete` all of it.

    A static model is returned as it is, or with `tome` as a `TomeDiT` that merges this share of its tokens (0 is none).
    `compile` takes torch.compile's help: for the elementwise work of the sparse path, else for the whole model.
    `plan_memory` is `SparseDyDiT`'s. Raises `DyditError` for another word, and for `tome` as `TomeDiT` does.
    """
    if execution not in get_args(Execution):
        raise DyditError(f"no execution {execution!r}; choose one of {', '.join(get_args(Execution))}")
    if execution == "sparse" and isinstance(model, DyDiT) and not tome:
        return SparseDyDiT(model, compile=compile, plan_memory=plan_memory)
    dense: DiT | CompleteDyDiT | TomeDiT = model
    if tome:
        dense = TomeDiT(model, tome)
    elif execution == "complete" and isinstance(model, DyDiT):
        dense = CompleteDyDiT(model)
    if compile:
        dense.compile()
    return dense

"""fvcore's count of what a model executes, with handles for what fvcore lacks."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from dydit_cli.model.config import NORM_MACS_PER_ELEMENT
from dydit_cli.model.execution import Executable


def attention_handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """scaled_dot_product_attention on q, k, v of shape B H N D: q k^T and its product with v."""
    batch, heads, queries, width = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[2]
    return Counter({"attention": 2 * batch * heads * queries * keys * width})


def rms_norm_handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """As a LayerNorm without affine weights."""
    return Counter({"norm": NORM_MACS_PER_ELEMENT * math.prod(inputs[0].type().sizes())})


def sum_handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A sum scaled by a number, as a forecast has them: a multiply-accumulate for every element; a plain one is free."""
    scaled = inputs[2].toIValue() not in (None, 1)
    return Counter({"sum": scaled * math.prod(outputs[0].type().sizes())})


class _WithRouting(nn.Module):
    """Returns the masks too: the tracer drops work that no output depends on, such as a router that skips every token."""

    def __init__(self, model: Executable) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        out, routing = self.model(x, t, y, return_routing=True)
        return out, routing.heads, routing.groups, routing.tokens


def count(model: Executable, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[int, Counter[str]]:
    """MACs of `model(*inputs)` and the operations without a handle (name to calls).

    Operations that fvcore ignores by design (elementwise ones) are among the latter: the caller judges them.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # fvcore traces with TorchScript, which is deprecated, and the tracer warns of every shape that Python code
        # reads; the count is of exactly these inputs
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(_WithRouting(model), inputs)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention_handle)
        analysis.set_op_handle("aten::rms_norm", rms_norm_handle)
        for name in ("aten::add", "aten::add_"):
            analysis.set_op_handle(name, sum_handle)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(analysis.total()), analysis.unsupported_ops()

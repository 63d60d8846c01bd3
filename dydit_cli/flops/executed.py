"""Counts what a model executes while it executes it: every call, with the shapes it had, by fvcore's handles.

fvcore's own analysis (`flops.fvcore`) traces a model anew for every input shape. In a sparse model nearly every block at
every step has a number of active tokens of its own, and a trace takes longer than the run. Here the calls are seen as they
happen, and each distinct function and shapes is handed to fvcore's handle once.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dydit_cli.model.config import NORM_MACS_PER_ELEMENT

Shape = tuple[int, ...]

# Elementwise work, comparisons, sums and norms, look-ups and moving numbers about: fvcore's conventions count these as zero
FREE = frozenset({
    "_set_grad_enabled", "__get__", "__getitem__", "__len__", "__bool__", "__int__", "__float__", "__index__", "__setitem__",
    "add", "add_", "__add__", "__radd__", "__iadd__", "addcmul", "addcmul_", "sub", "__sub__", "__rsub__", "rsub", "mul",
    "mul_", "__mul__", "__rmul__", "__imul__", "div", "__truediv__", "__rtruediv__", "floor_divide", "__floordiv__",
    "__rfloordiv__", "__neg__", "exp", "cos", "sin", "sigmoid", "silu", "relu", "gelu", "gelu_", "gt", "lt", "ge", "le", "eq",
    "ne", "__gt__", "__lt__", "__ge__", "__le__", "__eq__", "__ne__", "equal", "bool", "float", "long", "half", "bfloat16",
    "double", "to", "type_as", "item", "tolist", "embedding", "index", "index_add", "index_add_", "index_select", "nonzero",
    "index_copy_", "max", "normalize", "linalg_vector_norm", "clamp_min",  # token merging
    "unique", "unique_dim", "_unique2", "argsort", "sort", "where", "arange", "tensor", "zeros", "ones", "full", "zeros_like",
    "ones_like", "full_like", "empty", "empty_like", "new_empty", "new_zeros", "new_tensor", "cat", "stack", "chunk", "split",
    "unbind", "clone", "detach", "contiguous", "copy_", "cpu", "cuda", "numpy", "view", "reshape", "expand", "expand_as",
    "flatten", "permute", "transpose", "t", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "size", "dim", "numel",
    "stride", "new_ones", "mean", "silu_", "neg", "unflatten", "repeat_interleave", "element_size", "promote_types",
    "resolve_conj", "resolve_neg", "is_contiguous", "cumsum", "scatter_", "sum",  # a step's timestep; padded execution
})  # fmt: skip


class _Value:
    """As much of a TorchScript value as fvcore's handles ask for."""

    def __init__(self, sizes: Shape | None) -> None:
        self._sizes = sizes

    def isCompleteTensor(self) -> bool:  # noqa: N802
        return self._sizes is not None

    def type(self) -> _Value:
        return self

    def sizes(self) -> list[int]:
        assert self._sizes is not None
        return list(self._sizes)

    def toIValue(self) -> bool:  # noqa: N802
        return False  # asked of convolutions: transposed?


def attention_macs_of(query: Shape, key: Shape) -> int:
    """scaled_dot_product_attention on q (... M D) and k (... N D): q k^T and the product with v."""
    *batch, queries, width = query
    total = 2 * queries * key[-2] * width
    for size in batch:
        total *= size
    return total


@cache
def _handles() -> dict[str, Callable[[list[Any], list[Any]], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fvcore's own use of TorchScript
        from fvcore.nn import jit_handles

    return {
        "linear": jit_handles.linear_flop_jit,
        "addmm": jit_handles.addmm_flop_jit,
        "matmul": jit_handles.matmul_flop_jit,
        "conv2d": jit_handles.conv_flop_jit,
        "layer_norm": jit_handles.norm_flop_counter(2),
    }


def _macs(name: str, inputs: list[Shape | None], output: Shape) -> int:
    counted = _handles()[name]([_Value(shape) for shape in inputs], [_Value(output)])
    return int(sum(counted.values()) if isinstance(counted, Mapping) else counted)


@cache
def macs_of(name: str, inputs: tuple[Shape | None, ...], output: Shape) -> int:
    """MACs of one call of a function that has a handle (`HANDLED`)."""
    if name == "scaled_dot_product_attention":
        query, key = inputs[:2]
        assert query is not None
        assert key is not None
        return attention_macs_of(query, key)
    if name == "rms_norm":
        assert inputs[0] is not None
        return NORM_MACS_PER_ELEMENT * math.prod(inputs[0])
    if name == "conv2d":  # TorchScript's convolution has twelve arguments
        return _macs(name, [*inputs[:2], *[None] * 10], output)
    if name == "layer_norm":
        return _macs(name, [inputs[0], None, inputs[1]], output)
    return _macs(name, list(inputs), output)


# How many leading tensors a handle needs
HANDLED = {"linear": 2, "addmm": 3, "matmul": 2, "conv2d": 2, "layer_norm": 1, "rms_norm": 1, "scaled_dot_product_attention": 2}

SCALED_SUMS = {"add", "add_"}  # with an alpha: a multiply-accumulate for every element

SAME = {"mm": "matmul", "bmm": "matmul", "__matmul__": "matmul"}


class Executed(TorchFunctionMode):
    """Within `with Executed() as counted:` every torch call adds its MACs to `counted.macs`.

    A call that has no handle and is not known to be free of arithmetic is counted in `unknown` (name to calls).
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.unknown: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        name = func.__name__
        if name in SCALED_SUMS and "alpha" in named:
            self.macs += out.numel()
            return out
        if name in FREE:
            return out
        name = name.partition(".")[0]  # an overload such as gelu_.default
        name = SAME.get(name, name)
        count = HANDLED.get(name)
        if count is not None:
            shapes: list[Shape | None] = [tuple(tensor.shape) for tensor in args[:count]]
            if name == "layer_norm":
                weight = args[2] if len(args) > 2 else named.get("weight")
                shapes.append(None if weight is None else tuple(weight.shape))
            self.macs += macs_of(name, tuple(shapes), tuple(out.shape))
        elif name not in FREE:
            self.unknown[name] += 1
        return out


def count_executed(function: Callable[..., Any], *inputs: Any) -> tuple[int, Counter[str]]:
    """MACs that `function(*inputs)` executes, and the calls that have no handle and may hold arithmetic."""
    with Executed() as counted, torch.no_grad():
        function(*inputs)
    return counted.macs, counted.unknown

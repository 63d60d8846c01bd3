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
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dydit_cli.model.config import NORM_MACS_PER_ELEMENT

Shape = tuple[int, ...]

Kind = Literal["linear", "attention", "convolution", "norms", "sums"]

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
    "dropout", "pow", "__rpow__", "__rdiv__", "rsqrt", "outer", "repeat", "split_with_sizes", "meshgrid", "pad", "any", "sum",
    "as_tensor", "view_as_complex", "view_as_real", "linspace", "__and__", "masked_fill", "clamp", "div_",
    "concat", "is_floating_point",  # these of diffusers' transformers
    "resolve_conj", "resolve_neg", "is_contiguous", "cumsum", "scatter_",  # a step's timestep; padded execution
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


def einsum_macs(equation: str, shapes: tuple[Shape, ...]) -> int:
    """A product of two tensors by Einstein's convention: the product of all its indices' sizes."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes = {index: size for term, shape in zip(terms, shapes, strict=True) for index, size in zip(term, shape, strict=True)}
    return math.prod(sizes.values())


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
    if name == "baddbmm":
        assert inputs[1] is not None
        return math.prod(output) * inputs[1][-1]
    if name.startswith("conv"):  # TorchScript's convolution has twelve arguments
        return _macs("conv2d", [*inputs[:2], *[None] * 10], output)
    if name in AFFINE:
        return _macs("layer_norm", [inputs[0], None, inputs[1]], output)
    return _macs(name, list(inputs), output)


# The operands that a handle needs, in the function's own order, and the kind of work that its MACs are
HANDLED: dict[str, tuple[tuple[str, ...], Kind]] = {
    "linear": (("input", "weight"), "linear"),
    "addmm": (("input", "mat1", "mat2"), "linear"),
    "matmul": (("input", "other"), "linear"),
    "baddbmm": (("input", "batch1", "batch2"), "linear"),
    "conv1d": (("input", "weight"), "convolution"),
    "conv2d": (("input", "weight"), "convolution"),
    "conv3d": (("input", "weight"), "convolution"),
    "layer_norm": (("input",), "norms"),
    "group_norm": (("input",), "norms"),
    "rms_norm": (("input",), "norms"),
    "scaled_dot_product_attention": (("query", "key"), "attention"),
}

AFFINE = {"layer_norm", "group_norm"}  # whose weight, the third operand, counts too

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

    def add(self, macs: int, kind: Kind) -> None:
        """One call's work; a product of two activations is of the kind "attention", whatever function computes it."""
        self.macs += macs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        name = func.__name__.partition(".")[0]  # an overload such as gelu_.default
        if name in SCALED_SUMS and "alpha" in named:
            self.add(out.numel(), "sums")
            return out
        if name in FREE:
            return out
        name = SAME.get(name, name)
        if name in HANDLED:
            needed, kind = HANDLED[name]
            operands = [args[i] if i < len(args) else named[operand] for i, operand in enumerate(needed)]
            shapes: list[Shape | None] = [tuple(tensor.shape) for tensor in operands]
            if name in AFFINE:
                weight = args[2] if len(args) > 2 else named.get("weight")
                shapes.append(None if weight is None else tuple(weight.shape))
            of_weights = any(isinstance(tensor, nn.Parameter) for tensor in operands)
            self.add(macs_of(name, tuple(shapes), tuple(out.shape)), kind if of_weights or kind != "linear" else "attention")
        elif name == "einsum" and len(args) == 3 and "." not in args[0]:
            self.add(einsum_macs(args[0], (tuple(args[1].shape), tuple(args[2].shape))), "attention")
        elif name != "einsum" or len(args) > 2:  # of one tensor it moves numbers about, or sums them
            self.unknown[name] += 1
        return out


def count_executed(function: Callable[..., Any], *inputs: Any) -> tuple[int, Counter[str]]:
    """MACs that `function(*inputs)` executes, and the calls that have no handle and may hold arithmetic."""
    with Executed() as counted, torch.no_grad():
        function(*inputs)
    return counted.macs, counted.unknown

"""The architectures that dydit knows, one file each: a module of this package with a `FAMILY`, found by being there.

A family is its configurations, its models, its published sizes, how its weights are told from others', and which process it
is trained with. Everything else (routers, ranking, conversion, execution, counting, training) is written once over
`ModelConfig.sites` and `backbone`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.sites import Weights

if TYPE_CHECKING:
    from dydit_cli.model.backbone import Backbone, DynamicBackbone


@dataclass(frozen=True)
class Hints:
    """What is known beside the weights; None is unknown, or the family's usual.

    `flow_path`, `prediction` and `noise_at` are fields of `FlowConfig`; `trained` is what a training script stored beside the
    weights of its own options, by their names there.
    """

    num_heads: int | None = None
    input_size: int | None = None
    timestep_variant: str | None = None
    norm2_eps: float | None = None
    flow_path: str | None = None
    prediction: str | None = None
    noise_at: int | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Inferred:
    """A configuration and, as short phrases, what it was read from."""

    config: ModelConfig
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Family:
    """One architecture. `sizes` are the published ones, as fields of the static configuration by their names, and
    `published_giga` their GFLOPs (1 MAC each); `process` is a name in `diffusion.process.PROCESSES`.

    `matches(names)` is whether the names of a file's weights can be this family's. `infer(weights, hints)` returns the
    configuration of a file's weights, or raises `DyditError` where they are not this family's. `fill(weights, config)` renames
    what older files call otherwise, and adds what a file may leave out because it can be computed. `to_public(weights)` is
    what the family's own code reads from a file.
    """

    name: str
    static_config: type[ModelConfig]
    dynamic_config: type[RoutedConfig]
    static_model: type[Backbone]
    dynamic_model: type[DynamicBackbone]
    sizes: Mapping[str, Mapping[str, Any]]
    published_giga: Mapping[str, float]
    process: str
    matches: Callable[[Collection[str]], bool]
    infer: Callable[[Weights, Hints], Inferred]
    fill: Callable[[Weights, ModelConfig], Weights] = lambda weights, config: weights
    to_public: Callable[[Weights], Any] = lambda weights: weights


_registered: dict[str, Family] = {}


def register(family: Family) -> None:
    """Adds a family that is no module of this package."""
    _registered[family.name] = family


@cache
def _shipped() -> dict[str, Family]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    # what several families build on is no family
    return {module.FAMILY.name: module.FAMILY for module in modules if hasattr(module, "FAMILY")}


def families() -> dict[str, Family]:
    """All of them, by name."""
    return {**_shipped(), **_registered}


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration."""
    return families()[config.family]


def recognise(names: Collection[str], asked: str | None = None, trained: str = "", usual: str = "dit") -> Family:
    """The family that the names of weights are of, or the one `asked` for, and the `usual` one where they are nobody's.

    `trained` is the name of a size that a training script stored with them, such as SiT-XL/2: it decides among several.
    Raises `DyditError` where they could be several's all the same, or no family has the name.
    """
    if asked is not None:
        if asked not in families():
            raise DyditError(f"no family {asked!r}; choose one of {', '.join(families())}")
        return families()[asked]
    able = [family for family in families().values() if family.matches(names)]
    if len(able) > 1:
        able = [family for family in able if trained.startswith(f"{family.static_config.title}-")] or able
    if len(able) > 1:
        known = [family.name for family in able]
        raise DyditError(f"could be of family {' or '.join(known)}: say which with --family {'|'.join(known)}")
    return able[0] if able else families()[usual]


def config_types() -> dict[str, type[ModelConfig]]:
    """The configurations by their stored `kind`."""
    every = [of for family in families().values() for of in (family.static_config, family.dynamic_config)]
    return {of.kind: of for of in every}


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `ModelConfig.to_dict`: of the type that its `kind` names. Raises `DyditError` for anything else."""
    types, rest = config_types(), dict(values)
    kind = rest.pop("kind", None)
    if kind not in types:
        known = [repr(name) for name in types]
        raise DyditError(f"model configuration: kind is {kind!r}; it must be {', '.join(known[:-1])} or {known[-1]}")
    of = types[kind]
    names = {f.name for f in fields(of)}
    unknown = sorted(set(rest) - names)
    if unknown:
        raise DyditError(f"model configuration: unknown field {unknown[0]!r}; known are {', '.join(sorted(names))}")
    return of(**rest)


def named_sizes() -> tuple[str, ...]:
    """The published sizes of all families, such as `DiT-XL/2`."""
    return tuple(name for family in families().values() for name in family.sizes)


def named_config(name: str, **overrides: Any) -> ModelConfig:
    """The published size `name`, for instance `DiT-XL/2`, with single fields overridden.

    Raises `DyditError` for a name that is none of the published ones.
    """
    for family in families().values():
        if name in family.sizes:
            return family.static_config(**{**family.sizes[name], **overrides})
    raise DyditError(f"no model size {name!r}; choose one of {', '.join(named_sizes())}")


def with_routers(config: ModelConfig, **routing: Any) -> RoutedConfig:
    """A static configuration as its family's dynamic one."""
    return family_of(config).dynamic_config.from_static(config, **routing)


def build_model(config: ModelConfig) -> Backbone:
    """A model of `config` with random weights, static or dynamic."""
    family = family_of(config)
    return family.dynamic_model(config) if isinstance(config, RoutedConfig) else family.static_model(config)


FILLING = ("uniform_", "normal_", "constant_", "fill_", "zero_")  # how the names of initialisers end


class _Unfilled(TorchFunctionMode):
    """Skips initialisers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__.endswith(FILLING):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_shapes(config: ModelConfig) -> Backbone:
    """`build_model` on the meta device: names, shapes and dtypes, no numbers and no memory.

    Nothing is initialised or computed: on that device most arithmetic imports torch's compiler, which takes a second.
    """
    with torch.device("meta"), _Unfilled():
        return build_model(config)


def of_shapes_alone() -> bool:
    """Whether `build_shapes` is at work; who computes a table then returns an empty one of its shape."""
    return torch.get_default_device().type == "meta"


def shape_of(weights: Weights, name: str, dims: int) -> tuple[int, ...]:
    """The shape of a weight that must be there with so many dimensions, none of them empty."""
    if name not in weights:
        raise DyditError(f"missing {name}")
    shape = tuple(weights[name].shape)
    if len(shape) != dims or 0 in shape:
        raise DyditError(f"{name} has shape {list(shape)}; it needs {dims} dimensions, none of them 0")
    return shape


def depth_of(weights: Weights, pattern: str) -> int:
    """How many blocks there are, by the number in a pattern's first group; raises `DyditError` for none, or a gap."""
    blocks = {int(match.group(1)) for match in (re.match(pattern, name) for name in weights) if match}
    depth = max(blocks, default=-1) + 1
    if not depth or len(blocks) != depth:
        gap = next((i for i in range(depth) if i not in blocks), 0)
        raise DyditError(f"missing blocks.{gap}" if depth else "no blocks: these are not a DiT's weights")
    return depth

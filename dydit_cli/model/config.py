"""What a model is: sizes and variants, frozen, with the published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from dydit_cli.errors import DyditError
from dydit_cli.model.options import TimestepVariant as TimestepVariant

TokenRouting = Literal["tokens", "layers"]

# name: (depth, hidden size, heads), table 1 of the DiT paper (arXiv 2212.09748)
SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}

PATCH_SIZES = (2, 4, 8)

WIDTHS = ("attention_width", "mlp_width")

LARGEST = 10**7  # no size of a model is near it; a damaged file's may be

NAMED_SIZES: tuple[str, ...] = tuple(f"DiT-{size}/{patch}" for size in SIZES for patch in PATCH_SIZES)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A static Diffusion Transformer (arXiv 2212.09748).

    `input_size` is the input's height and width: pixels of the latent, or of the image for pixel models.
    `timestep_variant` says which sinusoid the weights were trained with: the authors' divides by 128, diffusers' by 127.
    `norm2_eps` is the epsilon of the norm before the MLP: 1e-6 in the authors' code, 1e-5 in diffusers.
    `attention_width` (heads times head width) and `mlp_width` are what pruning left of every block; None is the whole:
    `hidden_size`, and `mlp_ratio` times that.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    learn_sigma: bool = True
    timestep_variant: TimestepVariant = "original"
    norm2_eps: float = 1e-6
    attention_width: int | None = None
    mlp_width: int | None = None

    kind = "dit"

    def __post_init__(self) -> None:
        for name in ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes", *WIDTHS):
            value = getattr(self, name)
            if value is None and name in WIDTHS:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
                raise DyditError(f"model configuration: {name} is {value!r}; it must be a whole number of 1 or more")
        if not isinstance(self.learn_sigma, bool):
            raise DyditError(f"model configuration: learn_sigma is {self.learn_sigma!r}; it must be true or false")
        if self.input_size % self.patch_size:
            raise DyditError(
                f"model configuration: input_size {self.input_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.attention_width is not None and self.attention_width % self.num_heads:
            raise DyditError(
                f"model configuration: attention_width {self.attention_width} must be a multiple of num_heads {self.num_heads}"
            )
        if (self.attention_width is None and self.hidden_size % self.num_heads) or self.hidden_size % 4:
            raise DyditError(
                f"model configuration: hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads} and of 4"
            )
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, int | float) or not 0 < self.mlp_ratio < 100:
            raise DyditError(f"model configuration: mlp_ratio is {self.mlp_ratio!r}; it must be a positive number")
        if not isinstance(self.norm2_eps, float) or not 0 < self.norm2_eps < 1:
            raise DyditError(f"model configuration: norm2_eps is {self.norm2_eps!r}; it must lie between 0 and 1")
        if self.timestep_variant not in get_args(TimestepVariant):
            raise DyditError(
                f"model configuration: timestep_variant is {self.timestep_variant!r}; use 'original' or 'diffusers'"
            )
        # one way to say a width: configurations are compared, and what is whole goes without saying
        for name, whole in zip(WIDTHS, (self.hidden_size, int(self.hidden_size * self.mlp_ratio)), strict=True):
            if getattr(self, name) == whole:
                object.__setattr__(self, name, None)

    @property
    def num_tokens(self) -> int:
        return (self.input_size // self.patch_size) ** 2

    @property
    def attention_hidden(self) -> int:
        """Heads times head width: `hidden_size`, or what pruning left of it."""
        return self.hidden_size if self.attention_width is None else self.attention_width

    @property
    def head_dim(self) -> int:
        return self.attention_hidden // self.num_heads

    @property
    def mlp_hidden(self) -> int:
        return int(self.hidden_size * self.mlp_ratio) if self.mlp_width is None else self.mlp_width

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def null_class(self) -> int:
        """The last row of the label table, which stands for "no class" (classifier-free guidance)."""
        return self.num_classes

    @property
    def size_name(self) -> str:
        """`DiT-XL/2` where the sizes are a published model's, else `DiT-<depth>x<hidden>/<patch>`, and what pruning left."""
        if any(getattr(self, name) is not None for name in WIDTHS):
            left = f"{self.num_heads} heads of {self.head_dim}, MLP {self.mlp_hidden}"
            return f"DiT-{self.depth}x{self.hidden_size}/{self.patch_size}, {left}"
        for size, sizes in SIZES.items():
            if (self.depth, self.hidden_size, self.num_heads) == sizes:
                return f"DiT-{size}/{self.patch_size}"
        return f"DiT-{self.depth}x{self.hidden_size}/{self.patch_size}"

    def static(self) -> DiTConfig:
        """This configuration without routers."""
        return DiTConfig(**{f.name: getattr(self, f.name) for f in fields(DiTConfig)})

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for name in WIDTHS:  # what is whole goes without saying
            if values[name] is None:
                del values[name]
        return {"kind": self.kind, **values}


@dataclass(frozen=True, kw_only=True)
class DyDiTConfig(DiTConfig):
    """A DiT with routers for heads and MLP channel groups (TDW) and for tokens (SDT), arXiv 2410.03456 section 3.

    The MLP's hidden width is cut into `num_heads` contiguous channel groups. `always_on` says that head 0 and group 0
    have no logit and always run; the older public release routes them too. `temperature` is the Gumbel-sigmoid's; it
    shapes gradients only and plays no part in evaluation. `token_routing` is `tokens`, or for an ablation `layers`: one
    decision, by the mean of the logits, for all tokens of an image.
    """

    token_router_reduction: int = 16
    always_on: bool = True
    temperature: float = 5.0
    token_routing: TokenRouting = "tokens"

    kind = "dydit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads < 2:
            raise DyditError("model configuration: num_heads is 1; a DyDiT needs at least 2, since the first is always on")
        if self.mlp_hidden % self.num_heads:
            raise DyditError(
                f"model configuration: the MLP's {self.mlp_hidden} channels cannot be cut into {self.num_heads} equal groups"
            )
        if not isinstance(self.always_on, bool):
            raise DyditError(f"model configuration: always_on is {self.always_on!r}; it must be true or false")
        reduction = self.token_router_reduction
        if isinstance(reduction, bool) or not isinstance(reduction, int) or not 1 <= reduction <= self.hidden_size:
            raise DyditError(
                f"model configuration: token_router_reduction is {reduction!r}; it must be from 1 to {self.hidden_size}"
            )
        if self.token_routing not in get_args(TokenRouting):
            raise DyditError(f"model configuration: token_routing is {self.token_routing!r}; use 'tokens' or 'layers'")
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise DyditError(f"model configuration: temperature is {self.temperature!r}; it must be a positive number")

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if self.token_routing == "tokens":  # what every other model does goes without saying
            del values["token_routing"]
        return values

    @property
    def group_width(self) -> int:
        """MLP channels in one group."""
        return self.mlp_hidden // self.num_heads

    @property
    def router_rows(self) -> int:
        """Logits of a head or group router: one fewer than heads, where the first is always on."""
        return self.num_heads - 1 if self.always_on else self.num_heads

    @property
    def token_router_hidden(self) -> int:
        return self.hidden_size // self.token_router_reduction

    @classmethod
    def from_static(cls, config: DiTConfig, **routing: Any) -> DyDiTConfig:
        """`config` with routers added."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(DiTConfig)}, **routing)


def named_config(name: str, **overrides: Any) -> DiTConfig:
    """The published size `name`, for instance `DiT-XL/2`, with single fields overridden.

    Raises `DyditError` for a name that is none of the twelve published ones.
    """
    if name not in NAMED_SIZES:
        raise DyditError(f"no model size {name!r}; choose one of {', '.join(NAMED_SIZES)}")
    size, patch = name.removeprefix("DiT-").split("/")
    depth, hidden, heads = SIZES[size]
    return DiTConfig(**{"depth": depth, "hidden_size": hidden, "num_heads": heads, "patch_size": int(patch), **overrides})


def config_from_dict(values: Mapping[str, Any]) -> DiTConfig:
    """The inverse of `DiTConfig.to_dict`: a `DiTConfig` or a `DyDiTConfig` by its `kind`."""
    kinds: dict[str, type[DiTConfig]] = {"dit": DiTConfig, "dydit": DyDiTConfig}
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in kinds:
        raise DyditError(f"model configuration: kind is {kind!r}; it must be 'dit' or 'dydit'")
    known = {f.name for f in fields(kinds[kind])}
    unknown = sorted(set(rest) - known)
    if unknown:
        raise DyditError(f"model configuration: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return kinds[kind](**rest)

"""What every family's configuration has in common: the sizes that the rest of the program asks for, and the routers' fields."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from dydit_cli.errors import DyditError
from dydit_cli.model.options import FlowEnd, FlowPath, FlowPrediction, FlowWeight, GuidanceChannels

if TYPE_CHECKING:
    from typing import Self

    from dydit_cli.model.sites import Site

LARGEST = 10**7  # no size of a model is near it; a damaged file's may be
NORM_MACS_PER_ELEMENT = 4  # fvcore's convention for a LayerNorm without affine weights


def check_whole(values: Any, *names: str, least: int = 1) -> None:
    """Raises `DyditError` where an attribute of `values` is no whole number from `least` to 10^7."""
    for name in names:
        value = getattr(values, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise DyditError(f"model configuration: {name} is {value!r}; it must be a whole number of {least} or more")


def check_flag(values: Any, name: str) -> None:
    """Raises `DyditError` where an attribute is neither true nor false."""
    if not isinstance(getattr(values, name), bool):
        raise DyditError(f"model configuration: {name} is {getattr(values, name)!r}; it must be true or false")


def check_choice(values: Any, name: str, choices: Any) -> None:
    """Raises `DyditError` where an attribute is none of a `Literal`'s values."""
    *others, last = get_args(choices)
    if getattr(values, name) not in (*others, last):
        known = ", ".join(map(repr, others))
        raise DyditError(f"model configuration: {name} is {getattr(values, name)!r}; use {known} or {last!r}")


def rising(values: Sequence[float]) -> bool:
    """Whether each is more than the one before it."""
    return all(a < b for a, b in pairwise(values))


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """What a model of any family is. Sizes are in tokens, channels and pixels of what the model takes.

    `kind` is the stored name; `family` the family's, and `title` that of the papers; `dynamic` whether there are routers,
    whose modules are `routers`; `least_classes` is 0 where there are models without classes, whose labels count for nothing;
    `guided_channels` are those that guidance acts on in the family's own code. A family adds its fields, and the MACs of what
    surrounds its sites.
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

    kind: ClassVar[str]
    family: ClassVar[str]
    title: ClassVar[str]
    dynamic: ClassVar[bool] = False
    routers: ClassVar[tuple[str, ...]] = ()
    least_classes: ClassVar[int] = 1
    guided_channels: ClassVar[GuidanceChannels] = "3"
    measured_latents: ClassVar[bool] = False  # whether the family is trained on latents normalised by a set's statistics
    label_table: ClassVar[str] = "y_embedder.embedding_table.weight"
    blocks: ClassVar[re.Pattern[str]] = re.compile(r"(blocks\.\d+)\.")  # what the names of a block's weights begin with

    def __post_init__(self) -> None:
        check_whole(self, "input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads")
        check_whole(self, "num_classes", least=self.least_classes)
        check_flag(self, "learn_sigma")
        if self.input_size % self.patch_size:
            raise DyditError(
                f"model configuration: input_size {self.input_size} is no multiple of patch_size {self.patch_size}"
            )
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, int | float) or not 0 < self.mlp_ratio < 100:
            raise DyditError(f"model configuration: mlp_ratio is {self.mlp_ratio!r}; it must be a positive number")

    @property
    def frames(self) -> int | None:
        """Of a video; None where samples are images."""
        return None

    @property
    def frame_tokens(self) -> int:
        """Of an image, or of one frame of a video."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        return (self.frames or 1) * self.frame_tokens

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of what the model takes and its samples are, without the batch: C S S, or of a video F C S S."""
        image = (self.in_channels, self.input_size, self.input_size)
        return image if self.frames is None else (self.frames, *image)

    @property
    def patches(self) -> str:
        """What is cut into tokens, in words."""
        return f"patches of {self.patch_size} x {self.patch_size} in {' x '.join(map(str, self.sample_shape))}"

    @property
    def classes(self) -> str:
        """How many, in words."""
        return f"{self.num_classes or 'no'} classes"

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def returned_channels(self) -> int:
        """Of what a forward pass returns: a family may leave those of a variance out."""
        return self.out_channels

    @property
    def class_numbers(self) -> range:
        """The labels that a sample may have: 0 alone where the model has no classes."""
        return range(max(1, self.num_classes))

    @property
    def null_class(self) -> int:
        """The last row of the label table, which stands for "no class" (classifier-free guidance)."""
        return self.num_classes

    @property
    def model_name(self) -> str:
        """DiT or DyDiT, say."""
        return f"Dy{self.title}" if self.dynamic else self.title

    @property
    @abstractmethod
    def size_name(self) -> str:
        """As the papers write it, for instance DiT-XL/2."""

    @abstractmethod
    def sites(self, block: int) -> tuple[Site, ...]:
        """Where the width of block number `block` can be cut."""

    def site(self, structure: str, block: int = 0) -> Site:
        """The site of `heads` or of `groups`."""
        return next(site for site in self.sites(block) if site.structure == structure)

    def block_names(self) -> list[str]:
        """What the names of each block's weights begin with, without the dot."""
        return [f"blocks.{i}" for i in range(self.depth)]

    def layers(self) -> list[tuple[int, ...]]:
        """The blocks' numbers, those together of which none can be left out alone; all layers are of the same size."""
        return [(i,) for i in range(self.depth)]

    def block_title(self, block: int) -> str:
        """What figures call a block: its number, and its kind where there are several."""
        return str(block)

    def is_router(self, name: str) -> bool:
        """Whether a parameter's name is a router's."""
        return any(f".{router}." in name for router in self.routers)

    def count_blocks(self, names: Iterable[str]) -> int:
        """How many blocks the names of weights speak of."""
        return len({match.group(1) for match in map(self.blocks.match, names) if match})

    @property
    def head_dim(self) -> int:
        return self.site("heads").unit

    @property
    def mlp_hidden(self) -> int:
        """Channels of an MLP."""
        return self.site("groups").units

    @abstractmethod
    def narrowed(self, heads: int, channels: int) -> ModelConfig:
        """A static configuration with so many heads and MLP channels in every block."""

    @abstractmethod
    def num_parameters(self) -> int:
        """Of the static model, as the papers count, in closed form."""

    # what a forward pass costs beside its sites, in MACs

    @abstractmethod
    def timestep_macs(self) -> int:
        """The timestep embedder, for one timestep."""

    @abstractmethod
    def embed_and_head_macs(self) -> int:
        """What surrounds the blocks, per sample: the embedders, the timestep's among them, and the final layer."""

    @abstractmethod
    def modulation_macs(self) -> int:
        """adaLN of one block, per sample."""

    @abstractmethod
    def gate_macs(self) -> int:
        """Of adaLN one gate alone, per sample."""

    @abstractmethod
    def norm_macs(self) -> int:
        """One norm of a block, per token."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `kind` among them; `families.config_from_dict` is the inverse."""
        return {"kind": self.kind, **asdict(self)}

    def static(self) -> ModelConfig:
        """This configuration without routers."""
        return self


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ModelConfig):
    """What a model of flow matching was trained to predict: a base to put before a family's static configuration.

    t runs from 0 to 1; `noise_at` is the end that is pure noise. `path` is how noise and data are mixed between the ends,
    `prediction` what the output means, `loss_weight` how squared errors of a score or of noise are weighed by t (SiT,
    arXiv 2401.08740).
    """

    path: FlowPath = "linear"
    prediction: FlowPrediction = "velocity"
    loss_weight: FlowWeight = "none"
    noise_at: FlowEnd = 0

    @property
    def returned_channels(self) -> int:
        return self.in_channels

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("path", FlowPath), ("prediction", FlowPrediction), ("loss_weight", FlowWeight), ("noise_at", FlowEnd),
        ):  # fmt: skip
            check_choice(self, name, choices)


@dataclass(frozen=True, kw_only=True)
class RoutedConfig(ModelConfig):
    """A family's configuration with routers (arXiv 2410.03456, section 3): a base to put before the static configuration.

    `always_on` says that head 0 and group 0 have no logit and always run; the older public release routes them too.
    `temperature` is the Gumbel-sigmoid's; it shapes gradients only and plays no part in evaluation. `token_routing` is
    `tokens`, or for an ablation `layers`: one decision, by the mean of the logits, for all tokens of an image. It and
    `width_routing` are names in `routers.TOKEN_ROUTERS` and `routers.WIDTH_ROUTERS`.

    A model of a range of FLOPs ratios has the range in `budgets`, rising: at each the routers have an entry of their own, and
    what is between two is mixed (`routers.BudgetTable`). `measured` are pairs of what the routers are set to and the ratio of
    attention and MLP that a sampling run then had; without any the two are taken to be the same. `allocation` are pairs of a
    timestep and the ratio at it, and at those that it is the nearest to; without any, all timesteps are set alike.
    """

    token_router_reduction: int = 16
    always_on: bool = True
    temperature: float = 5.0
    token_routing: str = "tokens"
    width_routing: str = "linear"
    budgets: tuple[float, ...] = ()
    measured: tuple[tuple[float, float], ...] = ()
    allocation: tuple[tuple[float, float], ...] = ()

    dynamic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads < 2:
            raise DyditError("model configuration: num_heads is 1; a DyDiT needs at least 2, since the first is always on")
        check_flag(self, "always_on")
        reduction = self.token_router_reduction
        if isinstance(reduction, bool) or not isinstance(reduction, int) or not 1 <= reduction <= self.hidden_size:
            raise DyditError(
                f"model configuration: token_router_reduction is {reduction!r}; it must be from 1 to {self.hidden_size}"
            )
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise DyditError(f"model configuration: temperature is {self.temperature!r}; it must be a positive number")
        self._check_budgets()

    def _check_budgets(self) -> None:
        try:
            budgets = tuple(float(budget) for budget in self.budgets)
            measured = tuple((float(setting), float(ratio)) for setting, ratio in self.measured)
            allocation = tuple((float(t), float(ratio)) for t, ratio in self.allocation)
        except (TypeError, ValueError):
            message = "model configuration: budgets must be numbers, measured and allocation pairs of numbers"
            raise DyditError(message) from None
        if len(budgets) == 1 or not rising(budgets) or not all(0 < budget <= 1 for budget in budgets):
            raise DyditError("model configuration: budgets must be two or more rising ratios, over 0 and at most 1, or none")
        if not rising([setting for setting, _ in measured]):
            raise DyditError("model configuration: measured must be of rising settings")
        if not rising([t for t, _ in allocation]):
            raise DyditError("model configuration: allocation must be of rising timesteps")
        if allocation and not (budgets and all(budgets[0] <= ratio <= budgets[-1] for _, ratio in allocation)):
            raise DyditError("model configuration: allocation must be of ratios in the range of budgets")
        object.__setattr__(self, "budgets", budgets)  # lists in a file
        object.__setattr__(self, "measured", measured)
        object.__setattr__(self, "allocation", allocation)

    def setting_for(self, ratio: float) -> float:
        """What the routers are set to for a FLOPs ratio of attention and MLP, by what was measured; for 1, infinity: all on.
        Raises `DyditError` where the model has one ratio alone, or `ratio` is out of its range."""
        if not self.budgets:
            raise DyditError(
                "has one FLOPs ratio; train a model of a range: dydit finetune CKPT --flops-ratio 0.3:1.0 --out DIR, or shift "
                "this one's routers: dydit calibrate CKPT DST --flops-ratio R"
            )
        low, high = self.budgets[0], self.budgets[-1]
        if not low <= ratio <= high:
            raise DyditError(f"FLOPs ratio {ratio:g} is out of the model's range, {low:g} to {high:g}")
        if ratio >= 1:
            return math.inf
        pairs = sorted((measured, setting) for setting, measured in self.measured) or [(low, low), (high, high)]
        for (less, first), (more, second) in pairwise(pairs):
            if less <= ratio <= more:
                return first if more == less else first + (second - first) * (ratio - less) / (more - less)
        return pairs[0][1] if ratio < pairs[0][0] else pairs[-1][1]

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        usual_values = {"token_routing": "tokens", "width_routing": "linear", "budgets": (), "measured": (), "allocation": ()}
        for name, usual in usual_values.items():
            if values[name] == usual:  # what every other model does goes without saying
                del values[name]
        return values

    def static(self) -> ModelConfig:
        of = next(one for one in type(self).__mro__ if issubclass(one, ModelConfig) and not one.dynamic)
        return of(**{f.name: getattr(self, f.name) for f in fields(of)})

    @property
    def router_rows(self) -> int:
        """Logits of a head or group router: one fewer than heads, where the first is always on."""
        return self.num_heads - 1 if self.always_on else self.num_heads

    @property
    def token_router_hidden(self) -> int:
        return self.hidden_size // self.token_router_reduction

    @classmethod
    def from_static(cls, config: ModelConfig, **routing: Any) -> Self:
        """`config` with routers added."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(config)}, **routing)

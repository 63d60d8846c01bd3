"""Exact MACs of any of diffusers' transformers, by part: the model runs once on the meta device, which has shapes alone.

What is counted, and how, is `flops.executed`'s: matrix products, convolutions and attention to the digit, whichever function
computes them, norms that torch computes at 4 per element (5 with weights), as in fvcore; elementwise work is free.
A class whose inputs follow from a picture's size and a text's length is an entry in `INPUTS`; of others the shapes are given.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from dydit_cli.errors import DyditError
from dydit_cli.files import read_json
from dydit_cli.flops.executed import Executed, Kind
from dydit_cli.flops.options import CountOptions
from dydit_cli.recipe_files import parse_setting

KINDS: tuple[Kind, ...] = get_args(Kind)

PRODUCTS: tuple[Kind, ...] = ("linear", "attention", "convolution")  # what torch's counter counts, two for each MAC

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Latents:
    """What a call is given: latent pixels and frames, and tokens of the text."""

    height: int
    width: int
    frames: int
    text: int

    def image(self, channels: int) -> Shape:
        return (1, channels, self.height, self.width)

    def video(self, channels: int) -> Shape:
        return (1, channels, self.frames, self.height, self.width)

    def packed(self, channels: int, patch: int = 2) -> Shape:
        """Patches as tokens, as the pipeline makes them."""
        return (1, self.frames * (self.height // patch) * (self.width // patch), channels)

    def words(self, channels: int) -> Shape:
        return (1, self.text, channels)


@dataclass(frozen=True)
class Whole:
    """The shape of an input of whole numbers."""

    shape: Shape


@dataclass(frozen=True)
class InputsOf:
    """The inputs of a class by name, from its configuration: a shape, `Whole`, or a value that is passed as it is.

    The rest is usual for the class: pixels, the text's tokens, the latents' frames, the VAE's factor; a token's latent pixels
    a side, where the configuration's patch_size does not say them; and what a configuration has where the class's own defaults
    are of no model (`published`).
    """

    make: Callable[[Any, Latents], dict[str, Any]]
    size: tuple[int, int] = (1024, 1024)
    text: int = 0
    frames: int = 1
    factor: int = 8
    patch: int | None = None
    published: Mapping[str, Any] = field(default_factory=dict)


TIME = (1,)


def _dit(c: Any, x: Latents) -> dict[str, Any]:
    return {"hidden_states": x.image(c.in_channels), "timestep": Whole(TIME), "class_labels": Whole(TIME)}


def _pixart(c: Any, x: Latents) -> dict[str, Any]:
    extra = c.use_additional_conditions if c.use_additional_conditions is not None else c.sample_size == 128
    sizes = {"resolution": (1, 2), "aspect_ratio": (1, 1)} if extra else {"resolution": None, "aspect_ratio": None}
    return {**_image_and_text(c, x, c.caption_channels), "added_cond_kwargs": sizes}


def _image_and_text(c: Any, x: Latents, width: int) -> dict[str, Any]:
    return {"hidden_states": x.image(c.in_channels), "encoder_hidden_states": x.words(width), "timestep": TIME}


def _sd3(c: Any, x: Latents) -> dict[str, Any]:
    return {**_image_and_text(c, x, c.joint_attention_dim), "pooled_projections": (1, c.pooled_projection_dim)}


def _packed(c: Any, x: Latents, axes: int = 3) -> dict[str, Any]:
    tokens = x.packed(c.in_channels)
    ids = {"img_ids": (tokens[1], axes), "txt_ids": (x.text, axes)}
    return {"hidden_states": tokens, "encoder_hidden_states": x.words(c.joint_attention_dim), "timestep": TIME, **ids}


def _flux(c: Any, x: Latents) -> dict[str, Any]:
    more = {"pooled_projections": (1, c.pooled_projection_dim), "guidance": TIME if c.guidance_embeds else None}
    return {**_packed(c, x), **more}


def _flux2(c: Any, x: Latents) -> dict[str, Any]:
    return {**_packed(c, x, axes=4), "guidance": TIME if c.guidance_embeds else None}


def _qwen(c: Any, x: Latents) -> dict[str, Any]:
    shapes = [[(x.frames, x.height // 2, x.width // 2)]]
    own = {"hidden_states": x.packed(c.in_channels), "encoder_hidden_states": x.words(c.joint_attention_dim)}
    return {**own, "encoder_hidden_states_mask": (1, x.text), "timestep": TIME, "img_shapes": shapes}


def _cogview(c: Any, x: Latents) -> dict[str, Any]:
    sizes = dict.fromkeys(("original_size", "target_size", "crop_coords"), (1, 2))
    return {**_image_and_text(c, x, c.text_embed_dim), **sizes}


def _cogvideox(c: Any, x: Latents) -> dict[str, Any]:
    channels, *space = x.video(c.in_channels)[1:]
    tokens = x.frames * (x.height // c.patch_size) * (x.width // c.patch_size) // (c.patch_size_t or 1)
    turns = ((tokens, c.attention_head_dim),) * 2 if c.use_rotary_positional_embeddings else None
    own = {"hidden_states": (1, space[0], channels, *space[1:]), "encoder_hidden_states": x.words(c.text_embed_dim)}
    return {**own, "timestep": TIME, "image_rotary_emb": turns}


def _video_and_text(c: Any, x: Latents, width: int) -> dict[str, Any]:
    return {"hidden_states": x.video(c.in_channels), "encoder_hidden_states": x.words(width), "timestep": TIME}


def _with_mask(inputs: dict[str, Any], x: Latents) -> dict[str, Any]:
    return {**inputs, "encoder_attention_mask": (1, x.text)}


def _ltx(c: Any, x: Latents) -> dict[str, Any]:
    own = {"hidden_states": x.packed(c.in_channels, patch=1), "encoder_hidden_states": x.words(c.caption_channels)}
    grid = {"num_frames": x.frames, "height": x.height, "width": x.width}
    return _with_mask({**own, "timestep": TIME, **grid}, x)


def _hunyuan_video(c: Any, x: Latents) -> dict[str, Any]:
    more = {"pooled_projections": (1, c.pooled_projection_dim), "guidance": TIME if c.guidance_embeds else None}
    return _with_mask({**_video_and_text(c, x, c.text_embed_dim), **more}, x)


LATTE: dict[str, Any] = {
    "sample_size": 64, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_layers": 28, "num_attention_heads": 16,
    "attention_head_dim": 72, "caption_channels": 4096, "cross_attention_dim": 1152, "norm_type": "ada_norm_single",
    "activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False,
}  # fmt: skip

INPUTS: dict[str, InputsOf] = {
    "DiTTransformer2DModel": InputsOf(_dit, size=(256, 256), published={"out_channels": 8}),
    "PixArtTransformer2DModel": InputsOf(_pixart, text=300, published={"caption_channels": 4096}),
    "SD3Transformer2DModel": InputsOf(_sd3, text=333),
    "FluxTransformer2DModel": InputsOf(_flux, text=512, patch=2, published={"guidance_embeds": True}),
    "Flux2Transformer2DModel": InputsOf(_flux2, text=512, patch=2),
    "ChromaTransformer2DModel": InputsOf(_packed, text=512, patch=2),
    "LongCatImageTransformer2DModel": InputsOf(_packed, text=512, patch=2),
    "OvisImageTransformer2DModel": InputsOf(_packed, text=256, patch=2),
    "AuraFlowTransformer2DModel": InputsOf(lambda c, x: _image_and_text(c, x, c.joint_attention_dim), text=256),
    "SanaTransformer2DModel": InputsOf(lambda c, x: _image_and_text(c, x, c.caption_channels), text=300, factor=32),
    "QwenImageTransformer2DModel": InputsOf(_qwen, text=512),
    "HunyuanImageTransformer2DModel": InputsOf(
        lambda c, x: _with_mask(_image_and_text(c, x, c.text_embed_dim), x), size=(2048, 2048), text=512, factor=32
    ),
    "PRXTransformer2DModel": InputsOf(lambda c, x: _image_and_text(c, x, c.context_in_dim), text=256),
    "CogView3PlusTransformer2DModel": InputsOf(_cogview, text=224),
    "CogView4Transformer2DModel": InputsOf(_cogview, text=224),
    "LatteTransformer3DModel": InputsOf(
        lambda c, x: _video_and_text(c, x, c.caption_channels), size=(512, 512), text=120, frames=16, published=LATTE
    ),
    "CogVideoXTransformer3DModel": InputsOf(_cogvideox, size=(480, 720), text=226, frames=13),
    "WanTransformer3DModel": InputsOf(lambda c, x: _video_and_text(c, x, c.text_dim), size=(480, 832), text=512, frames=21),
    "SkyReelsV2Transformer3DModel": InputsOf(
        lambda c, x: _video_and_text(c, x, c.text_dim), size=(544, 960), text=512, frames=25
    ),
    "AllegroTransformer3DModel": InputsOf(
        lambda c, x: _with_mask(_video_and_text(c, x, c.caption_channels), x), size=(720, 1280), text=512, frames=22
    ),
    "LTXVideoTransformer3DModel": InputsOf(_ltx, size=(512, 704), text=128, frames=21, factor=32),
    "HunyuanVideoTransformer3DModel": InputsOf(_hunyuan_video, size=(720, 1280), text=256, frames=33),
}


@dataclass
class Part:
    """A part's MACs by kind. `count` modules are one part, such as the same layer of all blocks."""

    part: str
    count: int
    macs: Counter[Kind] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        return {"part": self.part, "modules": self.count, "macs": self.macs.total(), **by_kind(self.macs)}


def by_kind(macs: Mapping[Kind, int]) -> dict[str, int]:
    """`{"macs_linear": ...}` for every kind."""
    return {f"macs_{kind}": macs.get(kind, 0) for kind in KINDS}


@dataclass(frozen=True)
class TransformerCount:
    """One call of the class `name` on `inputs`, batch 1. `attention` are the calls of attention by queries and keys; `unknown`
    the calls that were not counted and may hold arithmetic, by name; `ignored` what the configuration sets and the class of
    this version of diffusers does not know."""

    name: str
    parameters: int
    inputs: dict[str, Any]
    parts: list[Part]
    attention: Counter[tuple[int, int]]
    unknown: Counter[str]
    ignored: tuple[str, ...] = ()

    @property
    def macs(self) -> Counter[Kind]:
        return sum((part.macs for part in self.parts), Counter())

    @property
    def products(self) -> int:
        """Matrix products, convolutions and attention alone: half of what torch's counter says."""
        macs = self.macs
        return sum(macs[kind] for kind in PRODUCTS)

    def to_dict(self) -> dict[str, Any]:
        return {
            "class": self.name,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "macs": self.macs.total(),
            "macs_products": self.products,
            **by_kind(self.macs),
            "attention_calls": [
                {"queries": queries, "keys": keys, "calls": calls} for (queries, keys), calls in self.attention.items()
            ],
            "parts": [part.to_dict() for part in self.parts],
            "operations_without_handle": dict(self.unknown),
            "ignored_settings": list(self.ignored),
        }


class ByModule(Executed):
    """Counts each call for the module of `model` that makes it, by the module's name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules: dict[str, Counter[Kind]] = {}
        self.attention: Counter[tuple[int, int]] = Counter()
        self._open: list[str] = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda module, inputs, name=name: self._open.append(name))
            module.register_forward_hook(lambda module, inputs, output: self._close())

    def _close(self) -> None:
        self._open.pop()

    def add(self, macs: int, kind: Kind) -> None:
        super().add(macs, kind)
        self.modules.setdefault(self._open[-1], Counter())[kind] += macs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "scaled_dot_product_attention":
            query, key = (args[i] if i < len(args) else (kwargs or {})[name] for i, name in enumerate(("query", "key")))
            self.attention[query.shape[-2], key.shape[-2]] += 1
        return super().__torch_function__(func, types, args, kwargs)


def count_transformer(source: str | Path, options: CountOptions = CountOptions()) -> TransformerCount:
    """MACs of one call of one of diffusers' transformers: `source` is a class by its name, with its defaults, the folder of a
    model or of a pipeline, or a config.json. No weights are read and no memory is taken for them.

    Raises `DyditError` where it is none, for inputs that are not known or do not fit, and for a class that asks for the values
    of its inputs.
    """
    model, inputs, ignored = build(source, options)
    name, counted = type(model).__name__, ByModule(model)
    try:
        with torch.device("meta"), torch.no_grad(), counted:
            model(**tensors(inputs))
    except Exception as error:  # whatever the class makes of inputs that do not fit
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in inputs.items())
        raise DyditError(
            f"a {name} cannot be run on {shown}: {_line(error)}; give what fits with --size, --text-tokens or --input"
        ) from None
    return TransformerCount(
        name,
        sum(p.numel() for p in model.parameters()),
        {name: _shown(value) for name, value in inputs.items()},
        _parts(model, counted, options.depth),
        counted.attention,
        counted.unknown,
        ignored,
    )


def build(source: str | Path, options: CountOptions) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """The model on the meta device, its inputs by name, see `inputs_of`, and the settings that it does not know; raises as
    `count_transformer` does."""
    cls, config = find(source)
    name = cls.__name__
    if not config and name in INPUTS:
        config = dict(INPUTS[name].published)
    known = [key for key in inspect.signature(cls.__init__).parameters if key != "self"]
    ignored = tuple(key for key in config if key not in known)
    config = {key: value for key, value in config.items() if key in known}
    for key, value in map(parse_setting, options.setting):
        if key not in known:
            raise DyditError(f"a {name} has no {key!r} to set; it has {', '.join(known)}")
        config[key] = value
    try:
        with torch.device("meta"):
            model = cls(**config).eval()
    except Exception as error:  # whatever the class makes of a wrong value
        raise DyditError(f"{source}: no {name} can be built of its configuration: {_line(error)}") from None
    return model, inputs_of(model, options), ignored


def find(source: str | Path) -> tuple[Any, dict[str, Any]]:
    """The class and its configuration, less its notes; raises `DyditError` where `source` is none of diffusers'."""
    import diffusers

    path = Path(source)
    places = (path / "transformer" / "config.json", path / "config.json", path)
    file = next((place for place in places if place.is_file()), None)
    if file is None and path.exists():
        raise DyditError(f"{source}: has no config.json of a transformer")
    values = {"_class_name": str(source)} if file is None else read_json(file)
    name = values.get("_class_name") if isinstance(values, dict) else None
    cls = getattr(diffusers, name, None) if isinstance(name, str) and re.fullmatch(r"\w+", name) else None
    if not (inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin)):
        if file is not None and isinstance(values, dict) and values.get("format") == "dydit":
            raise DyditError(f"{source}: is a checkpoint of dydit's; see dydit inspect, or dydit profile")
        raise DyditError(
            f"{source}: neither a folder nor a class of a model of diffusers {diffusers.__version__}; name one, such as "
            "FluxTransformer2DModel"
        )
    return cls, {key: value for key, value in values.items() if not key.startswith("_")}


def inputs_of(model: Any, options: CountOptions) -> dict[str, Any]:
    """By name, as `InputsOf` makes them, those of `options.inputs` in place of its own."""
    name, config = type(model).__name__, model.config
    given, usual = dict(parse_input(text) for text in options.inputs), INPUTS.get(name)
    if usual is None:
        if not given:
            takes = [key for key, one in inspect.signature(model.forward).parameters.items() if one.default is one.empty]
            raise DyditError(
                f"the inputs of a {name} are not known; give each by its shape, such as --input hidden_states=1x4096x64: it "
                f"takes {', '.join(takes)}"
            )
        return given
    for option, asked, has in (("text-tokens", options.text_tokens, usual.text), ("frames", options.frames, usual.frames > 1)):
        if asked and not has:
            raise DyditError(f"a {name} takes no {option.replace('-tokens', '')}; leave --{option} out")
    factor, patch = options.factor or usual.factor, usual.patch or config.get("patch_size") or 1
    sample = config.get("sample_size")
    own = (sample * factor, sample * factor) if isinstance(sample, int) else usual.size
    height, width = options.size or own
    cell = factor * (patch if isinstance(patch, int) else patch[-1])
    if height % cell or width % cell:
        raise DyditError(f"{height}x{width} pixels are no whole number of tokens, each of {cell}x{cell}; choose multiples")
    latents = Latents(height // factor, width // factor, options.frames or usual.frames, options.text_tokens or usual.text)
    return {**usual.make(config, latents), **given}


def parse_input(text: str) -> tuple[str, Any]:
    """`mask=1x77:int` as its name and its shape; raises `DyditError` for anything else."""
    found = re.fullmatch(r"(\w+)=(\d+(?:x\d+)*)(:int)?", text)
    if not found:
        raise DyditError(f"--input {text}: write it as NAME=SHAPE, such as hidden_states=1x4096x64, or mask=1x77:int")
    shape = tuple(int(side) for side in found[2].split("x"))
    return found[1], Whole(shape) if found[3] else shape


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(side, int) for side in value)


def tensors(inputs: Any) -> Any:
    """Shapes as tensors on the default device, wherever they stand; lists stay as they are."""
    if isinstance(inputs, dict):
        return {name: tensors(value) for name, value in inputs.items()}
    if isinstance(inputs, Whole):
        return torch.zeros(inputs.shape, dtype=torch.long)
    if _is_shape(inputs):
        return torch.zeros(inputs)
    return tuple(tensors(value) for value in inputs) if isinstance(inputs, tuple) else inputs


def _shown(value: Any) -> str:
    """`1x4096x64`."""
    if isinstance(value, Whole):
        return _shown(value.shape)
    if _is_shape(value):
        return "x".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return " and ".join(_shown(one) for one in value) if isinstance(value, tuple) else json.dumps(value)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _parts(model: nn.Module, counted: ByModule, depth: int) -> list[Part]:
    """The model's modules, `depth` names deep, in its own order; the modules of a list are one part."""

    def part_of(name: str) -> str:
        names = name.split(".")
        kept, left = [], depth
        for one in names:
            if not one.isdecimal():
                if not left:
                    break
                left -= 1
            kept.append("*" if one.isdecimal() else one)
        return ".".join(kept)

    parts: dict[str, Part] = {}
    modules: dict[str, set[str]] = {}
    for name in (name for name, _ in model.named_modules() if name in counted.modules):
        key = part_of(name)
        parts.setdefault(key, Part(key or type(model).__name__, 0)).macs.update(counted.modules[name])
        modules.setdefault(key, set()).add(".".join(name.split(".")[: key.count(".") + 1]))
    for key, part in parts.items():
        part.count = len(modules[key])
    return list(parts.values())

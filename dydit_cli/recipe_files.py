"""Recipes that state only how they differ from another: `base = "../other.toml"`; their kinds, and those that ship."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dydit_cli.errors import DyditError
from dydit_cli.files import read_text
from dydit_cli.seeds import LARGEST

KEY = "base"

MAX_BASES = 20

LARGEST_RECIPE = 1_000_000  # bytes


# the sections that a recipe of one kind has and another's has not, and the commands that run it
KINDS = {
    "training": (frozenset({"train", "routing", "calibration", "lora"}), "dydit finetune or pretrain"),
    "study": (frozenset({"finetune", "methods", "evaluation", "timing", "seeds", "keep_checkpoints"}), "dydit study"),
}


def kind_of(values: Mapping[str, Any]) -> str:
    """Of a training, or of a study, by the names of its sections; a study's model is a checkpoint, a training's a section."""
    if isinstance(values.get("model"), str):
        return "study"
    return max(KINDS, key=lambda kind: len(KINDS[kind][0] & values.keys()))


@dataclass(frozen=True)
class Merged:
    """A recipe's values with those of its bases below them; `files` maps `section.key` to the file that gave it, and `chain`
    is the recipe's own file, then its base, and so on."""

    values: dict[str, Any]
    files: dict[str, Path]
    chain: tuple[Path, ...]

    def file(self, location: str, top: Path) -> Path:
        """Where the value at `location`, or the section around it, was written; `top` for what nobody wrote."""
        return self.files.get(location) or self.files.get(location.rpartition(".")[0]) or top


def read_merged(path: Path) -> Merged:
    """Reads a TOML file and the chain of its bases.

    A base is a path relative to the file that names it, or the name of a shipped recipe. Raises `DyditError` where one is
    missing, no TOML or elsewhere, or the chain is a circle or too long.
    """
    chain, layers = [path], [_read(path, None)]
    while (base := layers[-1].pop(KEY, None)) is not None:
        below = _find_base(chain[-1], base)
        if os.path.realpath(below) in map(os.path.realpath, chain):
            names = " -> ".join(other.name for other in (*chain, below))
            raise DyditError(f"{chain[-1]}: its bases run in a circle: {names}")
        if len(chain) > MAX_BASES:
            raise DyditError(f"{path}: stands on more than {MAX_BASES} bases, one on the other; write some of them together")
        layers.append(_read(below, chain[-1]))
        chain.append(below)
    values: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for file, layer in zip(reversed(chain), reversed(layers), strict=True):
        for name, value in layer.items():
            files[name] = file
            if isinstance(value, dict):
                files |= {f"{name}.{key}": file for key in value}
            # a section replaces single keys of its base's; anything else replaces the whole
            both = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if both else value
    return Merged(values, files, tuple(chain))


def _find_base(path: Path, base: Any) -> Path:
    """The file that the recipe `path` calls `base`: in its own folder, below that or in a neighbouring one, or shipped."""
    if not isinstance(base, str):
        raise DyditError(f"{path}: 'base' is {repr(base)[:80]}; it must be the path of another recipe, relative to this one")
    below, folder = path.parent / base, Path(os.path.realpath(path.parent))
    if not os.path.isfile(below) and (shipped := _shipped(base)):
        return shipped
    root = folder.parent if len(folder.parents) > 1 else folder
    if Path(base).is_absolute() or "\0" in base or root not in Path(os.path.realpath(below)).parents:
        raise DyditError(
            f"{path}: its base {base[:80]!r} is not in the recipes' own folders; a base lies beside the recipe, below it or in "
            "a folder beside its own, or is a shipped recipe's name, such as digits/finetune"
        )
    return below


def _read(path: Path, named_by: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path, LARGEST_RECIPE))
    except FileNotFoundError:
        if named_by is not None:
            raise DyditError(
                f"{named_by}: no base {path}; a base is the path of a recipe, relative to this one, or a shipped one's name"
            ) from None
        raise DyditError(f"{path}: no such recipe; give a TOML file, or a shipped one's name: dydit recipes ls") from None
    except RecursionError:
        raise DyditError(f"{path}: not a readable TOML recipe: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise DyditError(f"{path}: not a readable TOML recipe: {getattr(error, 'strerror', None) or error}") from None


# in an installed package the recipes lie inside it, in a checkout beside it
_PACKAGE = Path(__file__).parent

SHIPPED = next((folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if folder.is_dir()), _PACKAGE)


Seed = Annotated[int, Field(ge=0, le=LARGEST)]


class Section(BaseModel):
    """A table of a recipe: unknown keys are refused, and numbers that are not finite or need more than 64 bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"the number must lie between -{LARGEST} and {LARGEST}")
        return value


class RecipeFile(Section):
    """What a whole file holds; `kind` is one of `KINDS`."""

    kind: ClassVar[str]


def find_recipe(name: str | Path) -> Path:
    """A recipe's file: a path, or the name of one that ships with dydit, such as `digits/finetune`."""
    return Path(name) if os.path.isfile(name) else _shipped(name) or Path(name)


def shipped_recipes() -> list[str]:
    """The names of those that ship, in order."""
    return sorted(name for path in SHIPPED.rglob("*.toml") if (name := shipped_name(path)))


def shipped_name(path: Path) -> str | None:
    """`digits/finetune` for that recipe's file, None for one that does not ship."""
    file = Path(os.path.realpath(path))
    folder = Path(os.path.realpath(SHIPPED))
    return file.relative_to(folder).with_suffix("").as_posix() if folder in file.parents else None


def _shipped(name: str | Path) -> Path | None:
    """The shipped recipe of this name, None where there is none."""
    file = SHIPPED / f"{name}.toml"
    return file if SHIPPED in Path(os.path.normpath(file)).parents and os.path.isfile(file) else None


def parse_setting(text: str) -> tuple[str, Any]:
    """`train.lr=1e-4` as its key and its value; what is no TOML is a string. Raises `DyditError` without a key."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise DyditError(f"--set {text}: write it as KEY=VALUE, for instance --set train.lr=1e-4")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except RecursionError:
        raise DyditError(f"--set {key.strip()}: its value is nested too deeply") from None


def first_fault(error: ValidationError) -> Any:
    """The fault to report: an unknown key is the likeliest cause of a missing one."""
    faults = error.errors()
    return next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])


def explain(error: ValidationError, sections: Sequence[type[BaseModel]]) -> str:
    """The first fault in one line; for an unknown key, the nearest one of `sections`."""
    first = first_fault(error)
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [name for section in sections for name in section.model_fields]
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return f"unknown key {location!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if first["type"] == "missing":
        return f"{location!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{location!r}: {message[:1].lower() + message[1:]}, not {repr(first['input'])[:80]}" if location else message

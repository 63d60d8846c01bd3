"""Recipes that state only how they differ from another: `base = "../other.toml"`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dydit_cli.errors import DyditError

KEY = "base"


@dataclass(frozen=True)
class Merged:
    """A recipe's values with those of its bases below them; `files` says which file gave each, by `section.key`."""

    values: dict[str, Any]
    files: dict[str, Path]

    def file(self, location: str, top: Path) -> Path:
        """Where the value at `location`, or the section around it, was written; `top` for what nobody wrote."""
        return self.files.get(location) or self.files.get(location.rpartition(".")[0]) or top


def read_merged(path: Path, above: tuple[Path, ...] = ()) -> Merged:
    """Reads a TOML file and the chain of its bases, each path relative to the file that names it.

    `above` are the files that led here. Raises `DyditError` where one is missing or no TOML, or the chain is a circle.
    """
    values = _read(path, above)
    base = values.pop(KEY, None)
    if base is None:
        return Merged(values, _places(values, path))
    if not isinstance(base, str):
        raise DyditError(f"{path}: 'base' is {base!r}; it must be the path of another recipe, relative to this one")
    chain, below = (*above, path), path.parent / base
    if below.resolve() in (other.resolve() for other in chain):
        raise DyditError(f"{path}: its bases run in a circle: {' -> '.join(other.name for other in (*chain, below))}")
    merged = read_merged(below, chain)
    both = dict(merged.values)
    for name, value in values.items():
        # a section replaces single keys of its base's; anything else replaces the whole
        both[name] = {**both[name], **value} if isinstance(value, dict) and isinstance(both.get(name), dict) else value
    return Merged(both, {**merged.files, **_places(values, path)})


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if above:
            raise DyditError(f"{above[-1]}: no base {path}; a base is the path of a recipe, relative to this one") from None
        raise DyditError(f"{path}: no such recipe; recipes are TOML files, see the folder recipes/") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DyditError(f"{path}: not a readable TOML recipe: {error}") from None


def _places(values: dict[str, Any], path: Path) -> dict[str, Path]:
    places = dict.fromkeys(values, path)
    for section, inside in values.items():
        if isinstance(inside, dict):
            places |= {f"{section}.{key}": path for key in inside}
    return places


# in an installed package the recipes lie inside it, in a checkout beside it
_PACKAGE = Path(__file__).parent

SHIPPED = next((folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if folder.is_dir()), _PACKAGE)


class Section(BaseModel):
    """A table of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def find_recipe(name: str | Path) -> Path:
    """A recipe's file: a path, or the name of one that ships with dydit, such as `digits/finetune`."""
    shipped = SHIPPED / f"{name}.toml"
    return shipped if not Path(name).is_file() and shipped.is_file() else Path(name)


def parse_setting(text: str) -> tuple[str, Any]:
    """`train.lr=1e-4` as its key and its value; what is no TOML is a string. Raises `DyditError` without a key."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise DyditError(f"--set {text}: write it as KEY=VALUE, for instance --set train.lr=1e-4")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def first_fault(error: ValidationError) -> Any:
    """The fault to tell of: an unknown key is the likeliest cause of a missing one."""
    faults = error.errors()
    return next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])


def explain(error: ValidationError, sections: Sequence[type[BaseModel]]) -> str:
    """The first fault in one line; for an unknown key, the nearest of those that `sections` know."""
    first = first_fault(error)
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [name for section in sections for name in section.model_fields]
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return f"unknown key {location!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if first["type"] == "missing":
        return f"{location!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{location!r}: {message[:1].lower() + message[1:]}, not {first['input']!r}" if location else message

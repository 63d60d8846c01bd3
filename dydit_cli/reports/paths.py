"""A page travels: absolute paths are cut to their last part, since names of folders are enough."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import PurePath, PureWindowsPath
from typing import Any, TypeVar

from dydit_cli.artifacts.base import Artifact

AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)

# what holds a path, or may
PATHS = {"checkpoint", "source", "samples", "reference", "vae", "recipe", "data", "model"}

ABSOLUTE = re.compile(r"(?<![\w/.:~-])(?:~?/|[A-Za-z]:[\\/])[^\s,;:'\"<>()]*[^\s,;:'\"<>().]")

WORD = re.compile(r"((?:[\w.-]+=)?(?:\w{2,}:)?)(~?/.*|[A-Za-z]:[\\/].*)", re.DOTALL)  # --out=/a, data=latents:/a, /a


def short(text: str) -> str:
    """`text` with every absolute path in it cut to its last part."""
    return ABSOLUTE.sub(lambda found: _last(found.group()), text)


def short_command(command: str) -> str:
    """Command lines with the absolute paths among their words cut; relative ones stay as they were given."""

    def cut(word: str) -> str:
        path = WORD.fullmatch(word)
        return path.group(1) + _last(path.group(2)) if path else short(word)

    try:
        return "\n".join(shlex.join(map(cut, shlex.split(line))) for line in command.splitlines())
    except ValueError:  # quotes that do not match: nobody's command
        return short(command)


def name_of(path: str) -> str:
    """The last part of a path, or of `latents:PATH`."""
    scheme, colon, rest = path.partition(":")
    if colon and len(scheme) > 1:
        return f"{scheme}:{_last(rest)}"
    return _last(path)


def scrubbed(value: Any, key: str = "") -> Any:
    """JSON values without paths: those of `PATHS` are cut to their last part, commands and other strings where a path is
    absolute."""
    if isinstance(value, Mapping):
        return {name: scrubbed(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [scrubbed(inner, key) for inner in value]
    if isinstance(value, Artifact):
        return without_paths(value)
    if isinstance(value, str):
        if key == "command":
            return short_command(value)
        return name_of(value) if key in PATHS and not value.startswith("DiT-") else short(value)
    return value


def without_paths(artifact: AnyArtifact) -> AnyArtifact:
    """The artifact with every value of it scrubbed."""
    values = {field.name: scrubbed(getattr(artifact, field.name), field.name) for field in fields(artifact)}  # type: ignore[arg-type]
    return replace(artifact, **values)  # type: ignore[type-var]


def _last(path: str) -> str:
    windows = PureWindowsPath(path)
    return (windows.name if windows.drive else PurePath(path).name) or path

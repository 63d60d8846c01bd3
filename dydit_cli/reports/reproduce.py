"""How to come by a result again: the command lines that were stored with it, and recipes as TOML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dydit_cli.bundled import MODELS
from dydit_cli.reports.section import Origin

MAKING = ("pretrain", "convert", "prune", "finetune")  # actions of a lineage that are commands of their own


def how_made(name: str, values: Mapping[str, Any], lineage: Sequence[Mapping[str, Any]] = ()) -> Origin:
    """Of what has its command in `values` and was made from a model with this `lineage`."""
    model = Origin() if values.get("checkpoint") in MODELS else origin_of_model(name, lineage)
    if "command" in values:
        return replace(model, commands=str(values["command"]).splitlines())
    return replace(model, unstored=[name, *model.unstored])


def origin_of_model(name: str, lineage: Sequence[Mapping[str, Any]]) -> Origin:
    """The commands of a lineage; that a bundled model has none is not worth a word."""
    bundled = max((i for i, step in enumerate(lineage) if step.get("source") in MODELS), default=0)
    without = [step["action"] for step in lineage[bundled:] if "command" not in step and step.get("action") in MAKING]
    commands = [line for step in lineage for line in str(step.get("command", "")).splitlines()]
    return Origin(steps=commands, unstored=[f"{name} ({', '.join(without)})"] if without else [])


def into_file(command: str | None, name: str) -> dict[str, str]:
    """`{"command": ...}`, its output redirected into the file `name` where it names no file itself; empty for None."""
    if command is None:
        return {}
    named = {"--out", "-o"} & {word.partition("=")[0] for word in shlex.split(command)}
    return {"command": command if named else f"{command} --json > {shlex.quote(name)}"}


def as_toml(values: Mapping[str, Any]) -> str:
    """A recipe as TOML: plain values first, then a section for each mapping; what is unset is left out."""
    plain = [f"{key} = {_toml(value)}" for key, value in values.items() if not _is_empty(value)]
    sections = [
        "\n".join([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in inner.items() if value is not None)])
        for name, inner in values.items()
        if isinstance(inner, Mapping)
    ]
    return "\n\n".join(["\n".join(plain), *sections]) + "\n"


def _is_empty(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _toml(value: Any) -> str:
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)

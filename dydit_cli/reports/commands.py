"""How to come by a result again: commands from what a lineage and a protocol hold, recipes as TOML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dydit_cli.bundled import MODELS

SAMPLING = ("sampler", "steps", "cfg", "cfg_channels", "cfg_interval", "spacing", "execution", "dtype", "seed")


def command(name: str, *arguments: object, **options: object) -> str:
    """`dydit name arguments --option value`; None leaves an option out, True is a flag."""
    words = ["dydit", name, *(str(argument) for argument in arguments)]
    for option, value in options.items():
        if value is None or value is False:
            continue
        words.append("--" + option.replace("_", "-"))
        if value is not True:
            words.append(_word(value))
    return shlex.join(words)


def sampling(name: str, values: Mapping[str, Any], keys: Sequence[str], **options: object) -> str:
    """A command on `values["checkpoint"]` with the sampling options among `keys`."""
    known = {key: values[key] for key in keys if values.get(key) is not None and values.get(key) != "static"}
    if list(known.get("cfg_interval", ())) == [0, 999]:
        del known["cfg_interval"]
    return command(name, values.get("checkpoint", "CKPT"), **known, **options)


def lineage_commands(lineage: Sequence[Mapping[str, Any]], name: str, recipe: str | None = None) -> list[str]:
    """A line for each step of a lineage that ends in the folder `name`, its last training with the file `recipe`."""
    lines = []
    for i, step in enumerate(lineage):
        last = i == len(lineage) - 1
        target = name if last else str(lineage[i + 1].get("source", "DST"))
        source = str(step.get("source", "CKPT"))
        if step.get("action") == "convert":
            lines.append(command("convert", source, target, ranking=step.get("ranking")))
        elif step.get("action") == "prune":
            lines.append(command("prune", source, method=step.get("method"), keep=step.get("keep"), out=target))
        elif step.get("action") == "finetune" and last and recipe:
            lines.append(command("finetune", source, recipe=recipe, out=target))
        elif step.get("action") == "finetune":
            asked = {key: step.get(key) for key in ("flops_ratio", "data", "steps", "batch_size", "seed")}
            lines.append(command("finetune", source, **asked, out=target))
        elif step.get("action") == "pretrain" and target not in MODELS:
            lines.append(command("pretrain", recipe if last and recipe else "RECIPE", out=target))
    return lines


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


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_word(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Recipes as files: which there are, what one comes to with its bases, a copy to edit, and whether one would run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dydit_cli.errors import DyditError, naming
from dydit_cli.files import check_output, read_text, write_text
from dydit_cli.recipe_files import KEY, Merged, find_recipe, kind_of, read_merged, shipped_name, shipped_recipes


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe, unchecked. `name` is the shipped one's, else the path; `kind` training or study; `command` and `summary` are
    what the comments at the file's top say, empty where they do not; `files` its own path, its base's, and so on."""

    name: str
    kind: str
    command: str
    summary: str
    files: tuple[Path, ...]
    merged: Merged

    def to_dict(self) -> dict[str, Any]:
        files = [str(path) for path in self.files]
        return {"name": self.name, "kind": self.kind, "command": self.command, "summary": self.summary, "files": files}


def describe(name: str | Path) -> RecipeFacts:
    """A shipped recipe, or a file; raises `DyditError` where it or one of its bases cannot be read."""
    path = find_recipe(name)
    merged = read_merged(path)
    first, *rest = _comments(path) or [""]
    if not first.startswith("dydit "):
        first, rest = "", [first, *rest]
    shipped = shipped_name(path)
    return RecipeFacts(shipped or str(path), kind_of(merged.values), first, " ".join(rest).strip(), merged.chain, merged)


def shipped() -> list[RecipeFacts]:
    """All that ship, by name."""
    return [describe(name) for name in shipped_recipes()]


def _comments(path: Path) -> list[str]:
    """The lines of the comment that a file begins with."""
    lines = read_text(path).splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").strip() for line in lines[:first]]


def as_toml(merged: Merged, marked: bool = True) -> str:
    """All values in one file; with `marked` each of a base's is followed by that file's name."""

    def line(key: str, value: Any, location: str) -> str:
        file = merged.files.get(location, merged.chain[0])
        comment = f"  # {shipped_name(file) or file}" if marked and file != merged.chain[0] else ""
        return f"{key} = {_value(value)}{comment}"

    plain = [line(name, value, name) for name, value in merged.values.items() if not isinstance(value, dict)]
    lines = [*plain, ""] if plain else []
    for name, section in merged.values.items():
        if isinstance(section, dict):
            inside = [line(key, value, f"{name}.{key}") for key, value in section.items()]
            lines += [f"[{name}]", *inside, ""]
    return "\n".join(lines[:-1]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    # JSON's strings, numbers, truth values and lists of these are TOML's too
    return json.dumps(value, ensure_ascii=False, default=str)


def copy(name: str | Path, destination: str | Path, *, flat: bool = False, force: bool = False) -> Path:
    """Writes the recipe `name` to `destination`, to be edited: with its comments, and on the same base by its shipped name,
    or, `flat`, with all of its bases' values in one file.

    Raises `DyditError` for one whose base does not ship (without `flat`), and where `destination` exists (without `force`).
    """
    destination = check_output(destination, force)
    facts = describe(name)
    path, *bases = facts.files
    text, top = read_text(path), ""
    if flat:
        top = "".join(f"# {line}\n" for line in _comments(path))
        text = top + as_toml(facts.merged, marked=False)
    elif bases:
        base = shipped_name(bases[0])
        if base is None:
            raise DyditError(
                f"{path}: its base {bases[0]} does not ship, so a copy elsewhere would lose it; copy it with --flat"
            )
        text = re.sub(rf"^{KEY}\s*=.*$", f"{KEY} = {json.dumps(base)}", text, count=1, flags=re.MULTILINE)
    shown = re.escape(facts.name)
    text = re.sub(
        rf"^(# dydit .*?)\S*{shown}(\.toml)?(?=\s|$)", lambda found: found[1] + shlex.quote(str(destination)), text, count=1
    )
    write_text(destination, text)
    return destination


def check(name: str | Path) -> RecipeFacts:
    """The recipe, of which a run would begin, as far as that can be told without its checkpoint and its data.

    Raises `DyditError` at the first fault, naming the file, the key and the mend.
    """
    from dydit_cli.studies.recipe import read_study
    from dydit_cli.train.recipe import read_recipe

    facts = describe(name)
    if facts.kind == "study":
        study = read_study(facts.files[0])
        rest: Sequence[tuple[str, Callable[[], object]]] = list(_of_a_study(study))
    else:
        rest = list(_of_a_training(read_recipe(facts.files[0])))
    for key, done in rest:
        with naming(facts.merged.file(key, facts.files[0])), _key(key):
            done()
    return facts


@contextmanager
def _key(key: str) -> Iterator[None]:
    """Lets a `DyditError` of the block name the key at fault, where it does not."""
    try:
        yield
    except DyditError as error:
        text = str(error)
        raise DyditError(text if f"'{key}" in text else f"{key!r}: {text}") from None


def _of_a_training(recipe: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is checked beside the values themselves, each under its key."""
    from dydit_cli.checkpoint.read import find
    from dydit_cli.data.load import find_source
    from dydit_cli.train.recipe import for_model
    from dydit_cli.train.run import config_of

    yield "data", lambda: find_source(recipe.data)
    yield "calibration", lambda: recipe.calibration.settings
    if recipe.model is not None:
        yield "model", lambda: config_of(recipe.model)
        yield "calibration", lambda: for_model(recipe, config_of(recipe.model))
    if recipe.train.teacher is not None:
        yield "train.teacher", lambda: find(recipe.train.teacher)


def _of_a_study(study: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    from dydit_cli.checkpoint.read import find, read
    from dydit_cli.checkpoint.tensors import headers_alone
    from dydit_cli.data.load import find_source
    from dydit_cli.evaluate.registry import find_judge
    from dydit_cli.train.recipe import read_recipe

    def sampled() -> None:
        with headers_alone():
            study.evaluation.for_model(read(study.model).config)

    yield "model", lambda: find(study.model)
    yield "data", lambda: find_source(study.data)
    yield "evaluation", lambda: sampled() if find(study.model) else study.evaluation.settings
    for name in ("dynamic", "static"):
        yield f"finetune.{name}", lambda name=name: read_recipe(getattr(study.finetune, name))  # type: ignore[misc]
    for judge in study.evaluation.judges:
        yield "evaluation.features", lambda judge=judge: find_judge(judge)  # type: ignore[misc]

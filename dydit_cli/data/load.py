"""Data sets by name."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from dydit_cli.data.dataset import Dataset
from dydit_cli.data.registry import SOURCES, DataSource
from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig
from dydit_cli.recipe_files import SHIPPED

for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):  # each registers its data set
    importlib.import_module(f"{__package__}.{_module.name}")


def find_source(name: str) -> tuple[DataSource, str]:
    """The source that `name` means, and the path behind its colon or ""; raises `DyditError` for an unknown name."""
    first, colon, path = name.partition(":")
    source = SOURCES.get(first)
    if source is not None and bool(path) == source.takes_path and (path or not colon):
        return source, path
    hint = f"; {first} wants a path" if source is not None and source.takes_path else ""
    hint = f"; for a folder of pictures write imagefolder:{name}" if not colon and Path(name).is_dir() else hint
    raise DyditError(f"no data set {name!r}; choose one of {', '.join(known_names())}{hint}")


def known_names() -> list[str]:
    """What can be written after `--data`."""
    return [SOURCES[name].usage for name in sorted(SOURCES)]


def load_data(name: str, config: ModelConfig | None = None) -> Dataset:
    """The training part of the data set `name`, for a model of `config`, whose size pictures are cropped to.

    Raises `DyditError` for an unknown name, data that cannot be read, or pixels for a model of latents; `Dataset.check`
    raises where the rest does not fit.
    """
    source, path = find_source(name)
    return source.load(path, config)


def load_held_out(name: str, config: ModelConfig | None = None) -> Dataset | None:
    """The held-out part of the data set `name`, None where it has none; raises as `load_data` does."""
    source, path = find_source(name)
    return source.load_held_out(path, config)


def default_data(trained_on: str | None, config: ModelConfig) -> str:
    """The data set that a model of `config` was `trained_on`; a model without a record that takes digits gets them.

    Raises `DyditError` for any other without a record.
    """
    if trained_on is None:
        try:
            load_data("digits").check(config)
        except DyditError:
            names = ", ".join(known_names())
            raise DyditError(f"the model has no record of what it was trained on; name data with --data: {names}") from None
    return trained_on or "digits"


def default_recipe(name: str) -> str | None:
    """The shipped recipe that fine-tunes a model of the data set `name`; None where there is none."""
    recipe = f"{name.partition(':')[0]}/finetune"
    return recipe if name.partition(":")[0] in SOURCES and (SHIPPED / f"{recipe}.toml").is_file() else None

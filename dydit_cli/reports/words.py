"""The templates of the page and of its sentences."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError, select_autoescape

from dydit_cli import units


@cache
def environment() -> Environment:
    """HTML is escaped, plain text (.txt) is not; a name that is missing is an error."""
    made = Environment(
        loader=PackageLoader("dydit_cli.reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"macs": units.macs, "share": units.share, "time": units.seconds, "f": format}
    return made


def words(template: str, **values: Any) -> str:
    """The sentences of a template `NAME.txt`, on one line. Raises `KeyError` where it wants a value that is not there."""
    try:
        return " ".join(environment().get_template(f"{template}.txt").render(values).split())
    except UndefinedError as error:
        raise KeyError(str(error)) from None


def asset(name: str) -> str:
    """The text of a file beside the templates, as it is."""
    return (files("dydit_cli.reports") / "templates" / name).read_text(encoding="utf-8")

"""From a command's function to what typer runs: each dataclass among its parameters becomes options, and arrives filled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from dydit_cli.options import Arg, Opt, Without
from dydit_cli.provenance import as_command


class Typed:
    """What was typed of a command. `options`: those given, as the help names them; `again`: the same command once more."""

    def __init__(self, context: typer.Context) -> None:
        self.options = [
            param.opts[0] if param.opts[0].startswith("-") else getattr(param, "metavar", None) or param.opts[0]
            for param in context.command.params
            if (source := context.get_parameter_source(str(param.name))) is not None
            and source.name == "COMMANDLINE"
            and context.params.get(str(param.name)) not in ((), [])
        ]
        self.again = as_command(context.find_root().obj, without={"--force"})  # which would begin anew

    def other_than(self, *allowed: str) -> str | None:
        """The first option that is none of `allowed`."""
        return next((option for option in self.options if option not in allowed), None)

    @contextmanager
    def continues(self) -> Iterator[None]:
        """Around work that the same command continues: Ctrl-C says so."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; continue with: {self.again}") from None


def typed(function: Callable[..., None]) -> Callable[..., None]:
    """`function` for typer: an option for every `Opt` among its parameters and in the dataclasses among them."""
    hints, defaults = _hints(function), {p.name: p.default for p in inspect.signature(function).parameters.values()}
    options = list(_options(hints, defaults))
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def command(context: typer.Context, **values: Any) -> None:
        for name, note, _, _ in options:
            if isinstance(note, Opt) and note.parse is not None:
                text = values.pop(name)
                values |= {} if text is None else {name: note.parse(text)}
        function(**_filled(hints, values, context))

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [context, *(_parameter(*option) for option in options)]
    )
    return command


Described = tuple[str, Opt | Arg, Any, Any]  # the name of an option, what describes it, its type and its default


def _hints(owner: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(owner, include_extras=True).items() if name != "return"}


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type and what `Annotated` says beside it."""
    base, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    return base, tuple(notes)


def _own(base: Any, notes: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of a dataclass that are options where it stands."""
    without = next((note.names for note in notes if isinstance(note, Without)), ())
    return {name: hint for name, hint in _hints(base).items() if name not in without}


def _options(hints: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Described]:
    for name, hint in hints.items():
        base, notes = _split(hint)
        if is_dataclass(base):
            yield from _options(_own(base, notes), {field.name: field.default for field in fields(base)})
        else:
            yield from ((name, note, base, defaults[name]) for note in notes if isinstance(note, Opt | Arg))


def _parameter(name: str, note: Opt | Arg, base: Any, default: Any) -> inspect.Parameter:
    """As typer understands it."""
    if get_origin(base) in (Union, UnionType):
        base = next(part for part in get_args(base) if part is not type(None))
    if get_origin(base) is Sequence:
        base, default = list[get_args(base)[0]], list(default) if isinstance(default, tuple) else default  # type: ignore[misc]
    if default is MISSING:
        default = inspect.Parameter.empty
    names = note.complete
    offered = None if names is None else lambda incomplete: [one for one in names() if one.startswith(incomplete)]
    if isinstance(note, Arg):
        info = typer.Argument(metavar=note.metavar, help=note.help, autocompletion=offered)
    else:
        text, metavar = note.help, note.metavar
        if note.parse is not None:
            base, default = note.of, None
        if note.choices is not None:
            base = Literal[*note.choices()]
        if get_origin(base) is Literal:
            words = [str(word) for word in get_args(base)]
            if not all(word in text for word in words):
                text = f"{text.removesuffix('.')}: {', '.join(words[:-1])} or {words[-1]}."
            metavar = metavar or ("|".join(words) if len(words) < 3 else "WORD")  # a longer one would be cut
        flag = "--" + name.replace("_", "-")
        switch = f"{flag}/--no-{flag[2:]}" if base is bool and default else flag
        info = typer.Option(
            *(note.names or (switch,)), help=text, metavar=metavar, min=note.min, show_default=note.default or True,
            autocompletion=offered,
        )  # fmt: skip
    annotation: Any = Annotated[base | None if default is None else base, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _filled(hints: dict[str, Any], values: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """What has an option or options, by name; what was not typed and has no value here keeps its default."""
    filled: dict[str, Any] = {}
    for name, hint in hints.items():
        base, notes = _split(hint)
        if base is Typed:
            filled[name] = Typed(context)
        elif is_dataclass(base):
            filled[name] = base(**_filled(_own(base, notes), values, context))  # type: ignore[operator]
        elif name in values and any(isinstance(note, Opt | Arg) for note in notes):
            filled[name] = values[name]
    return filled

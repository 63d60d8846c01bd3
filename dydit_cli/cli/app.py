"""The command `dydit`: finds its commands, and makes one line of every error."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from dydit_cli.cli import commands, console
from dydit_cli.cli.build import typed
from dydit_cli.errors import DyditError
from dydit_cli.provenance import as_command, made_with
from dydit_cli.version import __version__

MARKUP: dict[str, Any] = {"rich_markup_mode": "markdown", "context_settings": {"help_option_names": ["-h", "--help"]}}


class Commands(TyperGroup):
    """The modules of `package`. A module is imported when its command runs: for the list its docstring is enough.

    A package among them is a group of commands, such as `dydit recipes ls`. Every error is one line on stderr: 2 for the
    user's mistakes, 130 for Ctrl-C, 1 for a fault of ours.
    """

    def __init__(self, *, package: ModuleType = commands, **settings: Any) -> None:
        panels = {name: panel for panel, listed in package.PANELS.items() for name in listed}
        listed = {
            name: TyperCommand(name, help=docstring(name, package), rich_help_panel=panels.get(name)) for name in names(package)
        }
        super().__init__(**{**settings, "commands": listed})
        self._package = package

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in self.commands:
            self.commands[args[0]] = load(args[0], self._package)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # typer would leave without a word
            raise typer.Abort(*stop.args) from None

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        try:
            with made_with(as_command(words)):
                code = super().main(args, *more, **{**extra, "standalone_mode": False, "obj": words})
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk shows itself here at the latest
        except DyditError as error:
            code = fail(f"error: {error}", 2)
        except typer.Abort as stop:
            code = fail(str(stop) or "interrupted", 130)
        except OSError as error:
            if os.environ.get("DYDIT_TRACEBACK"):
                raise
            code = fail(f"error: {error.filename or 'output'}: {error.strerror or error}", 2)
            sys.stdout = None  # what is left in it would be tried, and fail, once more
        except Exception as error:
            # typer's own usage errors can say themselves in one line; what cannot is a fault of ours
            if hasattr(error, "format_message"):
                context = getattr(error, "ctx", None)
                command = context.command_path if context else "dydit"
                message = error.format_message().replace(": Value error, ", ": ")
                # without a message it is the help that was shown, for want of a command
                code = fail(f"error: {message} (see {command} --help)", 2) if message else 2
            elif os.environ.get("DYDIT_TRACEBACK"):
                raise
            else:
                hint = "DYDIT_TRACEBACK=1 shows where; please report it"
                code = fail(f"error: internal error: {type(error).__name__}: {error} ({hint})", 1)
        sys.exit(code if isinstance(code, int) else 0)


def names(package: ModuleType = commands) -> list[str]:
    """The commands and groups of `package`, in the order of `--help`."""
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    listed = [name for panel in package.PANELS.values() for name in panel if name in modules]
    return listed + sorted(modules - set(listed))


def every_command(package: ModuleType = commands) -> list[tuple[str, ...]]:
    """The words of each: `("convert",)`, `("recipes", "ls")`."""
    return [
        (module.name, *words)
        for module in pkgutil.iter_modules(package.__path__)
        for words in (every_command(find(module.name, package)) if module.ispkg else [()])
    ]


def docstring(name: str, package: ModuleType = commands) -> str | None:
    """The module's docstring, without running the module."""
    files = (Path(folder) / file for folder in package.__path__ for file in (f"{name}.py", f"{name}/__init__.py"))
    return ast.get_docstring(ast.parse(next(file for file in files if file.is_file()).read_bytes()))


def find(name: str, package: ModuleType = commands) -> ModuleType:
    return importlib.import_module(f"{package.__name__}.{name}")


def load(name: str, package: ModuleType = commands) -> Any:
    """The command with its options, or the group with its commands."""
    module = find(name, package)
    words = f"{package.__name__}.{name}".removeprefix(f"{commands.__name__}.").replace(".", " ")
    if hasattr(module, "__path__"):
        return Commands(package=module, name=name, help=module.__doc__, no_args_is_help=True, **MARKUP)
    if os.environ.get("WORLD_SIZE") and not getattr(module, "SHARED", False):
        from dydit_cli.distributed import run_alone

        run_alone(f"dydit {words}")
    alone = typer.Typer(add_completion=False, **MARKUP)
    rest = {"allow_interspersed_args": False} if getattr(module, "REST", False) else {}
    alone.command(name, help=module.__doc__, context_settings=rest)(typed(getattr(module, name)))
    return get_command(alone)


def fail(message: str, code: int) -> int:
    console.error(message)
    return code


app = typer.Typer(
    name="dydit",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    **MARKUP,
    help="Dynamic Diffusion Transformers: turn a static DiT into one that spends less where less is needed, and see where.",
    epilog="Everything at once, on the bundled model: `dydit demo --out demo`",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dydit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    app()

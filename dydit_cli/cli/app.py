"""The command `dydit`: which commands there are, and how errors leave it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dydit_cli.cli.console import err
from dydit_cli.errors import DyditError
from dydit_cli.provenance import as_command, made_with
from dydit_cli.version import __version__


class OneLineErrors(TyperGroup):
    """Every error is one line on stderr: 2 for the user's mistakes, 130 for Ctrl-C, 1 for a fault of ours."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            with made_with(as_command(sys.argv[1:] if args is None else args)):
                code = super().main(args, *more, **extra)
        except DyditError as error:
            code = _fail(str(error), 2)
        except typer.Abort:
            code = _fail("interrupted", 130)
        except Exception as error:
            # typer's own usage errors can say themselves in one line; what cannot is a fault of ours
            if hasattr(error, "format_message"):
                context = getattr(error, "ctx", None)
                command = context.command_path if context else "dydit"
                code = _fail(f"{error.format_message()} (see {command} --help)", 2)
            elif os.environ.get("DYDIT_TRACEBACK"):
                raise
            else:
                code = _fail(
                    f"internal error: {type(error).__name__}: {error} (DYDIT_TRACEBACK=1 shows where; please report it)",
                    1,
                )
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    err.print("error: " + " ".join(message.split()), style="bold red", markup=False, highlight=False, soft_wrap=True)
    return code


app = typer.Typer(
    name="dydit",
    cls=OneLineErrors,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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


def _register() -> None:
    from dydit_cli.cli import (
        bench,
        convert,
        demo,
        encode,
        evaluate,
        export,
        finetune,
        inspect,
        losses,
        pretrain,
        profile,
        prune,
        report,
        sample,
        study,
        visualize,
    )

    for module in (
        convert,
        prune,
        finetune,
        encode,
        sample,
        evaluate,
        profile,
        losses,
        visualize,
        inspect,
        export,
        bench,
        pretrain,
        study,
        report,
        demo,
    ):
        module.register(app)


_register()


def main() -> None:
    app()

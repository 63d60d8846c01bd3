"""What the site shows beside its pages: the repository's own tables and figures, and every command with its options."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SHARED = (
    *("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/*.png", "dydit_cli/weights/*/README.md"),
    *("recipes/*/README.md", "recipes/*/*.png", "recipes/*/*.csv"),
)
COMMANDS = "reference/commands.md"

# a link to what the site has not is one to the repository, where a reader of the site has it
PLACES = re.compile(r"\]\((?:\.\./)+((?:recipes|benchmarks|dydit_cli)/[^)]*|CONTRIBUTING\.md|CHANGELOG\.md)\)")


def on_files(files: Files, config: Any) -> Files:
    """Puts the repository's pages and pictures where they are in the repository, and the commands' page beside them."""
    for pattern in SHARED:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, COMMANDS, content=command_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to the repository, as the pages of `docs/pages` have them there, become the site's."""
    if (ROOT / page.file.src_uri).exists():
        return markdown.replace("](docs/pages/", "](")
    up = "../" * page.file.src_uri.count("/")
    return PLACES.sub(rf"]({up}\1)", markdown)


def command_reference() -> str:
    """Every command's help as Markdown: what it does, its example, its arguments and options."""
    import click

    from dydit_cli.cli.app import find, load, names

    commands: dict[str, Any] = {}
    for name in names():
        package = find(name)
        inner = names(package) if hasattr(package, "__path__") else None
        commands |= {name: load(name)} if inner is None else {f"{name} {one}": load(one, package) for one in inner}
    pages = ["# Commands\n\nEvery command has `--help`, which says the same.\n"]
    for name, command in commands.items():
        text = re.sub(r"^Example: (dydit .*)$", r"```bash\n\1\n```", command.help, flags=re.MULTILINE)
        pages.append(f"## dydit {name}\n\n{text}\n")
        rows = []
        with click.Context(command, info_name=f"dydit {name}") as context:
            for parameter in command.get_params(context):
                record = parameter.get_help_record(context)
                if record is None or "--help" in record[0]:
                    continue
                # a bar would end the table's cell, in code too
                option, text = (escape(" ".join(part.split()), quote=False).replace("|", "&#124;") for part in record)
                rows.append(f"| <code>{option}</code> | {text} |")
        pages.append("| option | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(pages)

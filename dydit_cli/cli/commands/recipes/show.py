"""Show what a recipe comes to: its values and those of its bases, each with the file that gives it.

Example: `dydit recipes show imagenet/XL-2-0.7`
"""

from __future__ import annotations

from dydit_cli.cli import console, options


def show(recipe: options.Recipe, json: options.Json = False) -> None:
    from dydit_cli.studies.recipes import as_toml, describe

    facts = describe(recipe)
    if json:
        console.as_json({**facts.to_dict(), "values": facts.merged.values})
        return
    console.note(" <- ".join(str(path) for path in facts.files))
    for line in (facts.command, facts.summary):
        if line:
            console.say(f"# {line}")
    console.say(as_toml(facts.merged).rstrip("\n"))

"""List the recipes that ship, with the command that runs each.

Example: `dydit recipes ls`
"""

from __future__ import annotations

from dydit_cli.cli import console, options


def ls(json: options.Json = False) -> None:
    from dydit_cli.studies.recipes import shipped

    found = shipped()
    if json:
        console.as_json({"recipes": [facts.to_dict() for facts in found]})
        return
    for facts in found:
        console.facts(f"{facts.name}, of a {facts.kind}", {"what": facts.summary, "run": facts.command})

"""Copy a recipe to a file of your own, to be edited. It stays on the same base, unless with --flat.

Example: `dydit recipes copy digits/finetune my-digits.toml`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dydit_cli.cli import console, options
from dydit_cli.options import Arg, Opt


def copy(
    recipe: options.Recipe,
    destination: Annotated[Path, Arg("FILE", "The file to write.")],
    flat: Annotated[bool, Opt("Write the values of its bases into it, and no base.")] = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.studies.recipes import copy as run
    from dydit_cli.studies.recipes import describe

    facts = describe(run(recipe, destination, flat=flat, force=force))
    if json:
        console.as_json(facts.to_dict())
    else:
        console.say(f"{destination}: edit it, then: dydit recipes check {destination}")

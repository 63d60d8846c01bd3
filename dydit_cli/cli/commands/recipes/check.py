"""Check recipes, of trainings and of studies, before they run: the first fault of each, with its file, key and mend.

What only a checkpoint or the data can tell is not checked.

Example: `dydit recipes check digits/finetune digits/tradeoff`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from dydit_cli.cli import console, options
from dydit_cli.errors import DyditError
from dydit_cli.options import Arg


def check(
    recipes: Annotated[Sequence[str], Arg("RECIPE...", "TOML files, or names of recipes that ship.", options.recipe_names)],
    json: options.Json = False,
) -> None:
    from dydit_cli.studies.recipes import check as run

    results: list[dict[str, Any]] = []
    for recipe in recipes:
        try:
            kind, fault = run(recipe).kind, None
        except DyditError as error:
            kind, fault = None, str(error)
        results.append({"recipe": recipe, "kind": kind, "fault": fault})
    faults = [result["fault"] for result in results if result["fault"] is not None]
    if json:
        console.as_json({"recipes": results})
    for result in () if json else results:
        if result["fault"] is None:
            console.say(f"{result['recipe']}: the recipe of a {result['kind']}, without a fault")
    for fault in faults[:-1]:
        console.error(f"error: {fault}")
    if faults:
        raise DyditError(faults[-1])

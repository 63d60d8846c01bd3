"""Show what a command will take before it runs: memory, time, disk, what it writes, and whether that fits.

Nothing is written. What would not be quick is not run: a few steps are timed, or a part of the model.

Example: `dydit plan finetune runs/digits-dydit --flops-ratio 0.5 --data digits --out runs/digits-plan`
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from dydit_cli import units
from dydit_cli.cli import commands, console, options
from dydit_cli.cli.planning import Planned, planning
from dydit_cli.errors import DyditError
from dydit_cli.options import Arg

if TYPE_CHECKING:
    from dydit_cli.costs.plan import Output, Plan

REST = True  # what follows the first word is the command's own


def plan(
    words: Annotated[Sequence[str], Arg("COMMAND...", "A command line of dydit, without `dydit`.")],
    json: options.Json = False,
) -> None:
    from dydit_cli.cli.app import find, load, names

    name, *rest = words
    if name not in names() or name == "plan":
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "dydit --help lists them"
        raise DyditError(f"no command {name!r} to plan; {hint}")
    json, found, command = json or "--json" in rest, None, load(name, commands)
    if not getattr(find(name, commands), "PLANNED", False):
        command.make_context(f"dydit {name}", rest, obj=[*words])  # refuses what the command would
    else:
        try:
            with planning():
                command.main(rest, prog_name=f"dydit {name}", standalone_mode=False, obj=[*words])
            return  # its help was shown
        except Planned as planned:
            found = planned.plan
    if json:
        console.as_json({"command": name, "plan": None if found is None else found.to_dict()})
    elif found is None:
        console.say(f"dydit {name} has no plan: it takes little, or says itself what it takes")
    else:
        show(name, found)


def show(name: str, found: Plan) -> None:
    """Memory by part, then the rest, then whether it fits."""
    console.table(
        f"dydit {name}: memory at its peak, on {found.device}",
        ["", "memory"],
        [*((part, units.size(value)) for part, value in found.memory.items()), ("all", units.size(found.peak))],
    )
    time = "not known" if found.seconds is None else f"about {units.seconds(found.seconds)}"
    disk = units.size(found.disk) + ("" if not found.scratch else f", of which {units.size(found.scratch)} while it runs")
    console.facts(
        "",
        {
            "time": f"{time} ({found.timing})",
            "disk": disk,
            **{f"writes {output.path}": describe(output) for output in found.outputs},
        },
    )
    if found.recipe is not None:
        from dydit_cli.train.recipe import flat

        given = {key: str(value) for key, value in flat(dict(found.recipe)).items() if value is not None}
        console.facts("The recipe, resolved", given)
    for line in found.notes:
        console.note(f"note: {line}")
    console.say(verdict(found))


STATES = {
    "new": "nothing is there",
    "replaced": "what is there is replaced (--force)",
    "continued": "what is there is continued",
}


def describe(output: Output) -> str:
    """What is there now."""
    return output.why or STATES[output.state]


def verdict(found: Plan) -> str:
    """Whether it fits, in a line."""
    refused = next((output.why for output in found.outputs if output.state == "refused"), None)
    if refused is not None:
        return f"would not begin: {refused}"
    if not found.free:
        return f"needs {units.size(found.peak)} of memory; how much is free cannot be told here"
    has = f"{units.size(found.free)} of {units.size(found.total)} are free"
    if found.peak > found.free:
        return f"does not fit: needs {units.size(found.peak)} of memory, and {has}"
    disk = found.free_disk
    if disk is not None and found.disk > disk:
        return f"does not fit: needs {units.size(found.disk)} of disk, and {units.size(disk)} are free"
    return f"fits: needs {units.size(found.peak)} of memory, and {has}"

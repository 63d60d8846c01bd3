"""The commands, a module each: its docstring is the command's help, and its function of the same name the command.

A command fills its options, makes one library call and renders the result. Its module imports the dataclasses of its
options; what loads torch it imports when it runs. `SHARED = True` stands where several processes of a launcher share the
work, which others do not start in, and `PLANNED = True` where the command ends before its work if it is only planned
(`planning`). After the first argument of a command with `REST = True`, options are arguments too. A package is a group of
commands, with a docstring and `PANELS` of its own. `--help` lists the commands under the headings of `PANELS`, and others
above them.
"""

from __future__ import annotations

PANELS = {
    "Begin with": ("demo", "convert", "finetune", "sample"),
    "Make": ("pretrain", "prune", "calibrate", "allocate", "encode", "recipes"),
    "Measure": ("profile", "evaluate", "losses", "bench", "count", "plan", "frontier", "study"),
    "Show": ("inspect", "visualize", "report"),
    "Share": ("export", "push"),
}

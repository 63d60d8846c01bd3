"""The commands, a module each: its docstring is the command's help, and its function of the same name the command.

A command fills its options, makes one library call and renders the result. Its module imports the dataclasses of its
options; what loads torch it imports when it runs. `SHARED = True` stands where several processes of a launcher share the
work, which others do not start in. `--help` lists the commands in `ORDER`, and others after these.
"""

from __future__ import annotations

ORDER = (
    "convert", "prune", "finetune", "calibrate", "allocate", "encode", "sample", "evaluate", "profile", "losses", "visualize",
    "inspect", "export", "bench", "pretrain", "study", "frontier", "report", "demo",
)  # fmt: skip

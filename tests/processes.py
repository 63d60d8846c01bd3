"""The command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def start(command: list[str], **environment: object) -> subprocess.Popen[str]:
    """`dydit COMMAND` on one thread, begun and not waited for; `environment` is added to this one's."""
    extra = {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}}
    return subprocess.Popen(
        [sys.executable, "-m", "dydit_cli", *command],
        env={**os.environ, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

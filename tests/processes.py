"""The command: in this process, in one of its own, killed there, or in several."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from typer.testing import CliRunner, Result

from dydit_cli.cli.app import app


def dydit(*args: object) -> Result:
    """`dydit ARGS` in this process, on a terminal of 80 columns."""
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "80"})


def start(command: list[str], **environment: object) -> subprocess.Popen[str]:
    """`dydit COMMAND` on one thread, begun and not waited for; `environment` is added to this one's."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell starts in the background; a child inherits that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    extra = {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}}
    return subprocess.Popen(
        [sys.executable, "-m", "dydit_cli", *command],
        env={**os.environ, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_once(command: list[str], there: Callable[[], object]) -> None:
    """`kill -9` of `dydit COMMAND` as soon as `there`, or after a minute."""
    process = start(command)
    until = time.monotonic() + 60
    while not there() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)


def start_two(command: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes with the environment that `accelerate launch` and `torchrun` give to each of theirs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(command, RANK=i, LOCAL_RANK=i, **common) for i in range(2)]

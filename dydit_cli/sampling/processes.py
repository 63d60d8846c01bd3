"""Several processes that share one run, as a launcher starts them.

`accelerate launch -m dydit_cli sample ...`, which on GPUs is one process for each, or
`torchrun --nproc-per-node 2 -m -- dydit_cli sample ...`, where the `--` keeps torchrun from reading our options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from dydit_cli.devices import pick_device, world_size
from dydit_cli.errors import DyditError

PATIENCE = timedelta(days=7)  # one may wait for another's last shard; the libraries' 10 minutes are for training steps


@dataclass(frozen=True)
class Processes:
    """This process is `index` of `count`; `wait` returns once all of them have called it."""

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None

    @property
    def main(self) -> bool:
        return self.index == 0


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes of this run; under a launcher, `cuda` becomes each process's own GPU.

    Raises `DyditError` where there are several and accelerate, an optional dependency, is missing.
    """
    if world_size() == 1:
        yield Processes()
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise DyditError(f"WORLD_SIZE={world_size()}: several processes need accelerate: pip install accelerate") from None
    state = PartialState(cpu=pick_device(device).type == "cpu", timeout=PATIENCE)
    yield Processes(state.process_index, state.num_processes, state.wait_for_everyone)
    # not after an error: the others may never come, and the launcher ends them
    state.destroy_process_group()

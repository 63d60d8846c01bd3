"""The processes that share one run, as `accelerate launch` or `torchrun` starts them; usually it is one alone.

`accelerate launch -m dydit_cli finetune ...`, which on GPUs is one process for each, or
`torchrun --nproc-per-node 2 -m -- dydit_cli finetune ...`, where the `--` keeps torchrun from reading our options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from dydit_cli.devices import pick_device, world_size
from dydit_cli.errors import DyditError

TRAINING_PATIENCE = timedelta(hours=2)  # the main process may write a large state while the others wait for their gradients
SHARING_PATIENCE = timedelta(days=7)  # one may wait for another's last shard

PLAIN = {"NO", "MULTI_CPU", "MULTI_GPU"}  # accelerate's names for what is copied whole into each process


class Distributed:
    """Process `index` of `count`; without a `state` of accelerate's one alone, for which every method here does nothing.

    A run that trains together needs the `accelerator` too; one that only shares work does not.
    """

    def __init__(self, accelerator: Any = None, state: Any = None) -> None:
        self._accelerator, self._state = accelerator, state or accelerator
        self.index: int = self._state.process_index if self._state else 0
        self.count: int = self._state.num_processes if self._state else 1

    @property
    def main(self) -> bool:
        return self.index == 0

    def part(self, size: int) -> slice:
        """This process's own samples of a batch of `size`, which `count` divides."""
        own = size // self.count
        return slice(self.index * own, (self.index + 1) * own)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, whose backward pass leaves the mean of all processes' gradients (DDP)."""
        return self._accelerator.prepare_model(module) if self._accelerator else module

    def unshared(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients of a wrapped `module` stay this process's own, to be shared with the next ones."""
        return self._accelerator.no_sync(module) if self._accelerator else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        return self._accelerator.reduce(values, reduction="sum") if self._accelerator else values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self._accelerator is None:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self._accelerator.device)) > 0)

    def wait(self) -> None:
        """Returns when all processes have called it; raises `DyditError` where one has ended instead."""
        if self._state:
            try:
                self._state.wait_for_everyone()
            except RuntimeError:  # the words are about sockets
                others = f"process {self.index} of {self.count}: another one has ended, whose own message says why"
                raise DyditError(others) from None


def is_main() -> bool:
    """Whether this process is the first of a launcher's, or the only one; it alone prints."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def run_alone(what: str) -> None:
    """Raises `DyditError` in the main one of several processes, and ends the others: `what` would be done in each anew."""
    if world_size() > 1:
        if is_main():
            raise DyditError(f"WORLD_SIZE={world_size()}: {what} runs in one process; start it without the launcher")
        sys.exit(2)


@contextmanager
def share_work(device: str) -> Iterator[Distributed]:
    """The processes of a run that only share its work; under a launcher, `cuda` becomes each process's own GPU.

    Raises `DyditError` where there are several and accelerate, an optional dependency, is missing.
    """
    if world_size() == 1:
        yield Distributed()
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise _missing_accelerate() from None
    state = PartialState(cpu=pick_device(device).type == "cpu", timeout=SHARING_PATIENCE)
    yield Distributed(state=state)
    # not after an error: the others may never come, and the launcher ends them
    state.destroy_process_group()


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """The processes of a training run; under a launcher, `cuda` becomes each process's own GPU.

    Raises `DyditError` where there are several processes and accelerate, an optional dependency, is missing, or where
    accelerate is configured to cut the model itself (FSDP, DeepSpeed): the largest DiT's whole training state is 14 GB.
    """
    if world_size() == 1:
        yield Distributed()
        return
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError:
        raise _missing_accelerate() from None
    accelerator = Accelerator(
        cpu=pick_device(device).type == "cpu",
        mixed_precision="no",  # the recipe's train.precision says
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TRAINING_PATIENCE)],
    )
    type = str(accelerator.distributed_type.value)
    if type not in PLAIN:
        raise DyditError(f"accelerate is configured for {type}, and training knows DDP alone; run accelerate config anew")
    yield Distributed(accelerator)
    # not after an error: the others may never come, and the launcher ends them
    accelerator.end_training()


def _missing_accelerate() -> DyditError:
    return DyditError(f"WORLD_SIZE={world_size()}: several processes need accelerate: pip install accelerate")

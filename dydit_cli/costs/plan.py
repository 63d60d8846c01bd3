"""The record of what a command will take, and what the machine has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dydit_cli.devices import describe_device, free_memory, total_memory
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output

STATM = Path("/proc/self/statm")

State = Literal["new", "replaced", "continued", "refused"]

PROGRAM = "program, with what it has read"  # the part of memory that is there before the work


@dataclass(frozen=True)
class Output:
    """What will be written: `bytes` at its end, and `state` what is there now; `why` a refused one is."""

    path: str
    bytes: int
    state: State = "new"
    why: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a command will take: `memory` in bytes by part, at its peak on the device, of which `free` bytes are to be had and
    `total` are there; `seconds` (None where nobody knows) and `timing`, how they were found; `scratch` bytes of disk while it
    runs, beside its `outputs`; the resolved `recipe`, and `notes` on what is left out."""

    device: str
    memory: Mapping[str, int]
    free: int
    total: int
    seconds: float | None
    timing: str
    outputs: Sequence[Output] = ()
    scratch: int = 0
    recipe: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default=())

    @property
    def peak(self) -> int:
        """Bytes of memory."""
        return sum(self.memory.values())

    @property
    def disk(self) -> int:
        """Bytes of disk while it runs."""
        return self.scratch + sum(output.bytes for output in self.outputs)

    @property
    def free_disk(self) -> int | None:
        """Where the first output goes; None where nothing is written."""
        return free_disk(Path(self.outputs[0].path)) if self.outputs else None

    @property
    def fits(self) -> bool:
        """In the memory and on the disk that are free; what cannot be told counts as enough."""
        disk = self.free_disk
        return (not self.free or self.peak <= self.free) and (disk is None or self.disk <= disk)

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "fits": self.fits,
            "peak_memory": self.peak,
            "memory": dict(self.memory),
            "free_memory": self.free,
            "total_memory": self.total,
            "seconds": self.seconds,
            "timing": self.timing,
            "disk": self.disk,
            "free_disk": self.free_disk,
            "writes": [vars(output) for output in self.outputs],
            "recipe": None if self.recipe is None else dict(self.recipe),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Machine:
    """What a device has: bytes of memory that are `free` for this program, what it holds now included, and in `total`; of a cpu
    `program` is what it holds now."""

    device: torch.device
    program: int
    free: int
    total: int

    @classmethod
    def now(cls, device: torch.device) -> Machine:
        program = resident() if device.type == "cpu" else 0
        free = free_memory(device)
        return cls(device, program, free + program if free else 0, total_memory(device))

    def plan(self, memory: Mapping[str, int], **more: Any) -> Plan:
        """Of a work that takes this `memory` beside what the program holds."""
        own = {PROGRAM: self.program} if self.program else {}
        parts = {name: size for name, size in memory.items() if size}
        return Plan(describe_device(self.device), {**own, **parts}, self.free, self.total, **more)


def resident() -> int:
    """Bytes of memory that this process holds now; 0 where that cannot be told."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.is_file() else 0


def held(device: torch.device) -> int:
    """Bytes of the device's memory that this process holds now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()


def free_disk(path: Path) -> int:
    """Bytes that are free where `path` is, or will be."""
    parents = (folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(next(parents)).free


def output(
    path: str | Path, size: int, force: bool = False, check: Callable[[], object] | None = None, continues: bool = False
) -> Output:
    """What will be written at `path`: `check` raises `DyditError` where the command would refuse it, by default as
    `check_output` does; `continues` is whether what is there goes on."""
    try:
        (check or (lambda: check_output(path, force)))()
    except DyditError as error:
        return Output(str(path), size, "refused", str(error))
    there = Path(path).exists() and (not Path(path).is_dir() or any(Path(path).iterdir()))
    state: State = "new" if not there else "continued" if continues and not force else "replaced"
    return Output(str(path), size, state)

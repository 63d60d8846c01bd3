"""Where to run."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dydit_cli.errors import DyditError
from dydit_cli.options import DtypeName

MEMINFO = Path("/proc/meminfo")

DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, then mps, then cpu, the first that is available; raises `DyditError` for one that is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(type for type, usable in available.items() if usable))
    type = name.split(":")[0]
    if type not in available:
        raise DyditError(f"no device {name!r}; choose auto, cpu, cuda or mps")
    if not available[type]:
        raise DyditError(f"device {name}: this machine or this PyTorch has none; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise DyditError(f"no device {name!r}; choose auto, cpu, cuda or mps") from None


def synchronize(device: torch.device) -> None:
    """Until the device has done all its work; a cpu always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes that are free where `device` is, what the system would give up for them included; 0 where that cannot be told."""
    return (
        int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else _system_memory("MemAvailable", "SC_AVPHYS_PAGES")
    )


def total_memory(device: torch.device) -> int:
    """Bytes of memory where `device` is, free or not; 0 where that cannot be told."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else _system_memory("MemTotal", "SC_PHYS_PAGES")


def _system_memory(line: str, pages: str) -> int:
    """By Linux's name of the line, or else by the number of pages as POSIX has it."""
    if MEMINFO.is_file():
        found = next((one for one in MEMINFO.read_text().splitlines() if one.startswith(f"{line}:")), None)
        if found is not None:
            return int(found.split()[1]) * 1024
    if hasattr(os, "sysconf") and pages in os.sysconf_names:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def world_size() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdecimal() else 1


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type

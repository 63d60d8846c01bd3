"""Where to run."""

from __future__ import annotations

import os

import torch

from dydit_cli.errors import DyditError
from dydit_cli.options import DtypeName

DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, then mps, then cpu, whichever is there; raises `DyditError` for one that is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.split(":")[0]
    if kind not in available:
        raise DyditError(f"no device {name!r}; choose auto, cpu, cuda or mps")
    if not available[kind]:
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


def world_size() -> int:
    """How many processes the launcher says that it started; 1 without a launcher."""
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdecimal() else 1


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type

"""Tensors out of files, as data: safetensors (one file or shards) and PyTorch pickles that hold nothing else.

Every reader returns plain dense tensors or raises `DyditError` in one line that names the file and what is wrong.
"""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.files import _no_duplicates, read_json

Weights = dict[str, Tensor]

INDEX_ENDING = ".safetensors.index.json"

MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit


def read_safetensors(path: Path) -> Weights:
    """One .safetensors file, memory-mapped."""
    _check_header(path)
    try:
        weights = load_file(path)
    except (SafetensorError, ValueError, RuntimeError, OverflowError, KeyError, AttributeError) as error:
        raise DyditError(f"{path}: damaged: {error}") from None
    except OSError as error:
        raise DyditError(f"{path}: cannot be read: {error.strerror or error}") from None
    return check_tensors(weights, path)


def read_shards(index: Path) -> Weights:
    """All the shards that an index names, together."""
    entries = read_json(index)
    files = entries.get("weight_map") if isinstance(entries, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()) or not files:
        raise DyditError(f'{index}: not an index of shards; it needs a "weight_map" of names to files')
    weights: Weights = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file or file in ("", ".", ".."):
            raise DyditError(f"{index}: shard {file!r} is not a plain file name beside the index")
        if not (index.parent / file).is_file():
            raise DyditError(f"{index}: shard {file} is missing beside it")
        shard = read_safetensors(index.parent / file)
        for name, tensor in shard.items():
            if name in weights:
                raise DyditError(f"{index.parent / file}: {name} stands in another shard too")
            if files.get(name) != file:
                raise DyditError(f"{index.parent / file}: {name} is not where the index says")
            weights[name] = tensor
    absent = sorted(files.keys() - weights.keys())
    if absent:
        raise DyditError(f"{index}: {absent[0]} is in none of the shards")
    return weights


def read_pickle(path: Path) -> Any:
    """What a .pt file holds: tensors, containers and an argparse.Namespace, nothing that runs code.

    A pickle that wants any other global is refused, naming it, before anything of it runs.
    """
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # mapped, so that the optimiser's state beside the weights is never read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except OSError as error:
            raise DyditError(f"{path}: cannot be read: {error.strerror or error}") from None
        # a damaged pickle fails in as many ways as its bytes have: all of them are the file's fault
        except Exception as error:
            raise DyditError(f"{path}: {_why_not(path, error)}") from None


def _why_not(path: Path, error: Exception) -> str:
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)", text)
    wanted = named.group(1) if named else _first_foreign_global(path)
    if wanted:
        return f"refused: its pickle wants {wanted}, which is code and not data; re-save the weights alone"
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    first = reason.group(1) if reason else text.splitlines()[0] if text else type(error).__name__
    return f"damaged, or not a PyTorch checkpoint: {first[:160]}"


def _first_foreign_global(path: Path) -> str | None:
    """The first global that a bare pickle names and that is none of PyTorch's own, found without running it."""
    strings: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            return None
        with open(path, "rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                name = None
                if opcode.name in ("GLOBAL", "INST"):
                    name = str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    name = ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
                if name and not name.startswith(("torch.", "collections.", "argparse.Namespace")):
                    return name
    except Exception:  # whatever damage ends the scan, it names nothing
        return None
    return None


def state_dict_in(value: Any, path: Path) -> Weights:
    """`value` as a mapping of names to tensors; prefixes of wrappers (`module.`, `_orig_mod.`) are taken off."""
    if not isinstance(value, Mapping) or not value:
        raise DyditError(f"{path}: holds no weights (a mapping of names to tensors)")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DyditError(f"{path}: {str(name)[:80]!r} is no tensor; the file holds something else than weights")
    weights = {str(name): tensor.detach() for name, tensor in value.items()}
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return check_tensors(weights, path)


def check_tensors(weights: Weights, path: Path) -> Weights:
    """Dense floating-point tensors of finite numbers, each with storage of its own size."""
    if not weights:
        raise DyditError(f"{path}: holds no tensors")
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise DyditError(f"{path}: {name} is no dense tensor")
        if not tensor.is_floating_point():
            raise DyditError(f"{path}: {name} is {_dtype(tensor)}; weights are floating point")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DyditError(f"{path}: {name} says shape {list(tensor.shape)}, which its data do not fill")
        if not torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all():
            raise DyditError(f"{path}: {name} holds NaN or Inf; the checkpoint is damaged")
    return weights


def _check_header(path: Path) -> None:
    """The library takes the last of two equal names; this reader refuses them."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise DyditError(f"{path}: damaged: it is {len(start)} bytes long, shorter than a header")
            (length,) = struct.unpack("<Q", start)
            if length > MAX_HEADER:
                raise DyditError(f"{path}: damaged: its header says that it is {length} bytes long")
            header = file.read(length)
        json.loads(header.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise DyditError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DyditError(f"{path}: damaged header: {str(error).splitlines()[0][:160]}") from None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

"""Tensors out of files, as data: safetensors (one file or shards) and PyTorch pickles that hold nothing else.

Every reader returns plain dense tensors or raises `DyditError` in one line that names the file and what is wrong.
"""

from __future__ import annotations

import argparse
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dydit_cli.checkpoint.stream import NAMES
from dydit_cli.errors import DyditError
from dydit_cli.files import parse_json, read_json, regular_file

Weights = dict[str, Tensor]

INDEX_ENDING = ".safetensors.index.json"

PICKLES = (".pt", ".pth", ".bin", ".ckpt")

MAX_HEADER = 16_000_000  # bytes; that of the largest DiT is under 1 MB, and each MB takes half a second to check

MAX_INFLATION = 2  # how much more a zip may hold than it is long; PyTorch's own are not compressed

_headers_alone = ContextVar("_headers_alone", default=False)


@contextmanager
def headers_alone() -> Iterator[None]:
    """Within it checkpoints are read without their numbers: weights are of the meta device, names, shapes and dtypes."""
    token = _headers_alone.set(True)
    try:
        yield
    finally:
        _headers_alone.reset(token)


def is_index(path: Path) -> bool:
    """Whether `path` is named as an index of shards."""
    return path.name.endswith(INDEX_ENDING)


def read_tensors(path: Path) -> Weights:
    """The tensors of a .safetensors file, of the shards that an index names, or of a .pt file that holds nothing else."""
    if is_index(path):
        return read_shards(path)
    return state_dict_in(read_pickle(path), path) if path.suffix in PICKLES else read_safetensors(path)


def read_safetensors(path: Path) -> Weights:
    """One .safetensors file, memory-mapped."""
    try:
        _check_header(path)
        weights = load_file(path)
    except OSError as error:
        raise DyditError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, RuntimeError, OverflowError, KeyError, AttributeError) as error:
        raise DyditError(f"{path}: damaged: {(str(error).splitlines() or [''])[0][:160]}") from None
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
        if not os.path.isfile(index.parent / file):
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
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
        except DyditError:
            raise
        except OSError as error:
            raise DyditError(f"{path}: cannot be read: {error.strerror or error}") from None
        # a damaged pickle fails in as many ways as its bytes have: all of them are the file's fault
        except Exception as error:
            raise DyditError(f"{path}: {_why_not(path, error)}") from None


def write_pickle(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes a state dict, or a dict of them, as PyTorch's .pt, the same bytes each time; raises OSError where the system
    cannot."""
    try:
        with open(path, "wb") as file:  # given a path, torch would write its name into the file
            torch.save(_contiguous(weights), file)
    except RuntimeError as error:
        # the archive cannot be ended either, on a full disk above all
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else {name: _contiguous(part) for name, part in value.items()}


def _can_be_mapped(path: Path) -> bool:
    """Whether it is a zip of uncompressed entries, as PyTorch writes them.

    Raises `DyditError` where what is in it is far larger than itself, and OSError where it is no regular file.
    """
    if not zipfile.is_zipfile(regular_file(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size, inflated = path.stat().st_size, sum(entry.file_size for entry in entries)
    if inflated > MAX_INFLATION * size:
        raise DyditError(f"{path}: refused: its {size:,} bytes would become {inflated:,}; a checkpoint is not compressed")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


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
    """Dense floating-point tensors of finite numbers, each with storage of its own size; `headers_alone` looks at no number."""
    if not weights:
        raise DyditError(f"{path}: holds no tensors")
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise DyditError(f"{path}: {name} is no dense tensor")
        if not tensor.is_floating_point() or tensor.dtype not in NAMES:
            raise DyditError(f"{path}: {name} is {_dtype(tensor)}; weights are floating point, as .safetensors has it")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DyditError(f"{path}: {name} says shape {list(tensor.shape)}, which its data do not fill")
        if _headers_alone.get():
            continue
        if not torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all():
            raise DyditError(f"{path}: {name} holds NaN or Inf; the checkpoint is damaged")
    if _headers_alone.get():
        return {name: torch.empty(w.shape, dtype=w.dtype, device="meta") for name, w in weights.items()}
    return weights


def _check_header(path: Path) -> None:
    """Raises OSError or ValueError for a header that is too long or names a tensor twice: the library takes the last."""
    with open(regular_file(path), "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"it is {len(start)} bytes long, shorter than a header")
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER:
            raise ValueError(f"its header says that it is {length:,} bytes long; at most {MAX_HEADER:,} are read")
        try:
            parse_json(file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its header: {error}") from None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

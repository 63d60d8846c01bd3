"""Writing .safetensors tensor by tensor, so that a conversion never holds a second model in memory.

The library's writer wants every tensor at once, contiguous and with memory of its own, and wraps the system's errors in one
of its own. The format is 8 bytes of header length, the header as JSON, and the tensors' bytes one after the other
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# in the order in which the library lays tensors out, so that all stay aligned and its files and these are the same bytes
NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

ALIGNMENT = 8

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

PYTORCH = {"format": "pt"}  # which other people's readers look for


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = PYTORCH) -> None:
    """Writes all the `tensors`; raises OSError where the system cannot, on a full disk above all."""
    with SafetensorsWriter(path, {name: (w.dtype, tuple(w.shape)) for name, w in tensors.items()}, metadata) as out:
        for name in tensors:
            out.write(name, tensors[name])


class SafetensorsWriter:
    """A file for tensors whose names, dtypes and shapes are known beforehand; they may be written in any order.

    Closing raises RuntimeError where one was not written.
    """

    def __init__(self, path: Path, layout: Layout, metadata: Mapping[str, str] | None = PYTORCH) -> None:
        offset, ranks = 0, list(NAMES)
        header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
        self._layout: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        for name in sorted(layout, key=lambda name: (ranks.index(layout[name][0]), name)):
            dtype, shape = layout[name]
            size = dtype.itemsize * int(torch.Size(shape).numel())
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
            self._layout[name] = (offset, dtype, shape)
            offset += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self._header = len(text).to_bytes(8, "little") + text
        self._file = open(path, "wb")  # noqa: SIM115

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor of the layout."""
        offset, dtype, shape = self._layout.pop(name)
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise RuntimeError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")
        self._file.seek(len(self._header) + offset)
        self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file as file:
            if error[0] is not None:
                return
            file.seek(0)
            file.write(self._header)
        if self._layout:
            raise RuntimeError(f"{min(self._layout)} was not written")

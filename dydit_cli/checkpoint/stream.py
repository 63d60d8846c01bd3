"""Writing .safetensors tensor by tensor, so that a conversion never holds a second model in memory.

The library's writer wants every tensor at once. The format is 8 bytes of header length, the header as JSON, and the
tensors' bytes one after the other (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

NAMES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}

ALIGNMENT = 8


class SafetensorsWriter:
    """A file for tensors whose names, dtypes and shapes are known beforehand; they may be written in any order.

    Closing raises RuntimeError where one was not written.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        offset, header = 0, {"__metadata__": {"format": "pt"}}
        self._places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        # larger elements first, as the library does, so that all stay aligned
        for name in sorted(layout, key=lambda name: (-layout[name][0].itemsize, name)):
            dtype, shape = layout[name]
            size = dtype.itemsize * int(torch.Size(shape).numel())
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}  # type: ignore[dict-item]
            self._places[name] = (offset, dtype, shape)
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._start = self._file.tell()

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor of the layout."""
        offset, dtype, shape = self._places.pop(name)
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise RuntimeError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")
        self._file.seek(self._start + offset)
        self._file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._places:
            raise RuntimeError(f"{min(self._places)} was not written")

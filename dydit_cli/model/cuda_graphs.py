"""A step's program recorded as a CUDA graph once and launched as one from then on: for small batches, where a GPU waits for
launches and not for products.

What is kept has a bound: the pool in which graphs have their intermediate results, one after the other in the same memory, and
the copies of weights that they read. Which graphs stay is decided here, whoever records them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.model.regions import unheard

Program = Callable[[Tensor, Tensor], list[Tensor]]  # of x and y, always of the same shapes


class Recorder(Protocol):
    """Records programs as they run with inputs like these: returns a program that does the same, and how many bytes its
    results and what is between need beyond what those before it had. `reset` gives that memory back; no program is left then.
    """

    def __call__(self, program: Program, x: Tensor, y: Tensor) -> tuple[Program, int]: ...

    def reset(self) -> None: ...


class CudaRecorder:
    """Records CUDA graphs in one pool of memory. Their results are copied out of it, so that the next may write there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._inputs: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def __call__(self, program: Program, x: Tensor, y: Tensor) -> tuple[Program, int]:
        key = (x.shape, x.dtype, y.dtype)
        if key not in self._inputs:
            with torch.inference_mode(False):  # so that it may be written to in and out of that mode
                self._inputs[key] = torch.empty_like(x), torch.empty_like(y)
        own_x, own_y = self._inputs[key]
        own_x.copy_(x)
        own_y.copy_(y)
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.device(self.device), unheard():
            with torch.cuda.stream(side):  # what runs for the first time may compile, load or allocate, which no graph does
                program(own_x, own_y)
            current.wait_stream(side)
            torch.cuda.empty_cache()  # as recording does, which would seem to give memory back
            before = torch.cuda.memory_reserved(self.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                results = program(own_x, own_y)

        def replay(x: Tensor, y: Tensor) -> list[Tensor]:
            own_x.copy_(x)
            own_y.copy_(y)
            graph.replay()
            return [result.clone() for result in results]

        return replay, max(0, torch.cuda.memory_reserved(self.device) - before)


@dataclass(frozen=True)
class Recording:
    """A recorded program, that which it is one of, the capacities that this has, and the tensors that it reads beside its
    inputs. A graph reads memory, whoever's it is by then: so what it was recorded of stays as long as it does."""

    program: Program
    source: Program
    capacities: tuple[int, ...]
    reads: Sequence[Tensor]


class GraphedSteps:
    """Recordings by key, up to `capacity` bytes. What was used longest ago and reads copies of its own goes first, and is not
    recorded again: a run that comes round to more steps than there is room for has those that are left, and records none in
    vain."""

    def __init__(self, recorder: Recorder, capacity: int) -> None:
        self.recorder, self.capacity = recorder, capacity
        self.recorded = self.evicted = 0  # since the beginning
        self._kept: OrderedDict[Hashable, Recording] = OrderedDict()
        self._gone: set[Hashable] = set()
        self._pool = 0

    @classmethod
    def on(cls, device: torch.device, capacity: int) -> GraphedSteps:
        """Raises `DyditError` for a device that is no NVIDIA or AMD GPU."""
        if device.type != "cuda":
            raise DyditError(f"cuda-graphs: the model is on {device.type}, which has none; use --device cuda or leave them out")
        return cls(CudaRecorder(device), capacity)

    @property
    def bytes(self) -> int:
        """What recordings hold now: their pool, and each copy of weights once."""
        return self._pool + self._copies()

    def _copies(self, without: Hashable = None) -> int:
        """Bytes of copies of weights that recordings other than one read."""
        copies = {
            tensor.data_ptr(): tensor.nbytes
            for key, recording in self._kept.items()
            for tensor in recording.reads
            # a view is of what is there anyway
            if key != without and tensor.untyped_storage().nbytes() == tensor.nbytes
        }
        return sum(copies.values())

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Recording | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def record(
        self,
        key: Hashable,
        capacities: tuple[int, ...],
        program: Program,
        reads: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
    ) -> Recording | None:
        """Records `program`; None where there is no room for it."""
        if key in self._gone:
            return None
        recorded, grown = self.recorder(program, x, y)
        self.recorded += 1
        self._pool += grown
        self._kept[key] = Recording(recorded, program, capacities, reads)
        if self._pool > self.capacity:  # it gives its memory back as a whole
            self._gone.add(key)
            for other in list(self._kept):
                self._evict(other)
        while self._kept and self.bytes > self.capacity:
            # copies that other recordings read too would not go with it
            helps = (other for other in self._kept if self._copies(other) < self._copies())
            self._gone.add(oldest := next(helps, key))
            self._evict(oldest)
        return self._kept.get(key)

    def _evict(self, key: Hashable) -> None:
        self.drop(key)
        self.evicted += 1

    def drop(self, key: Hashable) -> None:
        """Forgets the recording of `key`, if there is one; the next one of it is recorded anew."""
        if self._kept.pop(key, None) is not None and not self._kept:
            self.recorder.reset()
            self._pool = 0

    def clear(self) -> None:
        """Drops all; the counts go on."""
        for key in list(self._kept):
            self.drop(key)
        self._gone.clear()

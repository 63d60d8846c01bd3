"""What a data set is to training, and the shuffled batches of one.

Shapes: M images of a set, B of a batch, C channels, S pixels a side. A set of videos has F C S S where one of images has
C S S, F being the frames that its model takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.latent_norm import LatentNorm


class Dataset(Protocol):
    """Labelled images, as a model takes them: pixels in [-1, 1], or latents normalised as `latents` says (None for pixels).

    `class_names` are the classes' names, class 0's first, None where they have none. `varied` is whether an image has
    random versions (mirrored, a latent's sample), of which a seed chooses one. `skipped` are the images that could not be
    read so far.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def varied(self) -> bool: ...

    @property
    def skipped(self) -> Sequence[Skipped]: ...

    @property
    def latents(self) -> LatentNorm | None: ...

    def __len__(self) -> int: ...

    def check(self, config: ModelConfig, latents: LatentNorm | None = None) -> None:
        """Raises `DyditError` where a model of `config` cannot be trained on this data, or takes latents that are normalised
        otherwise: as `latents` says, where that is known."""

    def take(self, index: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The images B C S S float32 and labels B int64 at `index` (B,).

        `seed` (B,) chooses each one's version, and an odd one mirrors it; without seeds nothing is random. Of a video that has
        more frames than the model takes it chooses which, one after the other.
        An image depends on its index and seed alone: not on the batch, its order, or on threads.
        """

    def prefetch(self, index: Tensor) -> None:
        """A hint: these will be taken next."""


@dataclass(frozen=True)
class ImageData:
    """A set held in memory. images: M C S S, or of videos M F C S S, float32 in [-1, 1]; labels: M int64 from 0 to
    num_classes - 1."""

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int
    class_names: tuple[str, ...] | None = None

    varied: ClassVar[bool] = False
    skipped: ClassVar[Sequence[Skipped]] = ()
    latents: ClassVar[LatentNorm | None] = None

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, config: ModelConfig, latents: LatentNorm | None = None) -> None:
        _, *frames, channels, size, _ = self.images.shape
        check_fits(self.name, config, channels, size, self.num_classes, frames[0] if frames else None)

    def take(self, index: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def prefetch(self, index: Tensor) -> None:
        pass


def check_fits(name: str, config: ModelConfig, channels: int, size: int, num_classes: int, frames: int | None = None) -> None:
    """Raises `DyditError` where a model of `config` takes other images, or has another number of classes; one without
    classes takes any. `frames` are those of the set's videos, None for images."""
    if (frames is None) != (config.frames is None):
        held, taken = ("images" if each is None else f"videos of {each} frames" for each in (frames, config.frames))
        raise DyditError(f"data set {name} has {held} and the model takes {taken}; choose data that fit the model")
    if not config.num_classes:
        num_classes = 0
    for what, own, model, more in (
        ("channels", channels, config.in_channels, ""),
        ("pixels a side", size, config.input_size, ""),
        ("frames", frames, config.frames, ""),
        ("classes", num_classes, config.num_classes, f", or draw its label table anew with --num-classes {num_classes}"),
    ):
        if own != model:
            raise DyditError(f"data set {name} has {own} {what} and the model {model}; choose data that fit the model{more}")


def locate(ends: Tensor, i: int) -> tuple[int, int]:
    """In which file item `i` is and at which row, `ends` being how many items there are up to the end of each file."""
    file = int(torch.searchsorted(ends, i, right=True))
    return file, i - (int(ends[file - 1]) if file else 0)


def check_norm(name: str, own: LatentNorm, model: LatentNorm | None, mend: str) -> None:
    """Raises `DyditError` where a set's latents are normalised otherwise than the model's; `mend` is what to do about it."""
    if model is not None and not own.same(model):
        raise DyditError(f"data set {name} has latents {own.describe()} and the model takes {model.describe()}; {mend}")


class BatchStream:
    """Shuffled batches without end: every image once an epoch, batches running over the epoch's edge.

    Yields images B C S S and labels B. All random numbers come from `generator`, for the whole batch of `size` images
    whichever `part` of it is yielded: processes that share a batch each read their own images only.
    """

    def __init__(self, data: Dataset, size: int, generator: torch.Generator, part: slice = slice(None)) -> None:
        self.data, self.size, self.generator, self.part = data, size, generator, part
        self._order = torch.empty(0, dtype=torch.long)  # what is left of the epochs that were begun

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        while len(self._order) < self.size:
            self._order = torch.cat([self._order, torch.randperm(len(self.data), generator=self.generator)])
        index, self._order = self._order[: self.size], self._order[self.size :]
        seed = torch.randint(2**62, (self.size,), generator=self.generator)[self.part] if self.data.varied else None
        batch = self.data.take(index[self.part], seed)
        # which images are next is known already, their seeds are not: prefetching leaves the generator alone
        self.data.prefetch(self._order[: self.size][self.part])
        return batch

    def state(self) -> dict[str, Any]:
        """With the generator's own state, all that the next batches depend on: an int and an int64 tensor."""
        return {"images": len(self.data), "order": self._order.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`; the caller restores the generator. Raises `DyditError` where the data changed."""
        if state["images"] != len(self.data):
            raise DyditError(
                f"data set {self.data.name} had {state['images']} images when the run began and has {len(self.data)} now; "
                "resume it with the same data"
            )
        self._order = state["order"].clone()


def batches(data: Dataset, size: int, generator: torch.Generator) -> BatchStream:
    """The stream of whole batches; see `BatchStream`."""
    return BatchStream(data, size, generator)


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read: its path below the root, and why."""

    file: str
    reason: str

"""Writing so that nothing is ever half-written: a temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dydit_cli.errors import DyditError
from dydit_cli.marks import OURS


def check_output(path: str | Path, force: bool = False) -> Path:
    """`path`, where it can be written. Raises `DyditError` where it exists (without `force`) or its folder cannot be.

    An empty folder does not count as existing. A folder without a mark of dydit's is never replaced: a slip in a name
    must not cost somebody's files.
    """
    path = Path(path)
    content = {child.name for child in path.iterdir()} if path.is_dir() else set()
    if path.exists() and not force and not (path.is_dir() and not content):
        raise DyditError(f"{path}: already exists; choose another name or replace it with --force")
    if content and not content & OURS:
        raise DyditError(f"{path}: is a folder that dydit did not write, which --force does not replace; choose another name")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise DyditError(f"{path}: cannot be written: {parent} is a file; choose another place")
    if not os.access(parent, os.W_OK):
        raise DyditError(f"{path}: cannot be written: no permission in {parent}; choose another place")
    return path


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which becomes `path` when the block ends well and is removed otherwise."""
    path = Path(path)
    with _as_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp" + path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which replaces `path` when the block ends well and is removed otherwise.

    Where the system can exchange two names (Linux, macOS), there is no moment without a whole `path`.
    """
    path = Path(path)
    with _as_one_line(path):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            for file in temporary.rglob("*"):
                _fsync(file)
            _fsync(temporary)
            # after an exchange the old folder bears the temporary name, and goes with it
            if not (path.exists() and _exchange(temporary, path)):
                if path.exists():
                    shutil.rmtree(path)
                os.replace(temporary, path)
            _fsync(path.absolute().parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and Infinity, which JSON lacks, are a ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def _as_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DyditError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from None


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two paths in one step, so that no moment is without `b`; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE on Linux, RENAME_SWAP on macOS
    if hasattr(libc, "renameat2"):
        return bool(libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), swap) == 0)
    if hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(os.fsencode(a), os.fsencode(b), swap) == 0)
    return False


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path) -> Any:
    """Parsed JSON in which no key stands twice."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise DyditError(f"{path}: not readable as JSON: {str(error).splitlines()[0]}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} stands twice")
    return values


def sha256(path: Path) -> str:
    """The file's digest, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Resumable:
    """A `folder` whose settings stand in its file `settings`, under a key "format"; it holds `what`, for messages,
    which call the folder `option`."""

    folder: Path
    settings: str
    format: str
    what: str
    option: str = "--out"

    def check(self, asked: dict[str, Any], free: Collection[str] = (), new: Collection[str] = ()) -> dict[str, Any]:
        """Returns the settings of the run that the folder holds; {} for an empty folder, which may begin.

        Raises `DyditError` where it holds anything but a run with the settings `asked`, those named in `free` left out, and
        those in `new` that it does not name."""
        try:
            there = json.loads((self.folder / self.settings).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if not isinstance(there, dict) or there.get("format") != self.format:
            # a kill in the first moment leaves the settings under their temporary name
            begun = self.folder.is_dir() and all(path.name.startswith(f".{self.settings}.") for path in self.folder.iterdir())
            if not begun:
                check_output(self.folder)
            return {}
        for name, value in asked.items():
            if there.get(name) != value and name not in free and (name in there or name not in new):
                raise DyditError(
                    f"{self.folder}: holds {self.what} with {name} {_short(there.get(name))}, and now it is {_short(value)}; "
                    f"choose another {self.option}, or start anew with --force"
                )
        return there

    def begin(self, asked: dict[str, Any], force: bool) -> None:
        """Writes the settings that a later run has to repeat; with `force` into an empty folder."""
        if force and self.folder.is_dir():
            shutil.rmtree(self.folder)
        elif force:
            self.folder.unlink(missing_ok=True)
        if not (self.folder / self.settings).is_file():
            write_json(self.folder / self.settings, asked)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True)
class Shards:
    """`total` items, `size` of them in each numbered file of `folder`, and in the last one what is left."""

    folder: Path
    total: int
    size: int
    ending: str

    @property
    def count(self) -> int:
        return -(-self.total // self.size)

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}{self.ending}"

    def items(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.total))

    def missing(self) -> list[int]:
        return [shard for shard in range(self.count) if not self.path(shard).is_file()]

"""Files: written so that nothing is ever half-written, read where they are regular ones, held against other processes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dydit_cli.errors import DyditError
from dydit_cli.marks import OURS

LARGEST_TEXT = 100_000_000  # bytes of a JSON file, which is read whole


def check_output(path: str | Path, force: bool = False) -> Path:
    """`path`, where it can be written. Raises `DyditError` where it exists (without `force`) or its folder cannot be.

    An empty folder does not count as existing, nor does what a kill left of a lock or a temporary file. A folder without a
    mark of dydit's is never replaced: a slip in a name must not cost somebody's files.
    """
    path = Path(path)
    with _as_one_line(path):
        target = _target(path)
        content = {child.name for child in target.iterdir() if not _is_scrap(child)} if target.is_dir() else set()
        if target.exists() and not force and not (target.is_dir() and not content):
            raise DyditError(f"{path}: already exists; choose another name or replace it with --force")
        if content and not content & OURS:
            raise DyditError(
                f"{path}: is a folder that dydit did not write, which --force does not replace; choose another name"
            )
        parent = next(folder for folder in target.parents if folder.exists())
        if not parent.is_dir():
            raise DyditError(f"{path}: cannot be written: {parent} is a file; choose another place")
        if not os.access(parent, os.W_OK):
            raise DyditError(f"{path}: cannot be written: no permission in {parent}; choose another place")
    return path


def _target(path: Path) -> Path:
    """What is written for `path`, absolute and without links, which stay as they are.

    Raises `DyditError` for a link to nothing, which may be a disk that is not mounted, and for a pipe or a device.
    """
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise DyditError(f"{part}: is a link to {os.readlink(part)}, which is not there; make it, or choose another place")
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        raise DyditError(f"{path}: is {_type(target.stat())}; choose another place")
    return target


def _is_scrap(path: Path) -> bool:
    """Whether it is a lock or a temporary file of this module's, as a kill leaves them behind."""
    if re.fullmatch(r"\..+\.lock", path.name):
        return path.stat().st_size == 0
    return bool(re.fullmatch(r"\..+\.\w{8}\.tmp(\..+)?", path.name))


def sweep(folder: Path) -> None:
    """Removes what kills left in `folder`, which no other process is writing."""
    for path in filter(_is_scrap, list(folder.iterdir()) if folder.is_dir() else ()):
        _remove(path)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which becomes `path` when the block ends well and is removed otherwise.

    Of a link it is the target that is replaced.
    """
    path = Path(path)
    with _as_one_line(path):
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp" + target.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())
            _fsync(temporary)
            os.replace(temporary, target)
            _fsync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which replaces `path` when the block ends well and is removed otherwise.

    Where the system can exchange two names (Linux, macOS), there is no moment without a whole `path`. Of a link it is the
    target that is replaced. Raises `DyditError` where another process holds `path`.
    """
    path = Path(path)
    with _as_one_line(path), locked(path):
        target = _target(path)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            for file in temporary.rglob("*"):
                _fsync(file)
            _fsync(temporary)
            # what was there bears the temporary name afterwards, and goes with it
            if not target.exists():
                os.replace(temporary, target)
            elif not _exchange(temporary, target):
                aside = temporary.with_name(temporary.name + ".old")
                os.replace(target, aside)
                try:
                    os.replace(temporary, target)
                except OSError:
                    os.replace(aside, target)
                    raise
                os.replace(aside, temporary)
            _fsync(target.parent)
        finally:
            _remove(temporary)


def _remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, as far as that can be."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Holds the output `path`, whether it is there yet or not, for the length of the block.

    Raises `DyditError` where another process holds it. The lock is an empty hidden file beside `path`, gone at the end.
    """
    with _as_one_line(Path(path)):
        target = _target(Path(path))
    file = target.with_name(f".{target.name}.lock")
    with claim(file, name=path) as mine:
        if not mine:
            raise DyditError(f"{path}: another process of dydit is writing it; wait for that one, or choose another place")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held: a later one could be another process's


@contextlib.contextmanager
def claim(file: Path, wait: bool = False, name: str | Path | None = None) -> Iterator[bool]:
    """Whether the lock `file` is this process's for the length of the block.

    False where another process has it, unless this one is to `wait`. The system gives a lock back when its process ends,
    however it ends. Errors call it `name`.
    """
    with _as_one_line(Path(name or file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=wait)
    try:
        yield lock.is_locked
    finally:
        lock.release()


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


def regular_file(path: str | Path) -> Path:
    """`path`, a regular file or a link to one: opening a pipe may wait for good, and a device has no end.

    Raises OSError for anything else, and where nothing is there.
    """
    try:
        status = os.stat(path)
    except ValueError:  # a name with a zero byte, as a JSON or TOML file may hold it
        raise OSError(errno.EINVAL, "no name of a file") from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {_type(status)}, not a regular file")
    return Path(path)


def _type(status: os.stat_result) -> str:
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(status.st_mode), "a device")


def read_text(path: str | Path, limit: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of a regular file of at most `limit` bytes; raises OSError or ValueError where it is none."""
    with open(regular_file(path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is over {limit:,} bytes long")
    return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """Parsed JSON in which no key stands twice."""
    try:
        return parse_json(read_text(path))
    except OSError as error:
        raise DyditError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DyditError(f"{path}: not readable as JSON: {str(error).splitlines()[0]}") from None


def parse_json(text: str) -> Any:
    """Raises ValueError where `text` is no JSON or a key stands twice, RecursionError where it is nested too deeply."""
    return json.loads(text, object_pairs_hook=_no_duplicates)


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
    """A `folder` whose settings stand in its file `file`, under a key "format"; it holds `what`, for messages, which call
    the folder `option`."""

    folder: Path
    file: str
    format: str
    what: str
    option: str = "--out"

    def check(self, settings: dict[str, Any], free: Collection[str] = (), new: Collection[str] = ()) -> dict[str, Any]:
        """Returns the settings of the run that the folder holds; {} for an empty folder, which may begin.

        Raises `DyditError` where it holds anything but a run with these `settings`, those named in `free` left out, and those
        in `new` that it does not name."""
        try:
            existing = read_json(self.folder / self.file)
        except DyditError:
            existing = None
        if not isinstance(existing, dict) or existing.get("format") != self.format:
            check_output(self.folder)
            return {}
        for name, value in settings.items():
            if existing.get(name) != value and name not in free and (name in existing or name not in new):
                raise DyditError(
                    f"{self.folder}: holds {self.what} with {name} {_short(existing.get(name))}, and now it is "
                    f"{_short(value)}; choose another {self.option}, or start anew with --force"
                )
        return existing

    def begin(self, settings: dict[str, Any], force: bool) -> None:
        """Writes the settings that a later run has to repeat; with `force` into an empty folder."""
        if force:
            with _as_one_line(self.folder):
                target = _target(self.folder)
                _remove(target)
                target.mkdir(parents=True)
        if not (self.folder / self.file).is_file():
            write_json(self.folder / self.file, settings)


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

"""What all kinds of artifacts share: how one is recognised, read and refused. Each file beside this one adds its kind."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from dydit_cli.discovery import import_modules
from dydit_cli.errors import DyditError

DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)

_kinds: dict[str, type[Artifact]] = {}


class Artifact(ABC):
    """What a command leaves on disk, read. A subclass that states its `kind` is registered under it.

    `name` is what messages call it, with its article; `made_by` the command that writes one; `mark` the file that tells
    such a folder.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    made_by: ClassVar[str]
    mark: ClassVar[str]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "kind" in cls.__dict__:
            _kinds[cls.kind] = cls

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Whether `path` is one, as far as names tell."""
        return (path / cls.mark).is_file()

    @classmethod
    @abstractmethod
    def read(cls, path: str | Path) -> Self:
        """Raises `DyditError` in one line where `path` holds none, or a damaged one."""

    @classmethod
    def noun(cls) -> str:
        """The name without its article: `profile`."""
        return re.sub(r"^an? ", "", cls.name)

    @classmethod
    def refusal(cls, path: Path, why: str) -> DyditError:
        """That `path` is none, and how to make one."""
        return DyditError(f"{path}: not {cls.name}: {why}; make one with: {cls.made_by}")

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator[None]:
        """What a damaged file makes a reader raise becomes one line."""
        try:
            yield
        except DAMAGE as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DyditError(f"{path}: damaged {cls.noun()} ({why}); make it anew: {cls.made_by}") from None


class Folder(Artifact):
    """An artifact of several `files`, whose mark is JSON under a `format` and its version."""

    files: ClassVar[tuple[str, ...]]
    format: ClassVar[str]
    format_version: ClassVar[int] = 1

    @classmethod
    def header(cls) -> dict[str, Any]:
        """What the mark begins with."""
        return {"format": cls.format, "format_version": cls.format_version}

    @classmethod
    def read_summary(cls, folder: Path) -> dict[str, Any]:
        """The mark's values; raises `DyditError` where a file is missing, or the mark is of another format or version."""
        missing = [name for name in cls.files if not (folder / name).is_file()]
        if missing:
            raise cls.refusal(folder, f"it has no {missing[0]}")
        with cls.reading(folder):
            summary = read_object(folder / cls.mark)
        if summary.get("format") != cls.format:
            raise cls.refusal(folder / cls.mark, f"its format is {summary.get('format')!r}")
        version = summary.get("format_version", 1)
        if version != cls.format_version:
            raise DyditError(
                f"{folder}: {cls.noun()} of version {version!r}, this dydit reads {cls.format_version}; "
                f"make it anew: {cls.made_by}"
            )
        return summary


class JsonFile(Artifact):
    """An artifact that is a single JSON file, told by its top-level `keys`."""

    keys: ClassVar[frozenset[str]]
    mark = ""

    @classmethod
    def fits(cls, path: Path) -> bool:
        try:
            return path.is_file() and cls.keys <= read_object(path).keys()
        except (OSError, ValueError, RecursionError):
            return False

    @classmethod
    def read_values(cls, path: Path) -> dict[str, Any]:
        """The file's values; raises `DyditError` where it is missing, no JSON object, or lacks one of the keys."""
        try:
            values = read_object(path)
        except FileNotFoundError:
            raise DyditError(f"{path}: no such file; make one with: {cls.made_by}") from None
        except OSError as error:
            raise cls.refusal(path, str(error.strerror)) from None
        except (ValueError, RecursionError) as error:
            raise cls.refusal(path, f"not readable as JSON ({error})") from None
        missing = sorted(cls.keys - values.keys())
        if missing:
            raise cls.refusal(path, f"it has no {missing[0]!r}")
        return values


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; raises `ValueError` where the file holds something else, which is not read to its end."""
    with path.open(encoding="utf-8") as file:
        if not file.read(1000).lstrip().startswith("{"):
            raise ValueError(f"{path.name} holds no JSON object")
        file.seek(0)
        return dict(json.load(file))


def read_object_if_any(path: Path) -> dict[str, Any] | None:
    """As `read_object`; None where there is no such file."""
    return read_object(path) if path.is_file() else None


def kinds() -> dict[str, type[Artifact]]:
    """Every kind by its key, in the order of the keys."""
    import_modules(__package__)
    return dict(sorted(_kinds.items()))


def identify(path: str | Path) -> type[Artifact]:
    """What `path` is; raises `DyditError` where it is no artifact of dydit's."""
    path = Path(path)
    if not path.exists():
        raise DyditError(f"{path}: not found; name a folder that dydit wrote")
    every = kinds().values()
    for kind in every:
        if kind.fits(path):
            return kind
    folders = ", ".join(f"{kind.name} ({kind.mark})" for kind in every if kind.mark)
    files = ", ".join(f"{kind.name} ({kind.made_by})" for kind in every if not kind.mark)
    raise DyditError(f"{path}: nothing that a report takes; it takes {folders}, and as a file {files}")

"""Files: links are followed, nothing is half-written or waited for, and no two processes write one output."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dydit_cli import files
from dydit_cli.errors import DyditError
from dydit_cli.files import (
    Resumable,
    atomic_file,
    atomic_folder,
    check_output,
    claim,
    locked,
    read_json,
    regular_file,
    write_json,
    write_text,
)


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link `link` to the folder `disk/old`, which dydit wrote."""
    (tmp_path / "disk" / "old").mkdir(parents=True)
    write_json(tmp_path / "disk" / "old" / "config.json", 1)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "old")
    return tmp_path / "link"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# links


def test_a_folder_is_written_where_its_link_points(link: Path, tmp_path: Path) -> None:
    with atomic_folder(check_output(link, force=True)) as temporary:
        assert temporary.parent == tmp_path / "disk"  # the same disk, so that it can be renamed
        write_json(temporary / "config.json", 2)
    assert link.is_symlink()
    assert read_json(tmp_path / "disk" / "old" / "config.json") == 2
    assert (names(tmp_path), names(tmp_path / "disk")) == (["disk", "link"], ["old"])


def test_a_file_is_written_where_its_link_points(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.html").write_text("old")
    (tmp_path / "a.html").symlink_to("disk/a.html")
    write_text(tmp_path / "a.html", "new")
    assert (tmp_path / "a.html").is_symlink()
    assert (tmp_path / "disk" / "a.html").read_text() == "new"
    assert (names(tmp_path), names(tmp_path / "disk")) == (["a.html", "disk"], ["a.html"])


def test_starting_anew_behind_a_link_keeps_the_link(link: Path, tmp_path: Path) -> None:
    Resumable(link, "config.json", "f", "samples").begin({"format": "f"}, force=True)
    assert link.is_symlink()
    assert read_json(tmp_path / "disk" / "old" / "config.json") == {"format": "f"}


@pytest.mark.parametrize("out", ["link", "link/out", "link/a/b"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, out: str) -> None:
    """It may point to a disk that is not mounted: what is written for it must not fill another one."""
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "runs")
    for write in (check_output, atomic_file, atomic_folder, locked):
        with pytest.raises(DyditError, match=r"link: is a link to .*disk/runs, which is not there; make it, or choose another"):
            run(write(tmp_path / out))
    assert names(tmp_path) == ["link"]


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(DyditError, match="a: is a link to b, which is not there"):
        check_output(tmp_path / "a")


def run(context: object) -> None:
    """Goes through a context manager that does nothing inside."""
    with context:  # type: ignore[attr-defined]
        pass


# what is no file


@contextmanager
def special_file(folder: Path, what: str) -> Iterator[Path]:
    path = folder / "special"
    if what == "a pipe":
        os.mkfifo(path)
        yield path
    elif what == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            yield path
    else:
        path.symlink_to("/dev/null")
        yield path


@pytest.mark.parametrize("what", ["a pipe", "a socket", "a device"])
def test_pipes_and_devices_are_neither_read_nor_replaced(tmp_path: Path, what: str) -> None:
    with special_file(tmp_path, what) as path:
        for write in (check_output, atomic_file, atomic_folder):
            with pytest.raises(DyditError, match=f"special: is {what}; choose another place"):
                run(write(path))
        with pytest.raises(OSError, match=f"it is {what}, not a regular file"):
            regular_file(path)
        with pytest.raises(DyditError, match=f"special: cannot be read: it is {what}, not a regular file"):
            read_json(path)
        assert names(tmp_path) == ["special"]
    assert not Path("/dev/null").is_file()


def test_regular_files_are_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[1]")
    (tmp_path / "b").symlink_to("a")
    assert regular_file(tmp_path / "b") == tmp_path / "b"
    with pytest.raises(OSError, match="it is a folder, not a regular file"):
        regular_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "c")
    with pytest.raises(OSError, match="no name of a file"):
        regular_file("a\0b")


def test_a_text_that_does_not_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="it is over 5 bytes long"):
        files.read_text(tmp_path / "a.json", 5)
    assert files.read_text(tmp_path / "a.json", 6) == "[1, 2]"


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    for write, name in ((check_output, "x" * 300), (locked, "x" * 250), (atomic_file, "x" * 250)):
        with pytest.raises(DyditError, match="cannot be written: File name too long; choose another place"):
            run(write(tmp_path / name))


# a folder in place of another


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("before", ["folder", "file", "nothing"])
def test_a_folder_replaces_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, exchanges: bool) -> None:
    """Whether or not the system can exchange two names."""
    out = tmp_path / "out"
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    if before == "folder":
        out.mkdir()
        (out / "old").write_text("")
    elif before == "file":
        out.write_text("")
    with atomic_folder(out) as temporary:
        (temporary / "new").write_text("")
    assert (names(tmp_path), names(out)) == (["out"], ["new"])


@pytest.mark.parametrize("failing", [1, 2])
def test_what_cannot_be_replaced_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """Where names cannot be exchanged, the old folder is put aside first."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("all of it")
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)

    replace, calls = os.replace, list[Path]()

    def busy(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(16, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(DyditError, match="out: cannot be written: Device or resource busy"):
        run(atomic_folder(tmp_path / "out"))
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "old").read_text() == "all of it"


def test_what_a_kill_left_is_nobodys_work(tmp_path: Path) -> None:
    """An empty folder it is but for that; a hidden file of somebody's is not taken for it."""
    for scrap in (".state.lock", ".recipe.json.abcd_123.tmp.json", ".a.safetensors.abcd1234.tmp.safetensors"):
        (tmp_path / scrap).write_text("")
    assert check_output(tmp_path) == tmp_path
    for mine in (".tmp", ".todo.tmp", "a.lock"):
        (tmp_path / mine).write_text("")
        with pytest.raises(DyditError, match="already exists"):
            check_output(tmp_path)
        (tmp_path / mine).unlink()
    (tmp_path / ".state.lock").write_text("not empty")
    with pytest.raises(DyditError, match="already exists"):
        check_output(tmp_path)


# locks

HOLDER = (
    "import sys, time; from dydit_cli.files import locked\n"
    "with locked(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)\n"
)


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that holds `path`; killed at the end."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


BUSY = "out: another process of dydit is writing it; wait for that one, or choose another place"


def test_an_output_is_one_processs_until_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    with held_elsewhere(out):
        for write in (locked, atomic_folder):
            with pytest.raises(DyditError, match=BUSY):
                run(write(out))
        with pytest.raises(DyditError, match="link: another process"):  # by another name too
            run(locked(tmp_path / "link"))
        run(locked(tmp_path / "other"))
    run(locked(out))  # kill -9 gives it back
    with atomic_folder(out) as temporary:
        (temporary / "new").write_text("")
    assert names(tmp_path) == ["link", "out"]


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        assert names(tmp_path) == [".out.lock"]
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError), locked(tmp_path / "out"):
        raise RuntimeError
    assert names(tmp_path) == []


def hold(path: Path, seconds: float, held: object) -> None:
    with claim(path):
        held.set()  # type: ignore[attr-defined]
        time.sleep(seconds)


def test_a_claim_can_be_waited_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "row", 0.3, held))
    process.start()
    assert held.wait(30)
    with claim(tmp_path / "row") as mine:
        assert not mine
    with claim(tmp_path / "row", wait=True) as mine:
        assert mine
        process.join(30)
        assert process.exitcode == 0
    assert names(tmp_path) == ["row"]  # which it is claimed by again


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DyditError, match="out: cannot be written: File exists; choose another place"):
        run(locked(tmp_path / "file" / "out"))

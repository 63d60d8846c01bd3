"""What the machine does to a command: full disks, links, pipes, other processes; and numbers too large for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dydit_cli.checkpoint.read import read
from dydit_cli.files import locked
from tests.conftest import no_room
from tests.processes import dydit

WRITERS = {
    "convert": "convert {room}/static {out}",
    "prune": "prune {room}/static {out} --method magnitude",
    "finetune": "finetune {room}/converted --steps 1 --batch-size 4 --out {out} --device cpu",
    "sample": "sample {room}/tuned --num 1 --steps 1 --out {out} --device cpu",
    "sample --npz": "sample {room}/tuned --num 1 --steps 1 --npz --out {out} --device cpu",
    "profile": "profile {room}/tuned --images 1 --steps 1 --out {out} --device cpu",
    "profile --width-only": "profile {room}/tuned --width-only --out {out}",
    "losses": "losses {room}/static {room}/tuned --images 1 --timesteps 2 --map-images 1 --map-noises 1 --out {out}",
    "export native": "export {room}/tuned {out} --format native",
    "export diffusers": "export {room}/static {out} --format diffusers --any-variant",
}
FILE_WRITERS = {
    "visualize": ("visualize {room}/profile --data --out {out}", "a.png"),
    "report": ("report {room}/profile --out {out}", "a.html"),
    "export dydit": ("export {room}/tuned {out} --format dydit", "a.pt"),
}
EVERY = {**{name: (command, "out") for name, command in WRITERS.items()}, **FILE_WRITERS}


def words(command: str, room: Path, out: Path) -> list[str]:
    return command.format(room=room, out=out).split()


@pytest.mark.parametrize("name", EVERY)
def test_a_full_disk_is_one_line_and_leaves_nothing(room: Path, tmp_path: Path, name: str) -> None:
    command, out = EVERY[name]
    with no_room(100):
        result = dydit(*words(command, room, tmp_path / out))
    assert result.exit_code == 2, result.output
    *_, line = result.stderr.splitlines()
    assert "cannot be written: " in line
    assert "too large" in line
    # a run's folder is begun, and continued by the same command
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["out"] if name in ("finetune", "sample --npz") else [])
    assert dydit(*words(command, room, tmp_path / out)).exit_code == 0


@pytest.mark.parametrize("name", EVERY)
def test_every_output_follows_a_link(room: Path, tmp_path: Path, name: str) -> None:
    command, out = EVERY[name]
    target = tmp_path / "disk" / out
    target.parent.mkdir()
    link = tmp_path / out
    link.symlink_to(target)
    dangling = dydit(*words(command, room, link))
    assert dangling.exit_code == 2, dangling.output
    assert f"{out}: is a link to {target}, which is not there; make it, or choose another place" in dangling.stderr
    assert list(target.parent.iterdir()) == []
    if name in FILE_WRITERS:
        target.write_text("old")
    else:
        target.mkdir()
        (target / "config.json").write_text("old")
    result = dydit(*words(command, room, link), "--force")
    assert result.exit_code == 0, result.output
    assert link.is_symlink()
    assert os.readlink(link) == str(target)
    if name in FILE_WRITERS:
        assert target.read_bytes() != b"old"
    else:
        assert len(list(target.iterdir())) > 1
    assert [path.name for path in target.parent.iterdir()] == [out]


@pytest.mark.parametrize("name", EVERY)
def test_a_pipe_is_no_output(room: Path, tmp_path: Path, name: str) -> None:
    command, out = EVERY[name]
    os.mkfifo(tmp_path / out)
    for force in ([], ["--force"]):
        result = dydit(*words(command, room, tmp_path / out), *force)
        assert result.exit_code == 2, result.output
        assert f"{out}: is a pipe; choose another place" in result.stderr
    assert (tmp_path / out).is_fifo()


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_of_another_process_is_refused(room: Path, tmp_path: Path, name: str) -> None:
    """As two identical commands write one: with --force too."""
    with locked(tmp_path / "out"):
        for force in ([], ["--force"]):
            result = dydit(*words(WRITERS[name], room, tmp_path / "out"), *force)
            assert result.exit_code == 2, result.output
            assert "out: another process of dydit is writing it; wait for that one, or choose another place" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_a_pipe_is_one_line(room: Path, tmp_path: Path) -> None:
    """Opening it would wait for good."""
    for name in ("a.pt", "a.safetensors", "folder/a.pt", "folder/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
        result = dydit("inspect", tmp_path / name)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert f"{name}: cannot be read: it is a pipe, not a regular file" in result.stderr
    (tmp_path / "folder" / "a.pt").unlink()
    assert "it is a pipe, not a regular file" in dydit("inspect", tmp_path / "folder").stderr
    os.mkfifo(tmp_path / "folder" / "config.json")
    result = dydit("inspect", tmp_path / "folder")
    assert (result.exit_code, "it is a pipe" in result.stderr) == (2, True)
    os.mkfifo(tmp_path / "recipe.toml")
    result = dydit("finetune", room / "converted", "--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "out")
    assert (result.exit_code, "recipe.toml: not a readable TOML recipe: it is a pipe" in result.stderr) == (2, True)


def test_a_name_that_is_too_long_is_one_line(room: Path, tmp_path: Path) -> None:
    for command in (["inspect", "x" * 300], ["convert", room / "static", tmp_path / ("x" * 300)]):
        result = dydit(*command)
        assert (result.exit_code, "internal error" in result.stderr) == (2, False), result.output


# seeds

SEEDED = {
    "convert": WRITERS["convert"],
    "prune": "prune {room}/static {out} --method random",
    **{name: WRITERS[name] for name in ("finetune", "sample", "profile", "losses")},
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_has_63_bits(room: Path, tmp_path: Path, name: str) -> None:
    result = dydit(*words(SEEDED[name], room, tmp_path / "out"), "--seed", 2**63)
    assert result.exit_code == 2
    assert result.stderr == "error: --seed 9223372036854775808; it must be a whole number from 0 to 9223372036854775807\n"
    assert list(tmp_path.iterdir()) == []
    result = dydit(*words(SEEDED[name], room, tmp_path / "out"), "--seed", 2**63 - 1)
    assert result.exit_code == 0, result.output


# standard output


def in_a_shell(command: str) -> subprocess.CompletedProcess[str]:
    line = f"{sys.executable} -m dydit_cli {command}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no device that is always full")
def test_a_full_standard_output_is_one_line() -> None:
    for command in ("--version > /dev/full", "--help > /dev/full"):
        done = in_a_shell(command)
        assert (done.returncode, done.stderr) == (2, "error: output: No space left on device\n")
    assert in_a_shell("nothing 2> /dev/full").returncode == 2


def test_a_reader_that_leaves_is_no_error() -> None:
    done = in_a_shell("--help | true")
    assert (done.stdout, done.stderr) == ("", "")


# several processes


ALONE = {name: command for name, command in EVERY.items() if name.split()[0] not in ("finetune", "sample")}


@pytest.mark.parametrize("command", [*ALONE.values(), ("inspect {room}/static", "out")], ids=[*ALONE, "inspect"])
def test_what_processes_cannot_share_is_refused_once(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        result = dydit(*words(command[0], room, tmp_path / command[1]))
        assert (result.exit_code, result.stdout) == (2, "")
        name = command[0].split()[0]
        line = f"error: WORLD_SIZE=2: dydit {name} runs in one process; start it without the launcher\n"
        assert result.stderr == (line if rank == 0 else "")
    assert list(tmp_path.iterdir()) == []


def test_exports_are_the_same_bytes_each_time(room: Path, tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        assert dydit("export", room / "tuned", tmp_path / name, "--format", "dydit").exit_code == 0
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    weights = read(room / "tuned").weights
    assert all(torch.equal(w, weights[name]) for name, w in torch.load(tmp_path / "a.pt", weights_only=True).items())

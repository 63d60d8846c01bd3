"""Mutated checkpoint files through the reader: each is read, or refused in one line, and nothing else ever happens.

    python -m tests.fuzz_checkpoints --cases 20000

prints how many of each, and fails on a traceback, a hang or a message of several lines. Needs a Unix alarm clock.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import save_file

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.inspect import inspect
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig

SMALL = DiTConfig(input_size=2, patch_size=1, in_channels=1, hidden_size=8, depth=2, num_heads=2, num_classes=2)
READING = LoadOptions(num_heads=2, family="dit")
SECONDS_PER_CASE = 20


def make_originals(folder: Path) -> list[Path]:
    """One small checkpoint of every format; returns what a reader is given for each."""
    torch.manual_seed(0)
    static, dynamic = DiT(SMALL), DyDiT(DyDiTConfig.from_static(SMALL, token_router_reduction=4))
    weights = static.state_dict()
    write(Checkpoint.of(static, [{"action": "pretrain", "steps": 3}]), folder / "native")
    write(Checkpoint.of(dynamic, []), folder / "native-dynamic")
    export(folder / "native", folder / "diffusers", format="diffusers", any_variant=True)
    for name in ("plain", "legacy", "train", "dydit"):
        (folder / name).mkdir()
    torch.save(weights, folder / "plain" / "a.pt")
    torch.save(weights, folder / "legacy" / "a.pt", _use_new_zipfile_serialization=False)
    args = Namespace(model="DiT-S/2", lr=1e-4)
    torch.save({"model": weights, "ema": weights, "opt": {"step": 1}, "args": args}, folder / "train" / "a.pt")
    torch.save(dynamic.state_dict(), folder / "dydit" / "a.pt")
    (folder / "bare").mkdir()
    save_file(weights, folder / "bare" / "a.safetensors")
    (folder / "shards").mkdir()
    files = {name: f"{i % 2}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in ("0.safetensors", "1.safetensors"):
        save_file({name: w for name, w in weights.items() if files[name] == file}, folder / "shards" / file)
    (folder / "shards" / "a.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return sorted(folder.iterdir())


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 4, 32))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def splice(data: bytearray, chance: random.Random) -> None:
    """A piece of the file is copied over, or into, another place."""
    a, b = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
    piece, at = data[a : min(b, a + 4096)], chance.randrange(len(data))
    data[at : at + (len(piece) if chance.random() < 0.5 else 0)] = piece


def rename(data: bytearray, chance: random.Random) -> None:
    """A letter of a name somewhere near the front becomes another."""
    words = list(re.finditer(rb"[A-Za-z_][A-Za-z_0-9.]{3,}", bytes(data[:8192])))
    if words:
        word = chance.choice(words)
        data[chance.randrange(word.start(), word.end())] = chance.randrange(97, 123)


def lie(data: bytearray, chance: random.Random) -> None:
    """A number in the header, or the header's length, becomes another."""
    numbers = list(re.finditer(rb"\d+", bytes(data[:8192])))
    if numbers and chance.random() < 0.8:
        number = chance.choice(numbers)
        lies = (b"0", b"-1", b"999999999999", b"1e9", b"7", b"18446744073709551616", b"2", b"null", b"[]")
        data[number.start() : number.end()] = chance.choice(lies)
    else:
        data[0:8] = chance.randrange(2 ** chance.choice((8, 16, 40, 64))).to_bytes(8, "little")


MUTATIONS: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flip": flip,
    "cut": cut,
    "splice": splice,
    "rename": rename,
    "lie": lie,
}


def mutate(original: Path, seed: int, folder: Path) -> str:
    """A damaged copy of `original` in `folder`; returns how it was damaged."""
    chance = random.Random(seed)
    shutil.copytree(original, folder)
    file = chance.choice(sorted(folder.iterdir()))
    data, names = bytearray(file.read_bytes()), []
    for _ in range(chance.choice((1, 1, 2, 3))):
        name = chance.choice(list(MUTATIONS))
        if data:
            MUTATIONS[name](data, chance)
        names.append(name)
    file.write_bytes(data)
    return f"{original.name}/{file.name}: {', '.join(names)}, seed {seed}"


class Hang(BaseException):
    """No ordinary exception, so that no reader can take it for the file's fault."""


def run_case(original: Path, seed: int, folder: Path) -> str:
    """`read` or `refused`, and its headers too; raises AssertionError, naming the case, for anything else."""
    what = mutate(original, seed, folder)

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS_PER_CASE)
    try:
        with suppress(DyditError):
            inspect(folder, READING)
        read(folder, READING).build()
        return "read"
    except DyditError as error:
        text = str(error)
        assert "\n" not in text, f"{what}: several lines: {text!r}"
        assert len(text) < 1000, f"{what}: {len(text)} characters"
        return "refused"
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, counts = time.perf_counter(), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "originals").mkdir()
        originals = make_originals(Path(name) / "originals")
        for i in range(options.cases):
            original = originals[i % len(originals)]
            counts[run_case(original, options.seed + i, Path(name) / "case")] += 1
    took = time.perf_counter() - start
    print(f"{options.cases} cases in {took:.0f} s: {counts['refused']} refused in one line, {counts['read']} read, 0 others")


if __name__ == "__main__":
    main()

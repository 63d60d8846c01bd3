"""Checkpoints are data: damage, malice, kill -9 and size."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.checkpoint.stream import SafetensorsWriter
from dydit_cli.model.families.dit import DiT, DiTConfig
from tests.conftest import ROOT, TINY, randomize
from tests.fuzz_checkpoints import make_originals, run_case

CASES = 2000


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_originals(tmp_path_factory.mktemp("originals"))


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(which=st.integers(0, 8), seed=st.integers(0, 2**32))
def test_a_mutated_file_is_read_or_refused_in_one_line(originals: list[Path], which: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert run_case(originals[which], seed, Path(folder) / "case") in ("read", "refused")


def test_there_are_nine_originals(originals: list[Path]) -> None:
    assert len(originals) == 9


WRITER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {root!r})
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from tests.conftest import TINY, randomize
from dydit_cli.model.families.dit import DiT
checkpoint = Checkpoint.of(randomize(DiT(TINY), seed=1), [{{"action": "second"}}])
print("ready", flush=True)
while True:
    write(checkpoint, {path!r})
"""


def test_kill_nine_during_a_write_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Four kills at different moments of an endless overwriting: what is there is always one whole checkpoint."""
    path = tmp_path / "model"
    write(Checkpoint.of(randomize(DiT(TINY)), [{"action": "first"}]), path)
    script = WRITER.format(root=str(ROOT), path=str(path))
    for i in range(4):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.01 + 0.007 * i)
            process.kill()
        assert read(path).build().num_parameters() == DiT(TINY).num_parameters()


WATCHER = """
import sys, threading, time
from dydit_cli.compress.convert import convert
from dydit_cli.checkpoint.read import LoadOptions, read
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith({kind!r})).split()[1]) * 1024
convert("digits-dit", {path!r} + ".warm")  # what a first conversion imports is not the file's
before = peak = resident()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
{work}
done = True
thread.join()
print(peak - before)
"""


def peak_memory(path: Path, work: str, kind: str) -> int:
    """Bytes that `work` adds at its peak, in a process of its own: `RssAnon`, or with mapped files `VmRSS`."""
    script = WATCHER.format(path=str(path), work=work, kind=kind)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def large_weights(depth: int = 28) -> tuple[dict[str, torch.Tensor], int]:
    """A DiT's weights, over 100 MB at depth 28, all zeros, and their size in bytes."""
    config = DiTConfig(input_size=16, hidden_size=256, depth=depth, num_heads=8, num_classes=10)
    with torch.device("meta"):
        shapes = DiT(config).state_dict()
    weights = {key: torch.zeros(w.shape) for key, w in shapes.items()}
    size = sum(w.numel() * w.element_size() for w in weights.values())
    assert size > 100e6
    return weights, size


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory in Linux's /proc")


@NEEDS_PROC
@pytest.mark.parametrize("name", ["train.pt", "model.safetensors"])
def test_reading_maps_files_and_copies_little(tmp_path: Path, name: str) -> None:
    """120 MB of weights (beside them in the .pt as many again and the optimiser's 240) cost under a quarter of that."""
    weights, size = large_weights()
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save({"model": weights, "ema": weights, "opt": {"exp_avg": torch.zeros(size // 2)}}, path)
    else:
        save_file(weights, path)
    assert peak_memory(path, f"checkpoint = read({str(path)!r}, LoadOptions(num_heads=8))", "RssAnon") < size / 4


@NEEDS_PROC
def test_converting_takes_little_more_than_the_file(tmp_path: Path) -> None:
    """The source is mapped, and the result never whole in memory: at most 1.3 times the file, the mapping included.

    Twice as deep as the others: what the allocator keeps for two blocks, 25 to 50 MB, is no share of the file.
    """
    weights, size = large_weights(depth=56)
    torch.save(weights, tmp_path / "a.pt")
    work = f"convert({str(tmp_path / 'a.pt')!r}, {str(tmp_path / 'out')!r}, reading=LoadOptions(num_heads=8))"
    assert peak_memory(tmp_path / "a.pt", work, "VmRSS") < 1.3 * size


def test_streamed_files_are_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5).bfloat16(),
        "a": torch.randn(7),
        "c": torch.randn(2, 2, dtype=torch.float64),
        "d": torch.randn(4, 6).t().half(),
    }
    layout = {name: (w.dtype, tuple(w.shape)) for name, w in tensors.items()}
    with SafetensorsWriter(tmp_path / "x.safetensors", layout) as out:
        for name, w in tensors.items():
            out.write(name, w)
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], w) for name, w in tensors.items())
    with pytest.raises(RuntimeError, match="a was not written"), SafetensorsWriter(tmp_path / "y", layout) as out:
        out.write("b", tensors["b"])
    with pytest.raises(RuntimeError, match=r"not torch\.float32"), SafetensorsWriter(tmp_path / "z", layout) as out:
        out.write("a", tensors["b"])

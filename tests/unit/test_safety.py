"""Checkpoints are data: damage, malice, kill -9 and size."""

from __future__ import annotations

import io
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.inspect import inspect
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.checkpoint.stream import NAMES, SafetensorsWriter, write_safetensors
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DiTConfig
from tests import fuzz_checkpoints
from tests.conftest import ROOT, TINY, randomize
from tests.fuzz_checkpoints import make_originals, run_case

CASES = 2000
READING = LoadOptions(num_heads=TINY.num_heads, family="dit")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_originals(tmp_path_factory.mktemp("originals"))


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(which=st.integers(0, 8), seed=st.integers(0, 2**32))
def test_a_mutated_file_is_read_or_refused_in_one_line(originals: list[Path], which: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert run_case(originals[which], seed, Path(folder) / "case") in ("read", "refused")


@pytest.mark.parametrize("which", range(9))
def test_headers_alone_tell_what_the_whole_file_tells(originals: list[Path], which: int) -> None:
    headers, whole = (inspect(originals[which], fuzz_checkpoints.READING, check=check) for check in (False, True))
    assert (headers.pop("finite"), whole.pop("finite")) == (None, True)
    assert headers == whole


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_numbers_that_are_not_finite_are_found_with_check(tmp_path: Path, name: str) -> None:
    weights = randomize(DiT(TINY)).state_dict()
    weights["x_embedder.proj.bias"][0] = float("nan")
    (torch.save if name.endswith(".pt") else save_file)(weights, tmp_path / name)
    assert inspect(tmp_path / name, READING)["finite"] is None
    with pytest.raises(DyditError, match=rf"{name}: x_embedder.proj.bias holds NaN or Inf"):
        inspect(tmp_path / name, READING, check=True)


def test_embedders_of_other_shapes_are_found_without_numbers(tmp_path: Path, originals: list[Path]) -> None:
    """diffusers has one in every block; the headers tell their shapes."""
    folder = next(path for path in originals if path.name == "diffusers")
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "diffusion_pytorch_model.safetensors"
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    weights = load_file(file)
    save_file({**weights, name: weights[name][1:].clone()}, file)
    with pytest.raises(DyditError, match=f"{name} differs from block 0's"):
        inspect(tmp_path / "copy")


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
from dydit_cli.checkpoint.inspect import inspect
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
thread = threading.Thread(target=watch, daemon=True)
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
    assert peak_memory(path, f"checkpoint = read({str(path)!r}, LoadOptions(num_heads=8, family='dit'))", "RssAnon") < size / 4


@NEEDS_PROC
@pytest.mark.parametrize("name", ["train.pt", "model.safetensors"])
def test_inspecting_reads_headers_alone(tmp_path: Path, name: str) -> None:
    """Of 120 MB of weights not a tenth becomes resident, the mapping included."""
    weights, size = large_weights()
    path = tmp_path / name
    torch.save({"model": weights, "ema": weights}, path) if name.endswith(".pt") else save_file(weights, path)
    assert peak_memory(path, f"inspect({str(path)!r}, LoadOptions(num_heads=8, family='dit'))", "VmRSS") < size / 10


@NEEDS_PROC
def test_converting_takes_little_more_than_the_file(tmp_path: Path) -> None:
    """The source is mapped, and the result never whole in memory: at most 1.3 times the file, the mapping included.

    Twice as deep as the others: what the allocator keeps for two blocks, 25 to 50 MB, is no share of the file.
    """
    weights, size = large_weights(depth=56)
    torch.save(weights, tmp_path / "a.pt")
    work = f"convert({str(tmp_path / 'a.pt')!r}, {str(tmp_path / 'out')!r}, reading=LoadOptions(num_heads=8, family='dit'))"
    assert peak_memory(tmp_path / "a.pt", work, "VmRSS") < 1.3 * size


def test_a_file_that_would_inflate_is_refused_unread(tmp_path: Path) -> None:
    """100 kB that would become 100 MB: the zip's directory tells, so that nothing of it is read."""
    repack({"a": torch.zeros(10)}, tmp_path / "a.pt", b"\0" * 100_000_000)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DyditError, match=r"a\.pt: refused: its [\d,]+ bytes would become 100,\d+,\d+; a checkpoint is not"):
        read(tmp_path / "a.pt")
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_file_that_was_compressed_is_read_right(tmp_path: Path) -> None:
    """Mapped, its tensors would be the compressed bytes."""
    weights = randomize(DiT(TINY)).state_dict()
    repack(weights, tmp_path / "a.pt")
    back = read(tmp_path / "a.pt", READING).weights
    assert all(torch.equal(back[name], w) for name, w in weights.items())


def repack(weights: dict[str, torch.Tensor], path: Path, pickle: bytes | None = None) -> None:
    """Saves `weights` as a zip whose entries are compressed; `pickle` in place of its own."""
    with io.BytesIO() as buffer, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        torch.save(weights, buffer)
        with zipfile.ZipFile(buffer) as plain:
            for name in plain.namelist():
                content = plain.read(name)
                packed.writestr(name, pickle if pickle is not None and name.endswith("data.pkl") else content)


@pytest.mark.parametrize("length", [16_000_001, 60_000_000, 2**63])
def test_a_header_that_no_model_has_is_refused_unread(tmp_path: Path, length: int) -> None:
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        if length < 2**32:
            file.truncate(8 + length)
    start = time.perf_counter()
    with pytest.raises(DyditError, match=r"its header says that it is [\d,]+ bytes long; at most 16,000,000 are read"):
        read(tmp_path / "a.safetensors")
    assert time.perf_counter() - start < 1


def test_tensors_that_share_memory_or_lie_crosswise_are_written(tmp_path: Path) -> None:
    """As a state dict may hold them; the library's own writer takes neither."""
    weights = randomize(DiT(TINY)).state_dict()
    crosswise = {name: w.t().contiguous().t() if w.ndim == 2 else w for name, w in weights.items()}
    crosswise["blocks.1.attn.qkv.bias"] = crosswise["blocks.0.attn.qkv.bias"]
    torch.save(crosswise, tmp_path / "a.pt")
    for format in ("native", "diffusers"):
        export(tmp_path / "a.pt", tmp_path / format, format=format, any_variant=True, reading=READING)
        back = read(tmp_path / format).weights
        assert all(torch.equal(back[name], w) for name, w in crosswise.items() if name != "pos_embed")


def test_streamed_files_are_the_librarys_byte_for_byte(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f'{i % 3}.é"{i}': torch.randn(i, 3, generator=generator).to(dtype) for i, dtype in enumerate(NAMES)}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 2)}
    for metadata in ({"format": "pt"}, None):
        save_file(tensors, tmp_path / "a", metadata)
        write_safetensors(tmp_path / "b", tensors, metadata)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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

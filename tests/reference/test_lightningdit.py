"""LightningDiT against the numbers of the authors' code: RMSNorm, SwiGLU, rotary positions, qk-norm, adaLN without shifts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.sampler import guided
from dydit_cli.errors import DyditError
from dydit_cli.model.families.lightningdit import LightningDiTConfig
from tests.reference.test_models import largest_difference

FILES = {"a": "ldit_a.pt", "b": "ldit_b_train.pt", "c": "ldit_c.pt"}
THEIRS = {"use_qknorm": "qk_norm", "use_swiglu": "swiglu", "use_rope": "rope", "use_rmsnorm": "rms_norm"}


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "families" / "lightningdit"


@pytest.fixture(scope="module")
def io(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "ldit_forward.safetensors")


def weights_of(file: Path) -> dict[str, Tensor]:
    values = torch.load(file, weights_only=True)
    weights: dict[str, Tensor] = values.get("ema", values)
    return weights


@pytest.mark.parametrize("case", FILES)
def test_the_file_tells_its_configuration(folder: Path, case: str) -> None:
    """Heads too: by the tables of rotary positions, or the norms of queries."""
    theirs = json.loads((folder / "ldit.json").read_text())["configs"][case]
    ours = {THEIRS.get(name, name): value for name, value in theirs.items() if name != "wo_shift"}
    checkpoint = read(folder / FILES[case])
    assert checkpoint.config == LightningDiTConfig(**ours, shift=not theirs["wo_shift"])
    assert checkpoint.config.num_parameters() == checkpoint.build().num_parameters()
    with pytest.raises(DyditError, match="3 heads that are 48 wide together do not fit"):
        read(folder / FILES[case], LoadOptions(num_heads=3))


@pytest.mark.parametrize("case", FILES)
def test_forward_equals_the_authors_code(folder: Path, io: dict[str, Tensor], case: str) -> None:
    """The sinusoid is float32 in the float64 run too, as it was in theirs."""
    model = read(folder / FILES[case]).build()
    x, t, y = (io[f"{case}.{name}"] for name in "xty")
    with torch.inference_mode():
        assert largest_difference(model(x, t, y), io[f"{case}.out"]) < 1e-5
        assert largest_difference(model.double()(x.double(), t, y), io[f"{case}.out_f64"]) < 1e-10


def test_both_weights_of_a_training_checkpoint(folder: Path, io: dict[str, Tensor]) -> None:
    """Those of `model` have `module.` before their names."""
    model = read(folder / FILES["b"], LoadOptions(weights="model")).build()
    with torch.inference_mode():
        assert largest_difference(model(io["b.x"], io["b.t"], io["b.y"]), io["b.train.model.out"]) < 1e-5


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize(
    ("when", "scale", "channels", "recorded"),
    [("early", 2.0, "3", "w2.0"), ("late", 10.0, "3", "w10.0"), ("late", 2.0, "all", "w2.0.all_channels")],
)
def test_guidance_equals_the_authors_code(
    folder: Path, io: dict[str, Tensor], case: str, when: str, scale: float, channels: Any, recorded: str
) -> None:
    """Of 16 channels too the first three are guided."""
    model = read(folder / FILES[case]).build()
    x, t, y = io[f"{case}.cfg.x"], io[f"{case}.cfg.{when}.t"], io[f"{case}.cfg.y"]
    half = len(x) // 2
    with torch.inference_mode():
        ours = guided(model, x[:half], t[:half], y[:half], model.config.null_class, scale, channels)
    assert largest_difference(ours, io[f"{case}.cfg.{when}.{recorded}"][:half]) < 1e-5


@pytest.mark.parametrize("case", FILES)
def test_export_gives_back_the_same_file(folder: Path, tmp_path: Path, case: str) -> None:
    """Every tensor bit for bit under its own name, the tables of rotary positions among them."""
    export(folder / FILES[case], tmp_path / "native", format="native")
    export(tmp_path / "native", tmp_path / "plain.pt", format="lightningdit")
    before, after = weights_of(folder / FILES[case]), weights_of(tmp_path / "plain.pt")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ("feat_rope.freqs_cos" in after) == (case != "c")
    with pytest.raises(DyditError, match="is a LightningDiT, which diffusers has no class for"):
        export(folder / FILES[case], tmp_path / "diffusers", format="diffusers", any_variant=True)


@pytest.mark.parametrize("kept", [None, 16], ids=["absent", "of another grid"])
def test_tables_that_are_not_this_grids_are_computed(folder: Path, tmp_path: Path, kept: int | None) -> None:
    """Bit for bit what the authors' code stores."""
    weights = weights_of(folder / FILES["a"])
    names = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
    cut = {name: weights[name][:kept] for name in names} if kept else {}
    rest = {name: w for name, w in weights.items() if name not in names}
    torch.save({**rest, **cut}, tmp_path / "file.pt")
    checkpoint = read(tmp_path / "file.pt", LoadOptions(num_heads=4))
    assert all(torch.equal(checkpoint.weights[name], weights[name]) for name in names)
    assert any("no tables of them are stored" in note for note in checkpoint.notes) == (kept is None)


def test_a_dit_is_no_lightningdit(golden: Path, folder: Path) -> None:
    """And where a file could be read as either, the family is as asked."""
    with pytest.raises(DyditError, match="could be of family dit or sit"):
        read(golden / "dit_static_a.pt", LoadOptions(num_heads=4))
    plain = read(golden / "dit_static_a.pt", LoadOptions(num_heads=4, family="lightningdit")).config
    assert isinstance(plain, LightningDiTConfig)
    assert not any((plain.rms_norm, plain.qk_norm, plain.swiglu, plain.rope))
    with pytest.raises(DyditError, match=r"missing blocks\.0\.mlp\.fc1\.weight"):
        read(folder / FILES["a"], LoadOptions(family="dit"))


def test_uneven_groups_and_heads_in_any_order(folder: Path, tmp_path: Path, io: dict[str, Tensor]) -> None:
    """Ranked: heads share the tables and norms, and a channel's gate and value move together."""
    from dydit_cli.compress.convert import convert

    for case in FILES:
        convert(folder / FILES[case], tmp_path / case, ranking="magnitude")
        before, after = read(folder / FILES[case]), read(tmp_path / case)
        moved = {name for name, w in before.weights.items() if not torch.equal(w, after.weights[name])}
        assert {f"blocks.0.{before.config.site('groups').output}.weight", "blocks.0.attn.qkv.weight"} <= moved
        x, t, y = (io[f"{case}.{name}"] for name in "xty")
        with torch.inference_mode():
            assert largest_difference(after.build()(x, t, y), io[f"{case}.out"]) < 1e-5


def test_the_recorded_configuration_is_stored(folder: Path, tmp_path: Path) -> None:
    checkpoint = read(folder / FILES["b"])
    assert isinstance(checkpoint.config, LightningDiTConfig)
    export(folder / FILES["b"], tmp_path / "native", format="native")
    assert read(tmp_path / "native").config == checkpoint.config
    other = replace(checkpoint.config, shift=True)
    with pytest.raises(DyditError, match=r"adaLN_modulation.1.bias is \[192\] where \[288\] is wanted"):
        Checkpoint(other, checkpoint.weights).check()

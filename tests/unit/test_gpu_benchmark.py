"""benchmarks/gpu.py runs whole on small models, notices what is wrong, and keeps to its time. No test judges a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from dydit_cli.model.families import dit_blocks, families
from dydit_cli.model.options import EXECUTIONS
from dydit_cli.model.padded import PaddedModel
from dydit_cli.model.sparse import first_tokens

CPU = torch.device("cpu")


# torch's own import of its compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_all_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "gpu.json", tmp_path / "gpu.md"
    assert gpu.main(["--tiny", "--device", "cpu", "--budget", "600", "--out", str(out), "--table", str(table)]) == 0
    result = json.loads(out.read_text())
    seen = {(one["family"], one["execution"]) for one in result["parity"]}
    assert {(family, execution) for family in families() for execution in EXECUTIONS} <= seen
    assert all(one["right"] for one in result["parity"])
    assert [one["kind"] for one in result["rows"]] == ["sampling", "cached", "training"]
    sampling, cached, training = result["rows"]
    forms = {"static", "static, compiled", "sparse", "sparse, fused", "padded", "padded, compiled"}
    assert sampling["ms_per_step"].keys() == forms
    assert 0.3 < sampling["flops_ratio"] < 0.7
    assert sampling["tokens_share"] <= sampling["capacity_share"] <= 1
    static = min(sampling["ms_per_step"][form]["median"] for form in ("static", "static, compiled"))
    for form, efficiency in sampling["efficiency"].items():
        assert efficiency == pytest.approx(static / sampling["ms_per_step"][form]["median"] * sampling["flops_ratio"])
    assert cached["ms_per_step"].keys() == {"static, compiled", "sparse", "padded"}
    assert training["steps_per_second"].keys() == {"static", "dydit"}
    assert result["left_out"] == ["CUDA graphs and Triton's kernels: the device is cpu"]
    text = table.read_text()
    assert text in capsys.readouterr().out
    assert "Left out: CUDA graphs" in text
    assert text.count("| tiny |") == 3


def test_parity_sees_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that are off in place of those that are on."""
    monkeypatch.setattr(gpu, "families", lambda: {"sit": families()["sit"]})
    monkeypatch.setattr(gpu, "sparse_forms", lambda model, bench, capacity=None: {"padded": PaddedModel(model)})
    right = {one["execution"]: one["right"] for one in gpu.parity(gpu.Bench(CPU, gpu.TINY, gpu.Budget(9)))}
    assert all(right.values())
    monkeypatch.setattr(dit_blocks, "first_tokens", lambda mask, room: first_tokens(1 - mask, room))
    wrong = [one for one in gpu.parity(gpu.Bench(CPU, gpu.TINY, gpu.Budget(9))) if not one["right"]]
    assert {one["execution"] for one in wrong} == {"padded", "padded, little room"}


def test_what_there_is_no_time_for_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parity: list[dict[str, Any]] = [{"family": "dit", "execution": "padded", "difference": 1.0, "right": False}]
    monkeypatch.setattr(gpu, "parity", lambda bench: parity)
    said: list[str] = []
    result = gpu.run(gpu.Bench(CPU, gpu.TINY, gpu.Budget(0)), tmp_path / "gpu.json", said.append)
    assert result["rows"] == []
    assert [what.split(":")[0] for what in result["left_out"]] == [
        "CUDA graphs and Triton's kernels",
        "tiny, ratio 0.5",
        "training tiny",
    ]
    assert "Left out: training tiny: would take 15 s, and 0 s were left." in gpu.table(result)
    assert said == ["parity: 0 of 1 right", "WRONG: dit, padded: 1.0e+00"]
    monkeypatch.setattr(gpu, "run", lambda *arguments: result)
    assert gpu.main(["--tiny", "--device", "cpu"]) == 1


def test_sizes_for_a_gpu_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main(["--device", "cpu"])
    assert error.value.code == 2
    assert "no GPU here, and these sizes are for one; add --tiny to see that all of it runs" in capsys.readouterr().err

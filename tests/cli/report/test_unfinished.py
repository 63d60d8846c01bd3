"""A report of what is not finished says so, and how to continue."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dydit_cli.artifacts.samples import SampleFolder, write_npz
from dydit_cli.reports.page import render
from dydit_cli.reports.report import collect
from tests.cli.report.outline import Outline


@pytest.fixture
def half(room: Path, tmp_path: Path) -> Path:
    """Two shards of three, as a kill leaves `dydit sample --npz`."""
    record = json.loads((room / "samples-static" / "samples.json").read_text())
    record |= {"format": "dydit-npz", "images": 23, "shard_size": 10, "command": "dydit sample static --npz --out half"}
    (tmp_path / "half" / "shards").mkdir(parents=True)
    (tmp_path / "half" / "samples.json").write_text(json.dumps(record))
    for shard, count in ((0, 10), (2, 3)):
        pixels = np.full((count, 8, 8, 3), shard, dtype=np.uint8)
        write_npz(tmp_path / "half" / "shards" / f"{shard:06d}.npz", pixels.shape, [pixels])
    return tmp_path / "half"


def test_an_array_of_which_shards_are_missing(half: Path) -> None:
    samples = SampleFolder.read(half)
    assert (samples.images, samples.drawn, samples.finished) == (23, 13, False)
    (section,) = collect([half])
    assert section.summary.startswith("13 of 23 images drawn from static so far")
    assert section.notes == ["13 of 23 images are drawn. The same command draws the rest: dydit sample static --npz --out half"]
    (gallery,) = section.galleries
    assert len(gallery.pictures) == 10
    assert "13 of 23 images drawn from static so far" in Outline.of(render([section])).text


def test_an_array_whose_first_shard_is_missing_has_no_pictures(half: Path) -> None:
    (half / "shards" / "000000.npz").unlink()
    (section,) = collect([half])
    assert section.summary.startswith("3 of 23 images drawn")
    assert section.galleries == ()


def test_a_whole_array_is_finished(half: Path) -> None:
    pixels = np.zeros((23, 8, 8, 3), dtype=np.uint8)
    write_npz(half / "samples.npz", pixels.shape, [pixels])
    (section,) = collect([half])
    assert section.summary.startswith("23 images drawn from static")
    assert section.notes == []


def test_a_training_that_was_interrupted(room: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(room / "tuned", run)
    (run / "state").mkdir()
    (run / "state" / "run.json").write_text(json.dumps({"action": "finetune", "command": "dydit finetune converted --out run"}))
    (section,) = collect([run])
    assert "This run is not finished: 20 of 300 steps are done in 2.0 s" in section.summary
    assert "This run took" not in section.summary
    assert section.notes == ["The run is not finished: 20 of 300 steps are done. Continue it with: dydit finetune --resume run"]
    # killed before it had a model: what it was begun with is all that is known
    (run / "config.json").unlink()
    (section,) = collect([run])
    assert "20 of 300 steps are done" in section.summary
    assert section.origin.commands == ["dydit finetune converted --out run"]


def test_a_study_whose_rows_are_not_all_done(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "study", tmp_path / "study")
    protocol = json.loads((tmp_path / "study" / "study.json").read_text())
    protocol |= {"rows": 20, "rows_done": 14, "command": "dydit study digits/tradeoff --out study"}
    (tmp_path / "study" / "study.json").write_text(json.dumps(protocol))
    (section,) = collect([tmp_path / "study"])
    assert section.notes == [
        "14 of 20 rows are done: the study is not finished. Continue it with: dydit study digits/tradeoff --out study"
    ]

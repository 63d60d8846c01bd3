"""What commands leave on disk: recognised, read as little as needed, and readable when an earlier dydit wrote it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dydit_cli import marks
from dydit_cli.artifacts.base import Folder, identify, kinds
from dydit_cli.artifacts.evaluation import Evaluation
from dydit_cli.artifacts.profile import Profile
from dydit_cli.artifacts.samples import SampleFolder, write_npz
from dydit_cli.artifacts.width import WidthProfile
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output
from dydit_cli.model.families.dit import DyDiT
from dydit_cli.profiling.profile import profile
from dydit_cli.profiling.width import profile_width
from tests.unit.test_figures import a_study
from tests.unit.test_profiling import SHORT
from tests.unit.test_training_figure import a_run


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_dynamic: DyDiT) -> Checkpoint:
    return Checkpoint.of(tiny_dynamic, [])


def test_each_kind_is_recognised(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write(checkpoint, tmp_path / "checkpoint")
    write(checkpoint, tmp_path / "run")
    a_run(tmp_path / "run")
    a_study(tmp_path / "study")
    Evaluation({"fid": 1.0}, {"images": 2}, []).write(tmp_path / "evaluation")
    for mark in ("samples.json", "demo.json", "losses.json", "compare.json", "width.json", "profile.json", "frontier.json"):
        (tmp_path / mark.partition(".")[0]).mkdir()
        (tmp_path / mark.partition(".")[0] / mark).write_text("{}")
    names = {"compare": "comparison"}
    for path in tmp_path.iterdir():
        assert identify(path).kind == names.get(path.name, path.name)


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for path, message in (
        (tmp_path, r"nothing that a report takes; it takes a checkpoint \(config.json\), a comparison"),
        (tmp_path / "deep.json", "nothing that a report takes"),
        (tmp_path / "nowhere", "nowhere: not found; name a folder that dydit wrote"),
    ):
        with pytest.raises(DyditError, match=message):
            identify(path)


def test_the_marks_are_those_of_the_kinds(tmp_path: Path) -> None:
    """A folder with any of them may be replaced; a study is begun before its table is there."""
    own = {kind.mark for kind in kinds().values() if kind.mark} - {"study.csv"}
    assert own | {marks.STUDY, marks.RECIPE, marks.LATENTS, marks.UNFINISHED_DEMO} == marks.OURS
    for mark in marks.OURS:
        (tmp_path / mark).mkdir()
        (tmp_path / mark / mark).touch()
        assert check_output(tmp_path / mark, force=True)


def test_a_profile_of_an_earlier_dydit_reads_under_todays_names(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write(checkpoint, tmp_path / "model")
    today = profile(tmp_path / "model", tmp_path / "profile", images=2, settings=SHORT, device="cpu")
    file = tmp_path / "profile" / "timesteps.csv"
    old = {"dynamic_macs_cond": "dynamic_macs_labelled", "dynamic_macs_uncond": "dynamic_macs_unlabelled",
           "embed_and_head_macs": "frame_macs"}  # fmt: skip
    table = pd.read_csv(file)
    assert set(old) <= set(table.columns)
    table.rename(columns=old).to_csv(file, index=False)
    pd.testing.assert_frame_equal(Profile.read(tmp_path / "profile").table, today.table)
    assert set(today.blocks["half"]) == {"cond", "uncond"}
    assert {"active_tokens_share_cond", "active_tokens_share_uncond"} <= set(today.images.columns)


def test_widths_come_back(tmp_path: Path, checkpoint: Checkpoint) -> None:
    width = profile_width(checkpoint, tmp_path / "width")
    again = WidthProfile.read(tmp_path / "width")
    assert again.summary == width.summary
    assert np.array_equal(again.heads, width.heads)
    assert np.array_equal(again.groups, width.groups)
    (tmp_path / "width" / "width.npz").write_bytes(b"PK")
    with pytest.raises(DyditError, match=r"width: damaged profile of heads and groups \(.*\); make it anew: dydit profile"):
        WidthProfile.read(tmp_path / "width")


def test_an_evaluation_comes_back(tmp_path: Path) -> None:
    evaluation = Evaluation({"fid": 2.5, "recall": None}, {"images": 3}, ["few"], "dydit evaluate a --out e.json")
    evaluation.write(tmp_path / "e.json")
    assert Evaluation.read(tmp_path / "e.json") == evaluation
    assert set(json.loads((tmp_path / "e.json").read_text())) == {"fid", "recall", "protocol", "notes", "command"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `dydit sample --npz` with 48 MB of images."""
    folder = tmp_path_factory.mktemp("large")
    record = {"format": "dydit-npz", "images": 4000, "sampler": "ddim", "steps": 2, "cfg": 1.5, "seed": 0, "classes": [0, 1]}
    (folder / "samples.json").write_text(json.dumps(record))
    part = np.arange(10 * 64 * 64 * 3, dtype=np.uint8).reshape(10, 64, 64, 3)

    def parts() -> Iterator[np.ndarray]:
        for i in range(400):
            yield part + np.uint8(i % 256)

    write_npz(folder / "samples.npz", (4000, 64, 64, 3), parts())
    return folder


def test_of_a_large_array_the_first_images_alone_are_read(large: Path) -> None:
    tracemalloc.start()
    first = SampleFolder.read(large).first(10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    with np.load(large / "samples.npz") as arrays:
        assert np.array_equal(first, arrays["arr_0"][:10])


def test_a_kind_of_ones_own_is_one_class(tmp_path: Path) -> None:
    class Toy(Folder):
        kind, name, made_by = "toy", "a toy", "dydit toy --out DIR"
        mark = "toy.json"
        files = (mark,)
        format = "dydit-toy"

        @classmethod
        def read(cls, path: str | Path) -> Toy:
            cls.read_summary(Path(path))
            return cls()

    try:
        with pytest.raises(DyditError, match=r"not a toy: it has no toy.json; make one with: dydit toy --out DIR"):
            Toy.read(tmp_path)
        (tmp_path / "toy.json").write_text(json.dumps(Toy.header()))
        assert identify(tmp_path) is Toy
        assert isinstance(Toy.read(tmp_path), Toy)
    finally:
        from dydit_cli.artifacts import base

        del base._kinds["toy"]

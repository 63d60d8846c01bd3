"""The figure of a training run, from its metrics alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dydit_cli.artifacts.run import Run
from dydit_cli.cli.app import app
from dydit_cli.errors import DyditError
from dydit_cli.figures.training import draw_training


def a_run(folder: Path, steps: int = 200, **values: Any) -> Path:
    """Metrics as a run leaves them; `values` are functions of the step, or constants."""
    every = {
        "mse": lambda step: 0.5 / (1 + step / 20),
        "vb": 0.01,
        "ratio": lambda step: 1 - 0.5 * step / steps,
        "target": lambda step: max(0.5, 1 - step / steps),
        "skipped": lambda step: step in (7, 9),
        "complete_loss": None,
        **values,
    }
    rows = [
        {"step": step, **{name: value(step) if callable(value) else value for name, value in every.items()}}
        for step in range(1, steps + 1)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def labels(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_ratio_target_and_loss_are_drawn(tmp_path: Path) -> None:
    figure = draw_training(Run.read(a_run(tmp_path / "run")))
    above, below = figure.axes
    assert labels(above) == ["achieved, under the training noise", "target"]
    assert labels(below) == ["diffusion loss", "2 steps skipped by the gradient guard"]
    target = next(line for line in above.get_lines() if line.get_label() == "target")
    assert np.asarray(target.get_ydata())[[0, -1]].tolist() == [0.995, 0.5]
    assert above.get_title() == "FLOPs ratio: 0.505 at the end, target 0.500"


def test_a_static_run_has_its_loss_alone(tmp_path: Path) -> None:
    figure = draw_training(Run.read(a_run(tmp_path / "run", ratio=None, target=None, skipped=False)))
    (only,) = figure.axes
    assert labels(only) == ["diffusion loss"]


def test_the_complete_models_loss_joins_the_steps_that_have_one(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", complete_loss=lambda step: 0.3 if step % 2 and step < 100 else None)
    below = draw_training(Run.read(run)).axes[1]
    (line,) = [line for line in below.get_lines() if "complete" in str(line.get_label())]
    assert len(np.asarray(line.get_xdata())) == 50


def test_losses_that_are_not_finite_do_not_stop_it(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", mse=lambda step: float("nan") if step < 3 else 0.1)
    low, high = draw_training(Run.read(run)).axes[1].get_ylim()
    assert 0 <= low < 0.11 < high < 1


def test_the_command_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "training.png"
    arguments = ["visualize", str(a_run(tmp_path / "run")), "--figure", "training", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert picture.width == 1300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a training run: it has no metrics.jsonl"),
        ("", "holds no step yet"),
        ('{"step": 1', "not readable as metrics"),
        ('{"step": 1}\n', "its lines lack 'mse'"),
        ("[1]\n", "its lines lack 'step'"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(DyditError, match=message):
        Run.read(tmp_path)

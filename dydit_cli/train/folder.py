"""The folder of a run: what it was asked for, its metrics, and where it stands after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, check_output, write_json
from dydit_cli.train.loop import StepMetrics
from dydit_cli.train.recipe import Recipe
from dydit_cli.train.state import STATE_FOLDER, Saved, StateFolder
from dydit_cli.train.team import Team

METRICS_FILE, RECIPE_FILE = "metrics.jsonl", "recipe.json"


@dataclass(frozen=True)
class Asked:
    """What a run is: `action`, the weights it begins with, the recipe; and `source`, where those weights were read."""

    action: str
    start: Checkpoint
    recipe: Recipe
    source: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """What a resumed run has to repeat, flat: `train.lr` and so on."""
        return {"action": self.action, "start": fingerprint(self.start), **flat(self.recipe.model_dump())}


@dataclass(frozen=True)
class RunFolder:
    """The folder `path`: recipe.json, metrics.jsonl, in the end the model, and until then the states."""

    path: Path

    @property
    def states(self) -> StateFolder:
        return StateFolder(self.path)

    def check(self, force: bool) -> None:
        """Raises `DyditError` where neither a new run can begin here nor an unfinished one continue."""
        if force or not (self.states.exists() or self._barely_begun()):
            check_output(self.path, force)

    def open(self, asked: Asked, force: bool, team: Team, on_note: Callable[[str], None]) -> Saved | None:
        """Begins a run, or finds where the unfinished one in the folder stands: its newest state, None for the very start.

        After `check`. Raises `DyditError` where the unfinished run was asked for otherwise (without `force`, which starts
        anew).
        """
        facts = asked.facts()
        unfinished = self.states.exists() and not force
        if unfinished:
            self.states.check(facts)
        team.wait()  # all have looked before anything changes
        if team.main:
            if not unfinished:
                self.states.remove()
                write_json(self.path / RECIPE_FILE, asked.recipe.model_dump())
                self.states.begin({**facts, "source": asked.source})
            self.states.sweep()
        team.wait()
        saved = self.states.newest(on_note if team.main else lambda text: None)
        team.wait()
        if team.main:
            self._cut_metrics(0 if saved is None else saved.step)
        return saved

    def _barely_begun(self) -> bool:
        """Whether a kill in the first moment left what is there: nothing is lost where it begins again."""
        beginnings = (f".{RECIPE_FILE}.", f".{STATE_FOLDER}.")
        return self.path.is_dir() and all(
            child.name == RECIPE_FILE or child.name.startswith(beginnings) for child in self.path.iterdir()
        )

    def _cut_metrics(self, steps: int) -> None:
        """Leaves the lines of the first `steps` steps: those after the state will be written again."""
        file = self.path / METRICS_FILE
        lines = file.read_bytes().splitlines(keepends=True)[:steps] if file.is_file() else []
        if len(lines) < steps or any(not line.endswith(b"\n") for line in lines[-1:]):
            raise DyditError(f"{file}: lacks lines up to step {steps}, where the state was saved; start anew with --force")
        with atomic_file(file) as temporary:
            temporary.write_bytes(b"".join(lines))

    @contextmanager
    def log(self, main: bool) -> Iterator[MetricsLog]:
        """metrics.jsonl, open at its end; in other processes than the `main` one, nothing."""
        with open(self.path / METRICS_FILE if main else os.devnull, "a", encoding="utf-8", buffering=1) as file:
            yield MetricsLog(file)


class MetricsLog:
    """Lines of metrics.jsonl."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, metrics: StepMetrics) -> None:
        self._file.write(json.dumps(metrics.to_dict()) + "\n")

    def settle(self) -> None:
        """Brings what was written to the disk, so that no state is ever ahead of its metrics."""
        self._file.flush()
        os.fsync(self._file.fileno())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest of a configuration and its weights, wherever they were read from."""
    digest = hashlib.sha256(json.dumps(checkpoint.config.to_dict(), sort_keys=True).encode())
    for name in sorted(checkpoint.weights):
        weight = checkpoint.weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

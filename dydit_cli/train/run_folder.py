"""A run's training state on disk: all that the steps to come depend on, as data (safetensors and JSON), never as pickle.

A run that is not finished has a folder `state` with run.json, which says what was asked for, and a folder for each save,
which appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dydit_cli.artifacts.run import BEGUN_FILE, METRICS_FILE, RECIPE_FILE, STATE_FOLDER, StepMetrics
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.distributed import Distributed
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, atomic_file, atomic_folder, check_output, write_json
from dydit_cli.provenance import made_by
from dydit_cli.train.batch import TrainingBatches
from dydit_cli.train.recipe import Recipe
from dydit_cli.train.step import Trainer

TENSORS_FILE, FACTS_FILE = "tensors.safetensors", "facts.json"

FORMAT, FORMAT_VERSION = "dydit-run", 1


@dataclass(frozen=True)
class Saved:
    """The state after `step` steps: `tensors` by name, on the cpu, and `facts`, plain numbers."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def capture(step: int, engine: Trainer, draw: TrainingBatches, facts: dict[str, Any]) -> Saved:
    """Weights, EMA, optimiser, random numbers and data order after `step` steps; `facts` are the loop's own."""
    tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in engine.model.named_parameters()}
    tensors |= {f"ema.{name}": p for name, p in engine.ema.weights.items()}
    for name, p in engine.model.trainable():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in engine.optimizer.state[p].items()}
    order = draw.state()
    tensors |= {f"draw.{name}": value for name, value in order.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in order.items() if not isinstance(value, Tensor)}
    here = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return Saved(step, here, {**facts, "ema_updates": engine.ema.updates, "draw": numbers})


@torch.no_grad()
def restore(saved: Saved, engine: Trainer, draw: TrainingBatches) -> None:
    """The inverse of `capture`; raises `DyditError` where the state is another model's."""
    tensors = saved.tensors
    try:
        for name, p in engine.model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
            engine.ema.weights[name].copy_(tensors[f"ema.{name}"])
        for name, p in engine.model.trainable():
            start = f"optimizer.{name}."
            # none at all where the guard has skipped every step so far
            own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if own:
                engine.optimizer.state[p] = {key: value.to(p.device, copy=True) for key, value in own.items()}
        engine.ema.updates = saved.facts["ema_updates"]
        order = {name.removeprefix("draw."): value for name, value in tensors.items() if name.startswith("draw.")}
        draw.restore({**order, **saved.facts["draw"]})
    except (KeyError, RuntimeError) as error:
        raise DyditError(f"the training state does not fit the model: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class StateFolder:
    """The folder `state` in the folder `run` of a training run."""

    run: Path

    @property
    def path(self) -> Path:
        return self.run / STATE_FOLDER

    def exists(self) -> bool:
        """Whether there is an unfinished run."""
        return (self.path / BEGUN_FILE).is_file()

    def begin(self, asked: dict[str, Any]) -> None:
        """Makes the folder with what was asked for, which a resumed run has to repeat."""
        with atomic_folder(self.path) as temporary:
            text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asked}, indent=2)
            (temporary / BEGUN_FILE).write_text(text + "\n", encoding="utf-8")

    def asked(self) -> dict[str, Any]:
        """What `begin` wrote; raises `DyditError` where that is not to be had."""
        try:
            values = json.loads((self.path / BEGUN_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DyditError(f"{self.run}: holds no unfinished run to resume") from None
        except (OSError, ValueError) as error:
            raise DyditError(f"{self.path / BEGUN_FILE}: cannot be read: {error}; start anew with --force") from None
        if not isinstance(values, dict) or (values.get("format"), values.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise DyditError(f"{self.path / BEGUN_FILE}: not written by this version of dydit; start anew with --force")
        return values

    def check(self, asked: dict[str, Any], free: tuple[str, ...] = ()) -> None:
        """Raises `DyditError`, naming the first difference, where the run was begun with other values than `asked`."""
        self.asked()
        Resumable(self.path, BEGUN_FILE, FORMAT, "an unfinished run").check(asked, free)

    def steps(self) -> list[int]:
        """The steps at which states were saved, the newest first."""
        names = [path.name.removeprefix("step-") for path in self.path.glob("step-*") if path.is_dir()]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def save(self, saved: Saved, keep: int) -> None:
        """Writes a state, then removes all but the newest `keep`. A failure leaves those that are there untouched."""
        folder = self._folder(saved.step)
        with atomic_folder(folder) as temporary:
            try:
                save_file(saved.tensors, temporary / TENSORS_FILE)
            except SafetensorError as error:  # it wraps the system's own error, a full disk above all
                raise DyditError(f"{folder}: cannot be written: {error}; make room and run the same command again") from None
            size = (temporary / TENSORS_FILE).stat().st_size
            facts = {"step": saved.step, "bytes": size, **saved.facts}
            (temporary / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for step in self.steps()[keep:]:
            shutil.rmtree(self._folder(step), ignore_errors=True)

    def newest(self, on_damage: Callable[[str], None] = lambda text: None) -> Saved | None:
        """The newest state that is whole, None for none; `on_damage` is told of each that is not."""
        for step in self.steps():
            try:
                return self._read(step)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                on_damage(f"{self._folder(step)}: damaged, so an older state is taken ({str(error).splitlines()[0]})")
        return None

    def _read(self, step: int) -> Saved:
        folder = self._folder(step)
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        size = (folder / TENSORS_FILE).stat().st_size
        if facts.pop("step") != step or facts.pop("bytes") != size:
            raise ValueError(f"{size} bytes of tensors are not those that its facts say")
        return Saved(step, load_file(folder / TENSORS_FILE), facts)

    def _folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def sweep(self) -> None:
        """Removes what a kill left half-written."""
        for leftover in [*self.path.glob(".*.tmp*"), *self.run.glob(f".{STATE_FOLDER}.*")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def remove(self) -> None:
        """Removes the states of a finished run, in one step as far as a reader can see."""
        if self.path.is_dir():
            gone = self.run / f".{STATE_FOLDER}.done.tmp"
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(self.path, gone)
            shutil.rmtree(gone, ignore_errors=True)


@dataclass(frozen=True)
class RunSpec:
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

    def open(self, asked: RunSpec, force: bool, team: Distributed, on_note: Callable[[str], None]) -> Saved | None:
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
                self.states.begin({**facts, "source": asked.source, **made_by()})
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

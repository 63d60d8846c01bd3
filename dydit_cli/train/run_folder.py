"""A training run on disk: its folder, and its state, which is all that the steps to come depend on.

States are data (safetensors and JSON), never pickle. A run that is not finished has a folder `state` with run.json, which
says what the run is, and a folder for each save, which appears whole or not at all. A finished run that keeps its last
save has it in the same form in the folder `last-state`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dydit_cli.artifacts.run import BEGUN_FILE, METRICS_FILE, RECIPE_FILE, STATE_FOLDER, StepMetrics
from dydit_cli.checkpoint.adapter import CONFIG_FILE as ADAPTER_FILE
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import CONFIG_FILE
from dydit_cli.checkpoint.stream import write_safetensors
from dydit_cli.distributed import Distributed
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, atomic_file, atomic_folder, check_output, sweep, write_json
from dydit_cli.model.backbone import Backbone
from dydit_cli.provenance import made_by
from dydit_cli.train.batch import TrainingBatches
from dydit_cli.train.recipe import FREE, Recipe, defaults, flat, recipe_from_dict, set_values, why_not_more_steps
from dydit_cli.train.step import Trainer

KEPT_FOLDER = "last-state"

TENSORS_FILE, FACTS_FILE = "tensors.safetensors", "facts.json"

FORMAT, FORMAT_VERSION = "dydit-run", 1


@dataclass(frozen=True)
class Saved:
    """The state after `step` steps: `tensors` by name, on the cpu, and `facts`, plain numbers."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def _changing(model: Backbone) -> list[tuple[str, nn.Parameter]]:
    """What a run may change: what learns, and routers, which may be set."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad or model.config.is_router(name)]


def capture(step: int, trainer: Trainer, batches: TrainingBatches, facts: dict[str, Any]) -> Saved:
    """Weights, EMA, optimiser, random numbers and data order after `step` steps; `facts` are the loop's own."""
    tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in _changing(trainer.model)}
    tensors |= {f"ema.{name}": p for name, p in trainer.ema.weights.items()}
    for name, p in trainer.model.trainable():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in trainer.optimizer.state[p].items()}
    order = batches.state()
    tensors |= {f"draw.{name}": value for name, value in order.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in order.items() if not isinstance(value, Tensor)}
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return Saved(step, on_cpu, {**facts, "ema_updates": trainer.ema.updates, "draw": numbers})


@torch.no_grad()
def restore(saved: Saved, trainer: Trainer, batches: TrainingBatches) -> None:
    """The inverse of `capture`; raises `DyditError` where the state is another model's."""
    tensors = saved.tensors
    try:
        for name, p in _changing(trainer.model):
            p.copy_(tensors[f"model.{name}"])
        for name, average in trainer.ema.weights.items():
            average.copy_(tensors[f"ema.{name}"])
        for name, p in trainer.model.trainable():
            start = f"optimizer.{name}."
            # none at all where the guard has skipped every step so far
            own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if own:
                trainer.optimizer.state[p] = {key: value.to(p.device, copy=True) for key, value in own.items()}
        trainer.ema.updates = saved.facts["ema_updates"]
        order = {name.removeprefix("draw."): value for name, value in tensors.items() if name.startswith("draw.")}
        batches.restore({**order, **saved.facts["draw"]})
    except (KeyError, RuntimeError) as error:
        raise DyditError(f"the training state does not fit the model: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class StateFolder:
    """The folder `path` with the states of the training run in the folder around it."""

    path: Path

    def exists(self) -> bool:
        return (self.path / BEGUN_FILE).is_file()

    def begin(self, run: dict[str, Any]) -> None:
        """Writes what the run is, which a resumed one has to repeat."""
        write_json(self.path / BEGUN_FILE, {"format": FORMAT, "format_version": FORMAT_VERSION, **run})

    def read(self) -> dict[str, Any]:
        """What the run is, as written last; raises `DyditError` where that cannot be read."""
        try:
            values = json.loads((self.path / BEGUN_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DyditError(f"{self.path.parent}: holds no unfinished run to resume") from None
        except (OSError, ValueError) as error:
            raise DyditError(f"{self.path / BEGUN_FILE}: cannot be read: {error}; start anew with --force") from None
        if not isinstance(values, dict) or (values.get("format"), values.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise DyditError(f"{self.path / BEGUN_FILE}: not written by this version of dydit; start anew with --force")
        return values

    def made(self, more: bool = False) -> dict[str, str]:
        """`{"command": ...}`, the one that began the run, on a line below it the one that gives it `more` steps; empty where
        no command began it."""
        command = self.read().get("command")
        if command is None:
            return {}
        return {"command": "\n".join([command, *(made_by().values() if more else ())])}

    def recipe(self) -> Recipe:
        """The run's recipe."""
        file, values = str(self.path / BEGUN_FILE), dict[str, Any]()
        own = {name: value for name, value in self.read().items() if name.partition(".")[0] in Recipe.model_fields}
        set_values(values, own, file)
        return recipe_from_dict(values, file)

    def check(self, run: dict[str, Any], free: Collection[str] = (), new: Collection[str] = ()) -> None:
        """Raises `DyditError`, naming the first difference, where the run is another one than `run`, but for values named in
        `free`, and those in `new` that its file lacks."""
        self.read()
        Resumable(self.path, BEGUN_FILE, FORMAT, "an unfinished run").check(run, free, new)

    def steps(self) -> list[int]:
        """The steps at which states were saved, the newest first."""
        names = [path.name.removeprefix("step-") for path in self.path.glob("step-*") if path.is_dir()]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def save(self, saved: Saved, keep: int) -> None:
        """Writes a state, then removes all but the newest `keep`. A failure leaves the older states untouched."""
        folder = self._folder(saved.step)
        with atomic_folder(folder) as temporary:
            try:
                write_safetensors(temporary / TENSORS_FILE, saved.tensors, metadata=None)
            except OSError as error:
                reason = error.strerror or error
                raise DyditError(f"{folder}: cannot be written: {reason}; make room and run the same command again") from None
            size = (temporary / TENSORS_FILE).stat().st_size
            facts = {"step": saved.step, "bytes": size, **saved.facts}
            (temporary / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        self.drop(keep)

    def drop(self, keep: int) -> None:
        """Removes all but the newest `keep` states."""
        for step in self.steps()[keep:]:
            shutil.rmtree(self._folder(step), ignore_errors=True)

    def newest(self, on_damage: Callable[[str], None] = lambda text: None) -> Saved | None:
        """The newest state that is whole, None for none; `on_damage` is called for each that is not."""
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
            raise ValueError(f"{size} bytes of tensors are not those of its facts")
        return Saved(step, load_file(folder / TENSORS_FILE), facts)

    def _folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def remove(self) -> None:
        """Removes all states, in one step as far as a reader can see."""
        if self.path.is_dir():
            gone = self.path.parent / f".{self.path.name}.done.tmp"
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(self.path, gone)
            shutil.rmtree(gone, ignore_errors=True)


@dataclass(frozen=True)
class RunSpec:
    """What a run is: `action`, the weights it begins with, the recipe; `source`, where those weights were read; and the
    `teacher` that the recipe names."""

    action: str
    start: Checkpoint
    recipe: Recipe
    source: dict[str, Any]
    teacher: Checkpoint | None = None

    @property
    def dynamic(self) -> bool:
        return self.start.config.dynamic

    def facts(self) -> dict[str, Any]:
        """What a resumed run has to repeat, flat: `train.lr` and so on."""
        teacher = {} if self.teacher is None else {"teacher": fingerprint(self.teacher)}
        return {"action": self.action, "start": fingerprint(self.start), **teacher, **flat(self.recipe.model_dump())}


@dataclass(frozen=True)
class RunFolder:
    """The folder `path`: recipe.json, metrics.jsonl, in the end the model, and until then the states."""

    path: Path

    @property
    def states(self) -> StateFolder:
        """Of an unfinished run."""
        return StateFolder(self.path / STATE_FOLDER)

    @property
    def kept(self) -> StateFolder:
        """The last one of a finished run that keeps it."""
        return StateFolder(self.path / KEPT_FOLDER)

    def finished(self, recipe: Recipe) -> bool:
        """Whether the run of `recipe` has come to its end here."""
        result = CONFIG_FILE if recipe.lora.merge else ADAPTER_FILE
        if self.states.exists() or not (self.path / result).is_file():
            return False
        try:
            return recipe == recipe_from_dict(json.loads((self.path / RECIPE_FILE).read_text(encoding="utf-8")), "")
        except (OSError, ValueError, DyditError):
            return False

    def check(self, spec: RunSpec, force: bool) -> None:
        """Raises `DyditError` where neither a new run can begin here, nor an unfinished one continue, nor a finished one
        have more steps."""
        if self._barely_begun() or (self.states.exists() and not force):
            return
        if force or not self.kept.exists() or self.kept.recipe().train.steps == spec.recipe.train.steps:
            check_output(self.path, force)

    def open(self, spec: RunSpec, force: bool, processes: Distributed, on_note: Callable[[str], None]) -> Saved | None:
        """Begins a run, or finds where the one in the folder stands: its newest state, None for the very start.

        After `check`. Raises `DyditError` where the run in the folder is another one (without `force`, which starts anew).
        """
        facts, made = spec.facts(), made_by()
        old = None if force else next((folder for folder in (self.states, self.kept) if folder.exists()), None)
        saved = None
        if old is not None:
            old.check(facts, FREE | {"train.steps"}, defaults(spec.recipe))
            saved = old.newest(on_note if processes.main else lambda text: None)
            if saved is None and old == self.kept:
                raise DyditError(f"{old.path}: its state is damaged; start anew with --force")
            self._check_steps(spec, old.recipe().train.steps, 0 if saved is None else saved.step)
            made = old.made(more=old.recipe().train.steps != spec.recipe.train.steps)
        processes.wait()  # all have looked before anything changes
        if processes.main:
            if old is None:
                self.states.remove()
                self.kept.remove()
            elif old == self.kept:
                os.rename(self.kept.path, self.states.path)
            self.states.begin({**facts, "source": spec.source, **made})  # from here on the folder's model is not this run's
            write_json(self.path / RECIPE_FILE, spec.recipe.model_dump())
            for folder in (self.path, self.states.path):
                sweep(folder)
            self._cut_metrics(0 if saved is None else saved.step)
        processes.wait()
        return saved

    def _check_steps(self, spec: RunSpec, before: int, taken: int) -> None:
        now = spec.recipe.train.steps
        why = why_not_more_steps(spec.recipe, before, taken, spec.dynamic) if before != now else None
        if why is not None:
            raise DyditError(
                f"{self.path}: holds a run with train.steps {before}, and now it is {now}: {why}, so it would not be the same "
                f"run; choose another --out, or train its result further: dydit finetune {self.path} --out DIR"
            )

    def finish(self, keep_state: bool) -> None:
        """Removes the states of a finished run, or keeps the last one."""
        if keep_state:
            self.states.drop(1)
            self.kept.remove()
            os.rename(self.states.path, self.kept.path)
        else:
            self.states.remove()

    def _barely_begun(self) -> bool:
        """Whether a kill in the first moment left what is there: nothing is lost where it begins again."""
        names = [path.name for folder in (self.path, self.states.path) if folder.is_dir() for path in folder.iterdir()]
        ours = (RECIPE_FILE, STATE_FOLDER, BEGUN_FILE)
        half_written = tuple(f".{name}." for name in ours)
        return self.path.is_dir() and all(name in ours or name.startswith(half_written) for name in names)

    def _cut_metrics(self, steps: int) -> None:
        """Leaves the lines of the first `steps` steps: those after the state will be written again."""
        lines = self._metrics()[:steps]
        if len(lines) < steps or any(not line.endswith(b"\n") for line in lines[-1:]):
            file = self.path / METRICS_FILE
            raise DyditError(f"{file}: lacks lines up to step {steps}, where the state was saved; start anew with --force")
        with atomic_file(self.path / METRICS_FILE) as temporary:
            temporary.write_bytes(b"".join(lines))

    def _metrics(self) -> list[bytes]:
        file = self.path / METRICS_FILE
        return file.read_bytes().splitlines(keepends=True) if file.is_file() else []

    def last_metrics(self) -> StepMetrics | None:
        """Of the last step, None where none was taken."""
        return next((StepMetrics(**json.loads(line)) for line in self._metrics()[-1:]), None)

    def log(self, main: bool) -> TextIO:
        """metrics.jsonl, open at its end; in other processes than the `main` one, nothing."""
        return open(self.path / METRICS_FILE if main else os.devnull, "a", encoding="utf-8", buffering=1)


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest of a configuration and its weights, wherever they were read from."""
    digest = hashlib.sha256(json.dumps(checkpoint.config.to_dict(), sort_keys=True).encode())
    for name in sorted(checkpoint.weights):
        weight = checkpoint.weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

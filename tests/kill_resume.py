"""`kill -9` at random moments of a training run that is started again each time: it always ends as if nothing had been.

`python -m tests.kill_resume --kills 50` does so on a small digits model, run after run, and compares each finished run
with one that nobody disturbed: the weights bit for bit, and the metrics but for their seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.model.families.dit import DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.train.recipe import recipe_from_dict
from dydit_cli.train.run import finetune

CONFIG = DiTConfig(input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=4, num_classes=10)
RECIPE: dict[str, Any] = {
    "train": {"steps": 100, "batch_size": 16, "lr": 1e-3, "ema_decay": 0.9, "save_every": 4, "lr_schedule": "cosine"},
    "routing": {"hold_steps": 2, "warmup_steps": 20, "complete_steps": 30, "complete_every": 2, "noise_off_steps": 10},
}


def make_start(folder: Path) -> Path:
    """A dynamic model in `folder` whose routers are undecided, so that the noise matters."""
    torch.manual_seed(0)
    model = DyDiT(DyDiTConfig.from_static(CONFIG, token_router_reduction=4))
    model.reset_routers(1.0, 1.0)
    write(Checkpoint.of(model, []), folder)
    return folder


def train_once(start: str, out: str) -> None:
    """One attempt, in a process of its own."""
    torch.set_num_threads(1)
    finetune(start, out, recipe=recipe_from_dict(RECIPE, "test"), device="cpu")


def attempt(start: Path, out: Path, kill_after: float | None) -> bool:
    """Whether the run in `out` came to its end; `kill_after` seconds in it gets SIGKILL."""
    # the server has loaded torch already, and forks what it has not used yet
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dydit_cli.train.run", "sklearn.datasets", "sklearn.model_selection"])
    process = context.Process(target=train_once, args=(str(start), str(out)))
    process.start()
    process.join(kill_after)
    killed = process.is_alive()
    if killed:
        process.kill()
    process.join()
    if not killed and process.exitcode != 0:
        raise AssertionError(f"an attempt failed by itself with exit code {process.exitcode}")
    return not killed


def finished(out: Path) -> bool:
    """Whether nothing is left to do, which a kill at the very end leaves too."""
    return (out / "config.json").is_file() and not (out / "state").exists()


def result_of(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The weights' file and the metrics without their seconds."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return (out / "model.safetensors").read_bytes(), [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def kill_and_resume(kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kills at least `kills` times in `folder`, once or more after a state was saved, however slow the machine becomes.

    Raises AssertionError where a run ends otherwise than the calm one.
    """
    chance = random.Random(seed)
    start = make_start(folder / "start")
    attempt(start, folder / "warm", None)  # also starts the server
    began = time.perf_counter()
    attempt(start, folder / "calm", None)
    takes = time.perf_counter() - began
    wanted, done, runs, resumed = result_of(folder / "calm"), 0, 0, 0
    out = folder / "killed"
    while done < kills or not resumed or out.exists():
        # an attempt that is faster than its limit ends, and is no kill; once there were enough of them it may end anyway
        limit = chance.uniform(0, takes * max(1, done / kills)) if done < kills or not resumed else None
        ended = attempt(start, out, limit)
        done += not ended
        resumed += not ended and any((out / "state").glob("step-*"))
        if ended or finished(out):
            if result_of(out) != wanted:
                raise AssertionError(f"run {runs} ended otherwise than the one that nobody disturbed; see {folder}")
            leftovers = sorted(path.name for path in out.iterdir())
            runs += 1
            if leftovers != ["README.md", "config.json", "metrics.jsonl", "model.safetensors", "recipe.json"]:
                # a kill while the states were being removed leaves a hidden folder, which is no state any more
                assert all(name.startswith(".state.") for name in leftovers if name.startswith(".")), leftovers
            shutil.rmtree(out)
    return {"kills": done, "killed_with_a_state": resumed, "runs_that_ended": runs, "seconds_of_a_calm_run": round(takes, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(kill_and_resume(arguments.kills, Path(folder), arguments.seed)))


if __name__ == "__main__":
    main()

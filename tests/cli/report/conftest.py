"""A folder or file of every kind that a report takes, and the page of all of them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.artifacts.comparison import Comparison
from dydit_cli.bench.bench import bench
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.evaluate.options import LossSettings
from dydit_cli.evaluate.timestep_loss import measure_losses
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.profiling.profile import profile
from dydit_cli.profiling.width import profile_width
from dydit_cli.provenance import made_with
from dydit_cli.reports.report import report
from dydit_cli.sampling.images import sample_images
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.train.recipe import read_recipe
from tests.conftest import randomize
from tests.unit.test_figures import a_study_of_steps
from tests.unit.test_frontier import a_front

MODEL = DiTConfig(input_size=8, patch_size=4, in_channels=1, hidden_size=12, depth=2, num_heads=3, num_classes=10)
HOSTILE = "<img src=x onerror=alert(1)>&\"'"
# as a study's folder keeps it: flat, with the recipes that it names
STUDY = {"format": "dydit-study", "model": "digits-dit", "seeds": [0, 1], "finetune.steps": 3, "finetune.calibrate": True,
         "methods.dydit": [0.5, 0.3], "methods.keep": None, "dynamic.train.lr": 1e-3}  # fmt: skip
QUICK = SamplerSettings(steps=3)


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder or file of every kind that a report takes."""
    room = tmp_path_factory.mktemp("room")
    steps: list[dict[str, Any]] = [
        {"action": "pretrain", "data": "digits", "steps": 1000, "batch_size": 8, "seed": 0},
        {"action": "convert", "source": "digits-dit", "ranking": "magnitude", "dydit": "0.1.0",
         "command": f"dydit convert digits-dit {room}/converted --router-bias 3"},
        {"action": "finetune", "source": str(room / "converted"), "data": "digits", "steps": 20, "flops_ratio": 0.5, "seed": 0,
         "command": "dydit finetune converted --recipe digits/finetune --calibrate --set train.lr=0.001 --out tuned"},
    ]  # fmt: skip
    write(Checkpoint.of(randomize(DiT(MODEL)), steps[:1]), room / "static")
    write(Checkpoint.of(randomize(DyDiT(DyDiTConfig.from_static(MODEL, token_router_reduction=4))), steps), room / "tuned")
    (room / "tuned" / "recipe.json").write_text(json.dumps(read_recipe("digits/finetune").model_dump()))
    rows = [
        {"step": i, "mse": 1 / i, "vb": 0.1, "ratio": 0.6, "target": 0.5, "skipped": i == 3, "seconds": 0.1 * i}
        for i in range(1, 21)
    ]
    (room / "tuned" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(room / "tuned", room / HOSTILE)
    with made_with("dydit profile static tuned --keep-masks 2 --out compared"):
        static = profile(room / "static", room / "compared" / "static", images=2, settings=QUICK, device="cpu")
        tuned = profile(room / "tuned", room / "profile", images=3, settings=QUICK, device="cpu", time=True)
        Comparison.of({"static": static, "tuned": tuned}).write(room / "compared")
    with made_with(f"dydit profile tuned --width-only --out {room / 'width'}"):
        profile_width(read(room / "tuned"), room / "width")
    settings = LossSettings(images=2, timesteps=4, maps_at=(100,), map_images=1, map_noises=1)
    with made_with("dydit losses static tuned --maps-at 100 --out losses"):
        measure_losses([room / "static", room / "tuned"], room / "losses", settings=settings, device="cpu")
    with made_with("dydit sample static --classes 0-9 --vae " + shlex.quote(f"{room}/a vae") + " --out samples-static"):
        sample_images(room / "static", room / "samples-static", SamplingConfig(settings=QUICK, device="cpu"), num=3)
    sample_images(room / "tuned", room / "samples-tuned", SamplingConfig(settings=QUICK, device="cpu"), num=3)
    quick = BenchSettings(batch=2, steps=2, measured=1, repeats=1, masked=False)
    with made_with("dydit bench tuned --measure 1 --access copies"):
        (room / "bench.json").write_text(json.dumps(bench(room / "tuned", settings=quick, device="cpu").to_dict()))
    evaluation = {
        "frechet": 4.25, "recognised": 0.985, "precision": 0.9, "recall": None,
        "protocol": {
            "samples": str(room / "samples-tuned"), "images": 3, "sampler": "ddim", "steps": 3, "cfg_interval": [0, 999],
            "features": "digits-features, 64", "features_sha256": "ab" * 32, "judge_accuracy": 0.99, "vae": None,
            "reference": "digits", "torch": "2", "dydit": "0.1.0",
        },
        "command": "dydit evaluate samples-tuned --features digits --tome 0.25 --out evaluation.json",
        "notes": [f"3 images of {room / 'samples-tuned'}: {HOSTILE}"],
    }  # fmt: skip
    (room / "evaluation.json").write_text(json.dumps(evaluation))
    a_study_of_steps(room / "study")
    (room / "study" / "recipe.json").write_text(json.dumps(STUDY))
    a_front(room / "front")
    return room


INPUTS = ("study", "front", "compared", "profile", "width", HOSTILE, "static", "losses", "samples-static", "samples-tuned",
          "evaluation.json", "bench.json")  # fmt: skip


@pytest.fixture(scope="session")
def path(room: Path) -> Path:
    """The page of all of them."""
    return report([room / name for name in INPUTS], room / "report.html", title=f"All of it {HOSTILE}")

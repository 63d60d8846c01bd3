"""What a study depends on: what it has to be asked for again, what its tables say about it, what it measures with."""

from __future__ import annotations

from typing import Any

import torch

import dydit_cli
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.data.dataset import ImageData
from dydit_cli.data.load import BUNDLED
from dydit_cli.evaluate.find import find_extractor
from dydit_cli.evaluate.reference import open_reference
from dydit_cli.flops.analytic import static_macs
from dydit_cli.tradeoff.measure import Yardstick
from dydit_cli.tradeoff.methods import Start
from dydit_cli.tradeoff.recipe import StudyRecipe
from dydit_cli.train.folder import fingerprint, flat

# settings that no row depends on: with others, rows are added, or left out of the tables
FREE = (
    "seeds", "keep_checkpoints", "methods.control", "methods.dydit", "methods.prune", "methods.keep", "methods.tome",
    "timing.images", "timing.repeats",
)  # fmt: skip


def asked(start: Start) -> dict[str, Any]:
    """What a study has to be asked for again, flat; the fine-tuning recipes with all their values."""
    values = flat(start.recipe.model_dump(mode="json"))
    for kind, tuning in start.tunings.items():
        values |= flat(tuning.model_dump(mode="json"), f"{kind}.")
    return {**values, "first_seed": start.recipe.seeds[0], "model_sha256": fingerprint(start.checkpoint)}


def make_yardstick(recipe: StudyRecipe, static: Checkpoint, device: str) -> Yardstick:
    """What all rows are measured with."""
    how = recipe.evaluation
    extractor = find_extractor(how.features, device=device)
    reference = open_reference(how.reference, extractor)
    return Yardstick(how, extractor, reference, held_out_part(recipe.data, how.held_out), static_macs(static.config), device)


def held_out_part(data: str, count: int) -> ImageData | None:
    """`count` images of the part that is held out of `data`, from everywhere in it; None where it has no such part."""
    if data not in BUNDLED or count == 0:
        return None
    part = BUNDLED[data](held_out=True)
    every = torch.linspace(0, len(part) - 1, min(count, len(part))).round().long()
    return ImageData(part.name, part.images[every], part.labels[every], part.num_classes)


def facts(start: Start, yardstick: Yardstick) -> dict[str, Any]:
    """What the protocol says of all rows alike."""
    recipe, how, config = start.recipe, start.recipe.evaluation, start.checkpoint.config
    pretrained = sum(int(entry["steps"]) for entry in start.checkpoint.lineage if entry.get("action") == "pretrain")
    return {
        "model": recipe.model,
        "model_sha256": fingerprint(start.checkpoint),
        "model_size": config.size_name,
        "macs_static": yardstick.macs,
        "data": recipe.data,
        "finetune_steps": recipe.finetune.steps,
        "finetune_share": recipe.finetune.steps / pretrained if pretrained else None,
        "finetune_recipes": {"dynamic": recipe.finetune.dynamic, "static": recipe.finetune.static},
        "calibrated": recipe.finetune.calibrate,
        **({"tome": "merges tokens of the static model while sampling, without fine-tuning"} if recipe.methods.tome else {}),
        "images": how.images,
        "classes": list(range(config.num_classes)),
        **{name: getattr(how, name) for name in ("sampler", "cfg", "cfg_channels", "vae")},
        "steps": how.settings.steps,
        **yardstick.extractor.facts,
        "reference": yardstick.reference.name,
        "reference_sha256": yardstick.reference.digest(),
        "held_out_images": None if yardstick.held_out is None else len(yardstick.held_out),
        "seeds": list(recipe.seeds),
        "device": start.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dydit": dydit_cli.__version__,
    }

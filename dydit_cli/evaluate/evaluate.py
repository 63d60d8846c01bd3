"""`dydit evaluate`: how good samples are, with everything that the figures depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dydit_cli.artifacts.evaluation import Evaluation
from dydit_cli.artifacts.samples import ARRAY_FILE, ARRAY_FORMAT, CACHE_FIELDS, RECORD_FILE, SOLVED
from dydit_cli.checkpoint.read import resolve
from dydit_cli.checkpoint.tensors import PICKLES
from dydit_cli.data.imagefolder import to_model
from dydit_cli.data.load import find_source
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Extractor, FeatureStats, Pixels, extract_features
from dydit_cli.evaluate.images import FolderImages, Images, Preprocessor, named_images, read_record
from dydit_cli.evaluate.metrics import (
    NEIGHBOURS,
    SPLIT,
    frechet_deviation,
    frechet_distance,
    inception_score,
    precision_recall,
)
from dydit_cli.evaluate.reference import NpzImages, Reference, ReferenceStats, open_reference, reference_stats
from dydit_cli.evaluate.registry import find_judge
from dydit_cli.hub import may_be_hub_id
from dydit_cli.sampling.classes import class_text
from dydit_cli.version import __version__

USUAL_COUNT = 50_000  # of published FIDs

# of a record, in the protocol's order
RECORDED = (
    "checkpoint", "checkpoint_sha256", "sampler", "steps", "cfg", "cfg_channels", "cfg_interval", "spacing", "execution",
    "tome", *CACHE_FIELDS, "dtype", "seed", "vae",
)  # fmt: skip

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


def evaluate(
    images: Images,
    reference: Reference | str | Path | None,
    extractor: Extractor,
    *,
    batch: int = 64,
    device: str = "auto",
    deviation: bool = False,
    on_stage: OnStage = lambda *what: None,
    on_work: Callable[[int], None] = lambda amount: None,
) -> Evaluation:
    """The figures of `images` against `reference` (`open_reference`; None is the extractor's own), in its features.

    They are the `figures` of the extractor: `fid`, `sfid` and `inception_score`, or `frechet`; of a data set's own network
    `recognised`, the share that the set's classifier takes for the class asked for; `precision` and `recall`; with
    `deviation` also `fid_sd` or `frechet_sd`, as `frechet_deviation`. Raises `DyditError` for damaged files, moments of other
    features and fewer than 2 images.
    """
    reference = reference if isinstance(reference, Reference) else open_reference(reference, extractor)
    if images.count < 2:
        raise DyditError(f"{images.name}: {images.count} image; a covariance needs 2 and more")
    preprocess = Preprocessor(extractor.side, extractor.channels)
    kept: list[Pixels] = []

    def batches() -> Iterator[Pixels]:
        for pixels in images.batches(batch, preprocess, on_work):
            if "recognised" in extractor.figures:
                kept.append(pixels)  # for the classifier; they are small
            yield pixels

    on_stage("draw and look at samples" if images.per > 1 else "look at samples", images.count, "images", images.per)
    stats = extract_features(extractor, batches())
    if reference.images is not None and (extractor, preprocess.side) not in reference.known:
        on_stage("look at the reference", reference.images.count, "images", 1)
    against = reference_stats(reference, extractor, preprocess.side, batch, on_work)
    for stored, own in ((against.gaussian, stats.gaussian), (against.spatial, stats.spatial)):
        if stored is not None and own is not None and len(stored.mean) != len(own.mean):
            raise DyditError(
                f"{reference.name}: its moments are of {len(stored.mean)} features and --features {extractor.name} has "
                f"{len(own.mean)}; choose the features that it was made with"
            )
    on_stage("compare", 1, "comparison", 1)
    figures, facts = compare(extractor, images, stats, against, kept, pick_device(device))
    if deviation:
        figures[f"{extractor.figures[0]}_sd"] = frechet_deviation(stats.pool, stats.gaussian, against.gaussian)
    on_work(1)
    classes = images.record.get("classes")
    protocol = {
        "samples": images.name,
        "images": images.count,
        "classes": class_text(classes) if isinstance(classes, list) and classes else None,
        **{name: images.record.get(name) for name in RECORDED},
        **{name: images.record[name] for name in (*SOLVED, "flops_ratio") if name in images.record},
        "sampled_on": images.record.get("device"),
        **extractor.facts,
        **facts,
        "side": preprocess.side,
        "resize": preprocess.resize,
        **against.facts,
        "neighbours": NEIGHBOURS,
        **({"inception_score_split": SPLIT} if "inception_score" in extractor.figures else {}),
        "device": pick_device(device).type,
        "torch": torch.__version__,
        "dydit": __version__,
    }
    return Evaluation(figures, protocol, [*against.notes, *cautions(extractor, images, stats, against)])


def compare(
    extractor: Extractor,
    images: Images,
    stats: FeatureStats,
    against: ReferenceStats,
    pixels: list[Pixels],
    device: torch.device,
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """The extractor's figures, and the protocol's facts about the classifier, where one of them is of a class."""
    figures: dict[str, float | None] = dict.fromkeys(extractor.figures)
    figures[extractor.figures[0]] = frechet_distance(stats.gaussian, against.gaussian)
    facts: dict[str, Any] = {}
    if "sfid" in figures and stats.spatial is not None and against.spatial is not None:
        figures["sfid"] = frechet_distance(stats.spatial, against.spatial)
    if "inception_score" in figures and stats.probabilities is not None:
        figures["inception_score"] = inception_score(stats.probabilities)
    if "recognised" in figures:
        figures["recognised"], facts = recognised(extractor, images, stats, pixels)
    device = device if device.type == "cuda" else torch.device("cpu")  # mps has no float64
    manifold = against.manifold(device)
    if manifold is not None:
        figures["precision"], figures["recall"] = precision_recall(manifold, torch.from_numpy(stats.pool).to(device))
    return figures, facts


def recognised(
    extractor: Extractor, images: Images, stats: FeatureStats, pixels: list[Pixels]
) -> tuple[float | None, dict[str, Any]]:
    """The share that is taken for the class asked for, None where no class is known; and the protocol's facts about it.

    The data set's support-vector classifier says so; where it has none, the head of the network of the features.
    """
    from dydit_cli.evaluate.classifier import classifier

    data, labels = extractor.data, images.labels
    if data is not None and find_source(data)[0].classifier is not None:
        known = classifier(data)
        facts = {"judge": f"support-vector classifier of the real {data}", "judge_accuracy": known.accuracy}
        predicted = None if labels is None else known.predict(to_model(np.concatenate(pixels))).numpy()
    else:
        facts = {"judge": "the head of the network of the features", "judge_accuracy": extractor.facts["features_accuracy"]}
        predicted = None if stats.probabilities is None else stats.probabilities.argmax(axis=1)
    share = None if labels is None or predicted is None else float((predicted == labels).mean())
    return share, facts


def cautions(extractor: Extractor, images: Images, stats: FeatureStats, against: ReferenceStats) -> list[str]:
    """What a reader of the figures should know, a line each."""
    notes, width = [], stats.pool.shape[1]
    recorded = images.record.get("images")
    if isinstance(recorded, int) and recorded != images.count:
        notes.append(f"{RECORD_FILE} is of {recorded} images, and {images.count} are there")
    for what, count in (("samples", images.count), ("reference images", against.gaussian.count)):
        if count is not None and count <= width:
            notes.append(
                f"{count} {what} for {width} features: their covariance is singular and the Fréchet distance too high; "
                f"take more than {width}"
            )
    if "fid" in extractor.figures and images.count < USUAL_COUNT:
        notes.append(f"{images.count:,} images: the fewer, the higher the FID; published ones are of {USUAL_COUNT:,}")
    if "recognised" in extractor.figures and images.labels is None:
        notes.append("no classes are known: nothing can be recognised (name files ...-class7.png, or keep samples.json)")
    if images.count <= NEIGHBOURS and against.pool is not None:
        notes.append(f"recall needs more than {NEIGHBOURS} samples")
    if against.pool is not None and len(against.pool) <= NEIGHBOURS:
        notes.append(f"precision needs more than {NEIGHBOURS} reference images")
    return notes


CHECKPOINT_NAMES = {"config.json", "model_index.json"}

CHECKPOINT_SUFFIXES = {*PICKLES, ".safetensors"}


def find_images(samples: str | Path) -> Images | None:
    """The images that `samples` names: an .npz, a folder that `dydit sample` wrote, any folder of pictures, or a data set
    by its name (`digits`, `digits:held-out`). None for a checkpoint.

    Raises `DyditError` for what is neither, for an unfinished `dydit sample --npz` and for a folder with nothing in it.
    """
    path = Path(samples)
    if path.suffix == ".npz":
        if not path.is_file():
            raise DyditError(f"{path}: no such file; give an .npz, a folder of images, or a checkpoint")
        return NpzImages(path)
    if not path.is_dir():
        images = named_images(str(samples))
        if images is None and not resolve(path).exists() and not may_be_hub_id(str(samples)):
            raise DyditError(f"{samples}: no such samples and no such checkpoint; give an .npz, a folder of images, or a CKPT")
        return images
    if (path / ARRAY_FILE).is_file():
        return NpzImages(path / ARRAY_FILE)
    if read_record(path).get("format") == ARRAY_FORMAT:
        raise DyditError(f"{path}: dydit sample --npz has not finished it; run the same command again")
    if any(file.name in CHECKPOINT_NAMES or file.suffix in CHECKPOINT_SUFFIXES for file in path.iterdir()):
        return None
    return FolderImages(path)


def find_extractor(features: str, *, inception: str | Path | None = None, device: str = "auto") -> Extractor:
    """The network of the judge `features`; `inception` is the file of Inception's weights.

    Raises `DyditError` for another name, and where the judge's package or its weights are missing.
    """
    judge = find_judge(features)
    if inception is not None and not judge.takes_weights:
        raise DyditError("--inception is for --features inception; leave it out")
    return judge.open(None if inception is None else Path(inception), pick_device(device))

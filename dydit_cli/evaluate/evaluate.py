"""`dydit evaluate`: how good samples are, with everything that the figures depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dydit_cli.artifacts.evaluation import Evaluation
from dydit_cli.artifacts.samples import ARRAY_FILE, ARRAY_FORMAT, RECORD_FILE
from dydit_cli.checkpoint.read import PICKLES
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.feature_network import NETWORKS, network_extractor
from dydit_cli.evaluate.features import Extractor, FeatureStats, Pixels, extract_features
from dydit_cli.evaluate.images import Images, Preprocessor, open_folder, read_record
from dydit_cli.evaluate.inception import inception_extractor
from dydit_cli.evaluate.metrics import NEIGHBOURS, SPLIT, frechet_distance, inception_score, precision_recall
from dydit_cli.evaluate.reference import Reference, ReferenceStats, open_npz, open_reference, real, standard
from dydit_cli.version import __version__

USUAL_COUNT = 50_000  # of published FIDs

# what a record says about how images came about, in the protocol's order
RECORDED = (
    "checkpoint", "checkpoint_sha256", "sampler", "steps", "cfg", "cfg_channels", "cfg_interval", "spacing", "execution",
    "tome", "dtype", "seed", "vae",
)  # fmt: skip

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


def _silent(*what: Any) -> None:
    pass


def evaluate(
    images: Images,
    reference: Reference | str | Path | None,
    extractor: Extractor,
    *,
    batch: int = 64,
    device: str = "auto",
    on_stage: OnStage = _silent,
    on_work: Callable[[int], None] = _silent,
) -> Evaluation:
    """The figures of `images` against `reference` (`open_reference`; None is the extractor's own), seen by `extractor`.

    For inception `fid`, `sfid`, `inception_score`, `precision`, `recall`; for digits and glyphs `frechet`, `recognised` (the
    share that their judge sees as the class asked for), `precision`, `recall`. Raises `DyditError` for damaged
    files, moments of other features and fewer than 2 images.
    """
    reference = reference if isinstance(reference, Reference) else open_reference(reference, extractor)
    if images.count < 2:
        raise DyditError(f"{images.name}: {images.count} image; a covariance needs 2 and more")
    preprocess = Preprocessor(extractor.side, extractor.channels)
    kept: list[Pixels] = []

    def passing() -> Iterator[Pixels]:
        for pixels in images.batches(batch, preprocess, on_work):
            if extractor.kind in NETWORKS:
                kept.append(pixels)  # the judge wants them too, and they are small
            yield pixels

    on_stage("draw and look at samples" if images.per > 1 else "look at samples", images.count, "images", images.per)
    seen = extract_features(extractor, passing())
    if reference.images is not None:
        on_stage("look at the reference", reference.images.count, "images", 1)
    against = standard(reference, extractor, preprocess.side, batch, on_work)
    for stored, ours in ((against.gaussian, seen.gaussian), (against.spatial, seen.spatial)):
        if stored is not None and ours is not None and len(stored.mean) != len(ours.mean):
            raise DyditError(
                f"{reference.name}: its moments are of {len(stored.mean)} features and --features {extractor.kind} has "
                f"{len(ours.mean)}; choose the features that it was made with"
            )
    on_stage("compare", 1, "comparison", 1)
    figures, judge = compare(extractor.kind, images, seen, against, kept, pick_device(device))
    on_work(1)
    protocol = {
        "samples": images.name,
        "images": images.count,
        "classes": class_text(images.record.get("classes")),
        **{name: images.record.get(name) for name in RECORDED},
        "sampled_on": images.record.get("device"),
        **extractor.facts,
        **judge,
        "side": preprocess.side,
        "resize": preprocess.resize,
        **against.facts,
        "neighbours": NEIGHBOURS,
        **({"inception_score_split": SPLIT} if extractor.kind == "inception" else {}),
        "device": pick_device(device).type,
        "torch": torch.__version__,
        "dydit": __version__,
    }
    return Evaluation(figures, protocol, [*against.notes, *cautions(extractor.kind, images, seen, against)])


def compare(
    kind: str, images: Images, seen: FeatureStats, against: ReferenceStats, pixels: list[Pixels], place: torch.device
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """The figures, and what the protocol says about the judge."""
    distance = frechet_distance(seen.gaussian, against.gaussian)
    figures: dict[str, float | None]
    judge: dict[str, Any] = {}
    if kind in NETWORKS:
        share, judge = recognised(kind, images, pixels)
        figures = {"frechet": distance, "recognised": share}
    else:
        both = seen.spatial is not None and against.spatial is not None
        figures = {
            "fid": distance,
            "sfid": frechet_distance(seen.spatial, against.spatial) if both else None,  # type: ignore[arg-type]
            "inception_score": inception_score(seen.probabilities) if seen.probabilities is not None else None,
        }
    precision, recall = None, None
    if against.pool is not None:
        # mps has no float64
        where = place if place.type == "cuda" else torch.device("cpu")
        real, drawn = (torch.from_numpy(pool).to(where) for pool in (against.pool, seen.pool))
        precision, recall = precision_recall(real, drawn)
    return {**figures, "precision": precision, "recall": recall}, judge


def recognised(kind: str, images: Images, pixels: list[Pixels]) -> tuple[float | None, dict[str, Any]]:
    """The share seen as the class that was asked for, None where no class is known, and the judge's own accuracy."""
    from dydit_cli.evaluate.classifier import classifier

    judge = classifier(kind)
    facts = {"judge": f"support-vector classifier of the real {kind}", "judge_accuracy": judge.accuracy}
    if images.labels is None:
        return None, facts
    drawn = torch.from_numpy(np.concatenate(pixels).transpose(0, 3, 1, 2).copy()).float().div(127.5).sub(1)
    return judge.recognised(drawn, torch.from_numpy(images.labels)), facts


def cautions(kind: str, images: Images, seen: FeatureStats, against: ReferenceStats) -> list[str]:
    """What a reader of the figures should know, a line each."""
    notes, width = [], seen.pool.shape[1]
    recorded = images.record.get("images")
    if isinstance(recorded, int) and recorded != images.count:
        notes.append(f"{RECORD_FILE} is of {recorded} images, and {images.count} are there")
    for what, count in (("samples", images.count), ("reference images", against.gaussian.count)):
        if count is not None and count <= width:
            notes.append(
                f"{count} {what} for {width} features: their covariance is singular and the Fréchet distance too high; "
                f"take more than {width}"
            )
    if kind == "inception" and images.count < USUAL_COUNT:
        notes.append(f"{images.count:,} images: the fewer, the higher the FID; published ones are of {USUAL_COUNT:,}")
    if kind in NETWORKS and images.labels is None:
        notes.append("no classes are known: nothing can be recognised (name files ...-class7.png, or keep samples.json)")
    if images.count <= NEIGHBOURS and against.pool is not None:
        notes.append(f"recall needs more than {NEIGHBOURS} samples")
    if against.pool is not None and len(against.pool) <= NEIGHBOURS:
        notes.append(f"precision needs more than {NEIGHBOURS} reference images")
    return notes


def class_text(classes: Any) -> str | None:
    """[0, 1, 2, 7] as `0-2,7`, the way --classes takes it; None where no classes are known."""
    if not isinstance(classes, list) or not classes:
        return None
    runs: list[list[int]] = []
    for one in classes:
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


FEATURES = ("inception", *NETWORKS)

CHECKPOINT_NAMES = {"config.json", "model_index.json"}

CHECKPOINT_SUFFIXES = {*PICKLES, ".safetensors"}


def find_images(samples: str | Path) -> Images | None:
    """The images that `samples` names: an .npz, a folder that `dydit sample` wrote, any folder of pictures, or a
    bundled data set by name (`digits`, `digits:held-out`). None where it is something else, such as a checkpoint.

    Raises `DyditError` for an unfinished `dydit sample --npz` and for a folder with nothing in it.
    """
    path = Path(samples)
    if path.suffix == ".npz":
        if not path.is_file():
            raise DyditError(f"{path}: no such file; give an .npz, a folder of images, or a checkpoint")
        return open_npz(path)
    if not path.is_dir():
        return real(str(samples))
    if (path / ARRAY_FILE).is_file():
        return open_npz(path / ARRAY_FILE)
    if read_record(path).get("format") == ARRAY_FORMAT:
        raise DyditError(f"{path}: dydit sample --npz has not finished it; run the same command again")
    if any(file.name in CHECKPOINT_NAMES or file.suffix in CHECKPOINT_SUFFIXES for file in path.iterdir()):
        return None
    return open_folder(path)


def _holds_weights(folder: Path) -> bool:
    return any(file.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors") for file in folder.iterdir())


def find_extractor(features: str, *, inception: str | Path | None = None, device: str = "auto") -> Extractor:
    """The network of `inception`, `digits` or `glyphs`; `inception` is the file of the first one's weights.

    Raises `DyditError` for another name, and where torch-fidelity or the weights are missing.
    """
    if features in NETWORKS:
        if inception is not None:
            raise DyditError("--inception is for --features inception; leave it out")
        return network_extractor(features)
    if features == "inception":
        return inception_extractor(inception, pick_device(device))
    raise DyditError(f"no features {features!r}; choose one of {', '.join(FEATURES)}")

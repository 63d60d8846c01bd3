"""`dydit push`: a checkpoint folder for the Hugging Face hub, with a card that says what it is and how to load it."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dydit_cli import hub
from dydit_cli.artifacts.base import Artifact, identify
from dydit_cli.artifacts.evaluation import Evaluation
from dydit_cli.artifacts.frontier import Frontier
from dydit_cli.artifacts.profile import Profile
from dydit_cli.checkpoint import native
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import CARD_FILE, asked_ratio, figures_in, with_figures, write_card
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.errors import DyditError
from dydit_cli.figures.base import TooLittleError, figures_of
from dydit_cli.figures.visualize import save_as
from dydit_cli.files import sha256
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families import family_of
from dydit_cli.profiling.profile import card_lines
from dydit_cli.sampling.fronts import stored_front

PICTURES = "figures"  # the folder in the repository

TASK = "unconditional-image-generation"  # the hub's nearest; classes are no text

TAGS = ("image-generation", "class-conditional-image-generation", "diffusion", "diffusion-transformer", "safetensors")


@dataclass(frozen=True)
class Pushed:
    """`url` is of the commit, None where nothing was pushed; `files` map names in the repository to bytes."""

    repo: str
    url: str | None
    files: dict[str, int]
    card: str

    def to_dict(self) -> dict[str, Any]:
        return {"repo": self.repo, "url": self.url, "files": self.files, "bytes": sum(self.files.values()), "card": self.card}


def push(
    checkpoint: CheckpointLike,
    repo: str,
    *,
    license: str,
    shows: Sequence[str | Path] = (),
    private: bool = False,
    dry_run: bool = False,
    reading: LoadOptions = LoadOptions(),
) -> Pushed:
    """Uploads any checkpoint as a dydit folder to the hub's repository `repo`, `OWNER/NAME`, which is made where there is none.

    The card has the `license` (one of the hub's identifiers) and the figures of what `shows` names: profiles, evaluations and
    whatever else a figure can be drawn from. `dry_run` pushes nothing. Raises `DyditError` for another name, what cannot be
    read, and where the hub refuses.
    """
    if not hub.is_hub_id(repo):
        raise DyditError(f"{repo}: no repository of the hub's; write OWNER/NAME")
    if not license.strip() or len(license.split()) > 1:
        raise DyditError(f"licence {license!r}: write one of the hub's identifiers, such as apache-2.0 or cc-by-nc-4.0")
    shown = {str(path): identify(path).read(path) for path in shows}
    loaded = read(checkpoint, reading)
    with tempfile.TemporaryDirectory(prefix="dydit-push-") as temporary:
        folder = Path(temporary) / "repository"
        card = write_folder(loaded, folder, repo, license, shown)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
        }
        message = f"{loaded.config.size_name}, by dydit push"
        url = None if dry_run else hub.upload(folder, repo, private=private, message=message)
    return Pushed(repo, url, files, card)


def write_folder(loaded: Checkpoint, folder: Path, repo: str, license: str, shown: dict[str, Artifact]) -> str:
    """Writes what the repository holds, and returns its card."""
    public = without_places(loaded)
    native.write(public, folder)
    if (
        loaded.file is not None
        and Frontier.fits(loaded.file.parent)
        and sha256(loaded.file) == sha256(folder / native.WEIGHTS_FILE)
    ):
        stored_front(loaded).store(folder)
    own = None if loaded.file is None else figures_in(loaded.file.parent / CARD_FILE)
    lines = [*(own or ()), *(line for artifact in shown.values() for line in figures(artifact, folder))]
    card = f"---\n{metadata(public, repo, license, shown)}\n---\n\n{write_card(public)}"
    card = card.replace(
        "## Licence\n", f"{how_to_load(public, repo)}\n## Licence\n\n`{license}`, as whoever pushed it says.\n", 1
    )
    card = shortened(with_figures(card, lines) if lines else card)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return card


def without_places(loaded: Checkpoint) -> Checkpoint:
    """`loaded` without the paths of this machine: a VAE that lies here is left out, and the lineage's paths are relative to the
    folder that is worked in, or to the home folder."""
    lineage = [
        {key: shortened(value) if isinstance(value, str) else value for key, value in step.items()} for step in loaded.lineage
    ]
    local = loaded.vae is not None and (loaded.vae.is_absolute() or loaded.vae.exists())
    return replace(loaded, lineage=lineage, vae=None if local else loaded.vae)


def shortened(text: str) -> str:
    """`text` with paths in this folder relative, and in the home folder after a ~."""
    return text.replace(f"{Path.cwd()}{os.sep}", "").replace(str(Path.home()), "~")


def metadata(loaded: Checkpoint, repo: str, license: str, shown: dict[str, Artifact]) -> str:
    """The card's head, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    config = loaded.config
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=str(artifact.protocol.get("reference") or "unknown"),
            dataset_name=str(artifact.protocol.get("reference") or "unknown"),
            metric_type=name,
            metric_name=f"{name.replace('_', ' ')} ({artifact.protocol['images']} images)",
            metric_value=value,
        )
        for artifact in shown.values()
        if isinstance(artifact, Evaluation)
        for name, value in artifact.figures.items()
        if value is not None
    ]
    return ModelCardData(
        license=license,
        library_name="dydit",
        pipeline_tag=TASK,
        tags=[*TAGS, config.family, *(["dydit", "dynamic-neural-network"] if config.dynamic else [])],
        model_name=repo.partition("/")[2] if results else None,
        eval_results=results or None,
    ).to_yaml()


def how_to_load(loaded: Checkpoint, repo: str) -> str:
    """A section with a command and a few lines of Python."""
    config, ratio, more = loaded.config, asked_ratio(loaded.lineage), ""
    execution = ', execution="sparse"' if config.dynamic else ""
    if isinstance(config, RoutedConfig) and config.budgets:
        low, high = config.budgets[0], config.budgets[-1]
        more = f" It is of all FLOPs ratios from {low:g} to {high:g}: `--flops-ratio`, or `flops_ratio=` in Python, says which."
    elif config.dynamic and ratio is not None:
        more = f" It was brought to {ratio:g} of the static model's FLOPs."
    pixels = config.in_channels in (1, 3)
    vae = "" if loaded.vae or pixels else " --vae VAE"
    lines = [
        "import dydit_cli",
        "",
        f'model = dydit_cli.load("{repo}"{execution})',
        *(
            [f"# out = model(x, t, y)  # x: B x {' x '.join(map(str, config.sample_shape))}, t and y: B"]
            if config.num_classes
            else []
        ),
    ]
    if family_of(config).process == "gaussian" and config.num_classes and len(config.sample_shape) == 3 and not pixels:
        lines += ["# DiTPipeline(transformer=dydit_cli.as_diffusers(model), vae=vae, scheduler=scheduler)"]
    return "\n".join(
        [
            "## How to load it",
            "",
            f"With dydit (`pip install dydit`), which reads it from the hub.{more}",
            "",
            "```bash",
            f"dydit sample {shlex.quote(repo)} --num 8 --out samples{vae}",
            "```",
            "",
            "```python",
            *lines,
            "```",
            "",
        ]
    )


def figures(artifact: Artifact, folder: Path) -> list[str]:
    """An artifact's figures as Markdown; its pictures are drawn into `folder`."""
    lines = ["", f"### {artifact.noun().capitalize()}", "", *(card_lines(artifact) if isinstance(artifact, Profile) else ())]
    if isinstance(artifact, Evaluation):
        facts = artifact.protocol
        said = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in artifact.figures.items() if value is not None
        )
        lines += [f"- {said}: {facts['images']} images against {facts.get('reference') or 'nothing'}"]
        lines += [
            f"  - {key.replace('_', ' ')}: {value}" for key, value in facts.items() if isinstance(value, str | int | float)
        ]
    for figure in figures_of(artifact):
        source: Any = [artifact] if figure.several else artifact
        path = folder / PICTURES / f"{figure.name}.png"
        count = len(list(path.parent.glob(f"{figure.name}*.png"))) if path.parent.is_dir() else 0
        path = path if not count else path.with_stem(f"{figure.name}-{count + 1}")
        path.parent.mkdir(exist_ok=True)
        try:
            save_as(lambda: figure.draw(source), path)  # noqa: B023  # called at once
        except TooLittleError:
            continue
        caption = figure.caption.format(artifact)
        lines += ["", f"![{figure.title}]({PICTURES}/{path.name})", "", f"{figure.title}. {caption}"]
    return lines

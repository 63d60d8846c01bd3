"""What `dydit demo` leaves: the comparison of two models, the run and the profile of one, and the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dydit_cli import marks
from dydit_cli.artifacts.base import Artifact, read_object, read_object_if_any
from dydit_cli.artifacts.profile import Profile
from dydit_cli.artifacts.run import Run
from dydit_cli.artifacts.samples import open_picture
from dydit_cli.errors import DyditError
from dydit_cli.files import write_json

RUN_FOLDER, PROFILE_FOLDER, PICTURE_FILE, RECIPE_FILE = "finetuned", "profile", "samples.png", marks.RECIPE


def write_demo(values: dict[str, Any], folder: Path) -> None:
    """Writes demo.json, without which a folder is no demo: last."""
    write_json(folder / marks.DEMO, values)


@dataclass(frozen=True)
class Demo(Artifact):
    """`values` is demo.json, `recipe` recipe.json where it is there, `picture` the samples of both models."""

    kind = "demo"
    name = "a demo"
    made_by = "dydit demo --out DIR"
    mark = marks.DEMO

    values: dict[str, Any]
    profile: Profile
    run: Run
    recipe: dict[str, Any] | None
    picture: Image.Image | None

    @classmethod
    def read(cls, path: str | Path) -> Demo:
        folder = Path(path)
        if not (folder / RUN_FOLDER).is_dir() or not (folder / PROFILE_FOLDER).is_dir():
            raise DyditError(
                f"{folder}: a demo's folder without its {RUN_FOLDER} or {PROFILE_FOLDER}; run dydit demo --out {folder} --force"
            )
        with cls.reading(folder):
            values, recipe = read_object(folder / marks.DEMO), read_object_if_any(folder / RECIPE_FILE)
        picture = open_picture(folder / PICTURE_FILE) if (folder / PICTURE_FILE).is_file() else None
        return cls(values, Profile.read(folder / PROFILE_FOLDER), Run.read(folder / RUN_FOLDER), recipe, picture)

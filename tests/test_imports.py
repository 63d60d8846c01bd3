"""The house's arrows: who may import whom, read off the source; and what the command line may load."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dydit_cli

PACKAGE = Path(dydit_cli.__file__).parent

# from the ground up: a room imports from the layers below its own, and from itself
LAYERS: tuple[set[str], ...] = (
    {"errors", "version", "marks", "provenance", "discovery"},
    {"seeds"},
    {"options"},
    {"units", "files", "devices", "bundled"},
    {"distributed", "hub", "pixels", "recipe_files"},
    {"model"},
    {"flops", "diffusion"},
    {"artifacts"},
    {"checkpoint"},
    {"data"},
    {"compress", "profiling", "sampling"},
    {"train", "bench", "evaluate", "figures"},
    {"reports", "costs"},
    {"studies", "sharing"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in sorted(rooms)}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dydit_cli."):
            rooms.add(node.module.split(".")[1])
    return rooms


@pytest.mark.parametrize("room", HEIGHT)
def test_no_arrow_runs_up(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    for file in files:
        up = {other for other in imported_rooms(file) - {room} if HEIGHT[other] >= HEIGHT[room]}
        assert not up, f"{file.relative_to(PACKAGE)} imports {sorted(up)}"


def test_figures_and_reports_read_artifacts_alone() -> None:
    leaves = {room for room, height in HEIGHT.items() if height < HEIGHT["model"]}
    for room, more in (("figures", set()), ("reports", {"figures"})):
        for file in (PACKAGE / room).rglob("*.py"):
            others = imported_rooms(file) - {room, "artifacts"} - leaves - more
            assert not others, f"{file.relative_to(PACKAGE)} imports {sorted(others)}"


def test_every_room_is_listed() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize(
    ("words", "room"),
    [
        (r"attn_rate|mlp_rate|token_selection|qkv|num_heads \* head_dim", "model/families"),
        (r"linear_schedule|TRAIN_STEPS|(timesteps?|train_steps|strata)\b.*= 1_?000\b|range\(1_?000\)", "diffusion"),
        (r"unittest|sys\.modules\[", "nowhere"),
    ],
)
def test_words_keep_to_their_room(words: str, room: str) -> None:
    for file in PACKAGE.rglob("*.py"):
        if room not in str(file.relative_to(PACKAGE)):
            found = [line for line in file.read_text(encoding="utf-8").splitlines() if re.search(words, line)]
            assert not found, f"{file.relative_to(PACKAGE)}: {found[0].strip()}"


@pytest.mark.parametrize(("library", "room"), [("matplotlib", "figures"), ("rich", "cli")])
def test_libraries_keep_to_their_room(library: str, room: str) -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == library for name in names):
                assert file.relative_to(PACKAGE).parts[0] == room, f"{file} imports {library}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    dydit_cli.convert("digits-dit", folder / "dydit")
    dydit_cli.export("digits-dit", folder / "diffusers", format="diffusers", any_variant=True)
    return folder


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, dydit_cli\n"
        "from dydit_cli.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'matplotlib', 'pandas', 'numpy', 'diffusers', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    times = []
    for _ in range(3):
        start = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        end = os.times()  # of the processor, which other programs do not lengthen
        times.append(end.children_user + end.children_system - start.children_user - start.children_system)
        assert done.returncode == 0, done.stderr
        assert "convert" in done.stdout
    assert min(times) < 0.5


# what takes longer to import than a small command to run, torch's compiler among them
HEAVY = {"torch._dynamo", "torch._inductor", "sympy", "diffusers", "sklearn", "scipy", "matplotlib", "pandas", "accelerate"}


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("inspect digits-dit", set()),
        ("convert digits-dit {tmp}/converted", set()),
        ("export digits-dit {tmp}/exported --format diffusers --any-variant", set()),
        ("profile {tmp}/dydit --width-only --out {tmp}/width", {"pandas"}),
        ("bench {tmp}/dydit --batch 1 --steps 1 --repeats 1 --device cpu", set()),
        ("inspect {tmp}/diffusers", set()),
        ("sample digits-sit --num 1 --steps 1 --device cpu --out {tmp}/samples", set()),
    ],
)
def test_a_command_imports_what_it_needs(folder: Path, command: str, needed: set[str]) -> None:
    code = (
        "import sys\n"
        "from dydit_cli.cli.app import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(*({HEAVY} & set(sys.modules)), file=sys.stderr)\n"
    )
    words = command.format(tmp=folder).split()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()[-1].split()) == needed


def test_public_names_are_there() -> None:
    for name in dydit_cli.__all__:
        assert getattr(dydit_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dydit_cli.nothing


def test_the_package_is_typed_for_those_who_import_it() -> None:
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_a_commit_is_checked_by_what_make_lint_runs() -> None:
    root = PACKAGE.parent
    hooks = re.findall(r"entry: \.venv/bin/(\w+(?: \w+)?)", (root / ".pre-commit-config.yaml").read_text())
    lint = re.findall(r"\$\(VENV\)/bin/(ruff \w+|mypy)", (root / "Makefile").read_text())
    assert hooks == lint

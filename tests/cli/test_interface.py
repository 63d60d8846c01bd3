"""How commands come about: a module each, options from the dataclasses that they fill, Ctrl-C, narrow terminals."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli import commands, console
from dydit_cli.cli.app import app, every_command, names
from dydit_cli.compress.options import ConvertOptions, PruneOptions
from dydit_cli.diffusion.options import SAMPLERS, Sampler, SamplerSettings
from dydit_cli.evaluate.options import LossSettings
from dydit_cli.profiling.options import ProfileOptions
from dydit_cli.sampling.options import SamplingConfig
from tests.cli.conftest import FAST
from tests.processes import dydit, start

TOY = '''"""Greet somebody.

Example: `dydit greet Ada`
"""

from dataclasses import dataclass
from typing import Annotated

from dydit_cli.cli import console
from dydit_cli.cli.build import Typed
from dydit_cli.errors import DyditError
from dydit_cli.options import Arg, Opt, Seed, Without


def pair(text: str) -> tuple[str, str]:
    first, comma, second = text.partition(",")
    if not comma:
        raise DyditError(f"--between {text}: write two words")
    return first, second


@dataclass(frozen=True)
class Voice:
    volume: Annotated[int, Opt("How loud.", min=1)] = 3
    silent: int = 0


@dataclass(frozen=True)
class Manner:
    voice: Voice
    word: Annotated[str, Opt("What is said.", choices={"hello": 1, "welcome": 2}.keys)] = "hello"
    polite: Annotated[bool, Opt("With a title.")] = True
    twice: Annotated[bool, Opt("Once more.")] = False
    between: Annotated[tuple[str, str], Opt("Around it.", default="nothing", parse=pair)] = ("", "")
    seed: Seed = 7
    hidden: Annotated[int, Opt("Not here.")] = 5


def greet(typed: Typed, name: Annotated[str, Arg("NAME", "Who.")], manner: Annotated[Manner, Without("hidden")]) -> None:
    console.as_json({"name": name, "manner": repr(manner), "typed": typed.options, "again": typed.again})
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more module among the commands, and nothing else."""
    (tmp_path / "greet.py").write_text(TOY)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dydit_cli.cli.commands.greet", raising=False)


@pytest.mark.usefixtures("toy")
def test_a_module_is_a_command_and_its_dataclasses_are_options() -> None:
    assert names() == [*(name for panel in commands.PANELS.values() for name in panel), "greet"]
    assert re.search(r"greet +Greet somebody\.", dydit("--help").stdout)
    shown = " ".join(CliRunner().invoke(app, ["greet", "--help"], env={"COLUMNS": "150"}).stdout.split())
    for text in ("--volume", "How loud.", "What is said: hello or welcome.", "--polite", "--no-polite", "--twice", "(nothing)"):
        assert text in shown
    for text in ("--silent", "--hidden", "--no-twice"):
        assert text not in shown

    plain = json.loads(dydit("greet", "Ada").stdout)
    manner = "polite=True, twice=False, between=('', ''), seed=7, hidden=5)"
    assert plain["manner"] == f"Manner(voice=Voice(volume=3, silent=0), word='hello', {manner}"
    full = ["--word", "welcome", "--no-polite", "--twice", "--between", "a,b", "--volume", 9, "--seed", 0]
    typed = json.loads(dydit("greet", "Ada L", *full).stdout)
    manner = "polite=False, twice=True, between=('a', 'b'), seed=0, hidden=5)"
    assert typed["manner"] == f"Manner(voice=Voice(volume=9, silent=0), word='welcome', {manner}"
    assert typed["typed"] == ["NAME", "--volume", "--word", "--polite", "--twice", "--between", "--seed"]
    again = "--word welcome --no-polite --twice --between a,b --volume 9 --seed 0"
    assert typed["again"] == f"dydit greet 'Ada L' {again}"
    for wrong, message in (
        (["--word", "hi"], "Invalid value for '--word': 'hi' is not one of 'hello', 'welcome'. (see"),
        (["--between", "a"], "error: --between a: write two words"),
        (["--volume", 0], "Invalid value for '--volume'"),
        (["--seed", 2**63], f"error: --seed {2**63}; it must be a whole number from 0 to {2**63 - 1}"),
        (["--silent", 1], "No such option: --silent"),
    ):
        refused = dydit("greet", "Ada", *wrong)
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert message in refused.stderr


def test_a_newcomer_sees_four_commands_and_then_headings() -> None:
    shown = dydit("--help").stdout
    headings = re.findall(r"^╭─ ([A-Z][\w ]+?) ─", shown, flags=re.MULTILINE)
    assert headings == ["Options", *commands.PANELS]
    first = shown.split("─ Begin with ─")[1].split("╰")[0]
    assert re.findall(r"^│ (\w+)", first, flags=re.MULTILINE) == ["demo", "convert", "finetune", "sample"]
    listed = re.findall(r"^│ (\w+)  ", shown, flags=re.MULTILINE)
    assert sorted(listed) == sorted({words[0] for words in every_command()})
    for without in ([], ["recipes"]):  # the same help, and no complaint
        told = dydit(*without)
        assert (told.exit_code, told.stderr) == (2, "")
        assert "Commands" in told.stdout or "Begin with" in told.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("dydit sam", ["sample"]),
        ("dydit sample --sampler eul", ["euler", "euler-maruyama"]),
        ("dydit recipes ch", ["check"]),
        ("dydit recipes copy --fl", ["--flat"]),
        ("dydit recipes show digits/fi", ["digits/finetune", "digits/finetune-sit"]),
        ("dydit recipes check fashion/range digits/trade", ["digits/tradeoff", "digits/tradeoff-short"]),
        ("dydit finetune runs/x --recipe fine-grained/", ["fine-grained/birds-200"]),
        ("dydit sample fash", ["fashion-dit"]),
    ],
)
def test_the_shell_completes(typed: str, offered: list[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = CliRunner().invoke(app, [], prog_name="dydit", env={"_DYDIT_COMPLETE": "complete_bash", **words})
    assert (done.exit_code, done.stdout.split()) == (0, offered)


def test_what_a_registry_holds_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "little", Sampler("gaussian", 18, lambda: None))
    shown = CliRunner().invoke(app, ["sample", "--help"], env={"COLUMNS": "200"}).stdout
    assert "heun-sde or little" in " ".join(shown.split())
    typed = dydit("sample", "no-such-model", "--sampler", "little", "--out", "x")
    assert "no-such-model: no such checkpoint" in typed.stderr


# fields without an option there: a DyDiT of a range stays one where it is changed or described as a whole
LEFT_OUT = {("profile", "cfg_interval"), *((name, "flops_ratio") for name in ("losses", "convert", "prune", "inspect"))}


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("sample", (SamplerSettings, SamplingConfig, LoadOptions)),
        ("evaluate", (SamplerSettings, SamplingConfig, LoadOptions)),
        ("profile", (SamplerSettings, ProfileOptions, LoadOptions)),
        ("bench", (BenchSettings,)),
        ("losses", (LossSettings, LoadOptions)),
        ("convert", (ConvertOptions, LoadOptions)),
        ("prune", (PruneOptions, LoadOptions)),
        ("finetune", (LoadOptions,)),
        ("inspect", (LoadOptions,)),
        ("export", (LoadOptions,)),
    ],
)
def test_every_field_with_an_option_has_it(command: str, settings: tuple[type, ...]) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    for one in settings:
        for name, annotation in one.__annotations__.items():
            if "Opt(" in annotation and (command, name) not in LEFT_OUT:
                option = {"measured": "measure"}.get(name, name.replace("_", "-"))
                assert re.search(f"--{option}[ ,]", shown), option


def test_helps_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from dydit_cli.cli.app import app, every_command\n"
        # that one names the figures that are registered, which is to load them, and their tables are pandas'
        "for words in ([*name, '--help'] for name in sorted(every_command(), key=('visualize',).__eq__)):\n"
        "    try:\n        app(words)\n    except SystemExit as end:\n        assert end.code == 0, words\n"
        "    tables = set() if words[0] == 'visualize' else {'pandas', 'numpy'}\n"
        "    heavy = {'torch', 'matplotlib', 'diffusers', 'sklearn', *tables} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_ctrl_c_is_one_line(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"dydit_cli.cli.commands.{'.'.join(words)}"), words[-1], interrupted)
    result = dydit(*words)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_in_a_shared_sampling_shows_the_command_that_continues(room: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(room / "tuned"), "--out", str(tmp_path / "out"), "--npz", "--num", "99", "--shard-size", "1"]
    slow = ["--steps", "50", "--batch", "1", *FAST]
    with start([*arguments, *slow, "--force"]) as stopped:
        while stopped.poll() is None and not any(tmp_path.glob("out/shards/0*.npz")):
            time.sleep(0.02)
        stopped.send_signal(signal.SIGINT)
        out, err = stopped.communicate(timeout=60)
    assert (stopped.returncode, out) == (130, "")
    assert err.splitlines()[-1] == f"interrupted; continue with: dydit {' '.join([*arguments, *slow])}"


ROWS = [["static", "12.345 GMACs", "1.000"], ["a-checkpoint-with-a-long-name", "6.0660001 GMACs", "0.491"]]


@pytest.mark.parametrize("columns", [20, 30, 40, 50, 60, 80, 200])
def test_no_terminal_is_so_narrow_that_figures_are_cut(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "out", Console(width=columns))
    console.table("Figures", ["", "MACs per forward", "ratio"], ROWS)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    for _, macs, ratio in ROWS:
        assert all(figure in shown for figure in (*macs.split(), ratio))


def test_commands_in_forty_columns(room: Path) -> None:
    shown = CliRunner().invoke(app, ["profile", "--table"], env={"COLUMNS": "40"}).stdout
    table = json.loads(dydit("profile", "--table", "--json").stdout)["sizes"]
    for size in table:
        for figure in (size["model"], f"{size['macs'] / 1e9:.3f}", f"{size['parameters'] / 1e6:.1f} M"):
            assert figure in shown
    facts = CliRunner().invoke(app, ["inspect", str(room / "tuned")], env={"COLUMNS": "40"}).stdout
    assert f"{json.loads(dydit('inspect', room / 'tuned', '--json').stdout)['parameters']:,}" in facts


def test_the_keys_of_export_and_report(room: Path, tmp_path: Path) -> None:
    done = dydit("export", room / "tuned", tmp_path / "x.pt", "--format", "dydit", "--dtype", "bf16", "--json")
    assert done.exit_code == 0, done.output
    exported: dict[str, Any] = json.loads(done.stdout)
    assert exported.pop("parameters") > 0
    assert exported == {
        "source": str(room / "tuned"),
        "found": "dydit folder",
        "destination": str(tmp_path / "x.pt"),
        "format": "dydit",
        "kind": "dydit",
        "size": "DiT-2x32/2",
        "dtype": "bfloat16",
        "timestep_variant": "original",
        "complete": False,
    }
    page = tmp_path / "page.html"
    done = dydit("report", room / "profile", room / "tuned", "--out", page, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [section["about"] for section in told.pop("sections")] == ["profile", "training run"]
    assert told == {
        "out": str(page),
        "runs": [str(room / "profile"), str(room / "tuned")],
        "bytes": page.stat().st_size,
    }

"""What the program does, as hashes: recorded before a change and after it, they say what the change has changed.

    python -m tests.behaviour before.json --keep before-out
    python -m tests.behaviour after.json --keep after-out --against before.json

runs some 130 small commands in a temporary folder, with fixed seeds, on one thread, and through the command line alone:
nothing of the package is imported, so that the tool works on any state of the code that it lies beside. It takes two to
four minutes. `--against` prints the names that differ, are new or are gone, and fails where there is any; the words of the
reports, a sentence a line, are in `before-report.txt` beside `before.json`, and their difference is printed too.

Every part of an output has a name of its own: `profile/timesteps.csv#ratio` is a column, `profile/profile.json#steps` a key
of the top level, `sample/00000-class0.png` the pixels of a picture, `says/profile` what a command printed, `exit/profile`
its exit code, `report/report.html#words of Figures` a part of a page. Left out is what is never the same twice: times (what
follows from them, such as speed-ups, too), versions, and where the folder lies. They are replaced by fixed ones, not removed,
so that a key that comes or goes is seen; figures and reports are drawn from files in which that was done, and are hashed as
they are. What the hashes hold is true of one machine: another processor or torch may round otherwise.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import hashlib
import json
import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOGS, INPUTS = "logs", "inputs"
SECONDS_PER_COMMAND = 600
# one thread, so that the bits are the same; no colours and a known width, so that the words are
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": str(ROOT),
}  # fmt: skip
# what takes seconds to load and is not the program's: loaded once, for all commands
LIBRARIES = (
    "accelerate", "diffusers.models.autoencoders.autoencoder_kl", "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_dpmsolver_multistep", "fvcore.nn", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg", "pandas", "pydantic", "rich.progress", "safetensors.torch", "scipy.linalg",
    "sklearn.datasets", "sklearn.decomposition", "sklearn.model_selection", "sklearn.pipeline", "sklearn.svm", "torch", "typer",
)  # fmt: skip


# ---- what is run


@dataclass(frozen=True)
class Command:
    """`dydit` with the words of `line`; what it prints also goes into the file `keep`. A `mistake` is to be refused."""

    name: str
    line: str
    keep: str | None = None
    mistake: bool = False

    @property
    def arguments(self) -> list[str]:
        return self.line.split()

    @property
    def prints_json(self) -> bool:
        return "--json" in self.arguments and not self.mistake


CPU, BATCH = "--device cpu", "--batch-size 8"
DRAW = f"{CPU} --steps 4 --out"
RECIPE = "digits/ablations"
STUDY = (
    "study digits/tradeoff --set finetune.steps=4 --set evaluation.images=12 --set evaluation.steps=2 --set seeds=[0] "
    "--set evaluation.held_out=2 --set evaluation.profiled=2 --set methods.dydit=[0.5] --set methods.tome=[0.25] "
    '--set methods.prune=["taylor"] --set finetune.calibrate=false --set timing.images=2 --set timing.repeats=1 --device cpu'
)
LATENTS = "data=latents:latents train.batch_size=4 model.input_size=4 model.in_channels=4 model.num_classes=2"
COMMANDS = (
    "bench", "convert", "demo", "encode", "evaluate", "export", "finetune", "inspect", "losses", "pretrain", "profile",
    "prune", "report", "sample", "study", "visualize",
)  # fmt: skip

WORK = [
    Command("help", "--help"),
    Command("version", "--version"),
    *(Command(f"help-{name}", f"{name} --help") for name in COMMANDS),
    Command("convert", "convert digits-dit convert"),
    Command("convert-unranked", "convert digits-dit convert-unranked --ranking none --router-bias 2 --seed 3 --json"),
    Command("finetune", f"finetune convert --lambda 0.5 --seed 0 --steps 40 {BATCH} {CPU} --out finetune"),
    Command("calibrate", f"finetune convert --lambda 0.5 --seed 0 --steps 24 {BATCH} {CPU} --calibrate --json --out calibrate"),
    Command("control", f"finetune digits-dit --seed 0 --steps 10 {BATCH} {CPU} --out control"),
    Command("short", f"finetune convert --recipe digits/short --steps 6 {BATCH} {CPU} --json --out short"),
    Command("accumulate", f"finetune convert --steps 3 {BATCH} --set train.accumulation=2 --set train.min_snr=5 "
                          f"--set routing.complete_steps=2 {CPU} --out accumulate"),
    *(
        Command(name, f"finetune convert --recipe {RECIPE}/{name} --steps 6 {BATCH} {CPU} --out {name}")
        for name in ("no-strata", "random", "sdt-only", "tdw-only", "whole-layers")
    ),
    *(
        Command(f"prune-{method}", f"prune digits-dit prune-{method} --method {method} --keep 0.5 {more} {CPU}")
        for method, more in {
            "random": "--seed 1",
            "magnitude": "--json",
            "taylor": "--batches 2 --batch-size 8",
            "diff": "--batches 1 --batch-size 8 --timesteps 5 --json",
        }.items()
    ),
    Command("pruned-tuned", f"finetune prune-taylor --steps 4 {BATCH} {CPU} --out pruned-tuned"),
    Command("pretrain", f"pretrain digits/pretrain --steps 3 --set train.batch_size=8 {CPU} --out pretrain"),
    Command("encode", f"encode inputs/images latents --vae inputs/vae --size 32 --shard-size 5 {CPU} --json"),
    Command("pretrain-latents", f"pretrain digits/pretrain --steps 2 --set {LATENTS.replace(' ', ' --set ')} {CPU} "
                                "--out pretrain-latents"),
    Command("sample", f"sample finetune --num 12 {DRAW} sample"),
    Command("sample-static", f"sample digits-dit --num 3 --classes 0,5-6 --seed 7 {DRAW} sample-static --json"),
    Command("sample-ddpm", f"sample finetune --num 3 --sampler ddpm {DRAW} sample-ddpm"),
    Command("sample-dpmsolver", f"sample finetune --num 3 --sampler dpmsolver++ --cfg-channels all {DRAW} sample-dpmsolver"),
    Command("sample-interval", f"sample finetune --num 3 --cfg 4 --cfg-interval 100,800 --batch 2 {DRAW} sample-interval"),
    Command("sample-unguided", f"sample finetune --num 3 --cfg 1 --spacing trailing {DRAW} sample-unguided"),
    Command("sample-masked", f"sample finetune --num 3 --execution masked {DRAW} sample-masked"),
    Command("sample-padded", f"sample finetune --num 3 --execution padded {DRAW} sample-padded"),
    Command("sample-complete", f"sample finetune --num 3 --execution complete {DRAW} sample-complete"),
    Command("sample-bf16", f"sample finetune --num 3 --dtype bf16 {DRAW} sample-bf16"),
    Command("sample-layers", f"sample whole-layers --num 3 {DRAW} sample-layers"),
    Command("sample-tome", f"sample digits-dit --num 3 --tome 0.25 {DRAW} sample-tome"),
    Command("sample-fashion", f"sample fashion-dit --num 2 {DRAW} sample-fashion"),
    Command("sample-vae", f"sample pretrain-latents --num 2 --vae inputs/vae {DRAW} sample-vae"),
    Command("sample-npz", f"sample finetune --num 5 --npz --shard-size 3 {DRAW} sample-npz"),
    Command("sample-npz-tome", f"sample digits-dit --num 3 --npz --tome 0.5 {DRAW} sample-npz-tome --json"),
    Command("profile", f"profile finetune --images 3 {DRAW} profile"),
    Command("profile-json", f"profile finetune --images 2 --sampler ddpm --cfg 1 --keep-masks 1 {DRAW} profile-json --json"),
    Command("profile-time", f"profile finetune --images 2 --time {DRAW} profile-time"),
    Command("profile-width", "profile finetune --width-only --out profile-width"),
    Command("profile-width-json", "profile convert finetune --width-only --out profile-width-json --json"),
    Command("profile-static", f"profile digits-dit --images 2 --unit flop {DRAW} profile-static"),
    Command("profile-layers", f"profile whole-layers --images 2 {DRAW} profile-layers"),
    Command("profile-tome", f"profile digits-dit --images 2 --tome 0.25 {DRAW} profile-tome"),
    Command("profile-card", f"profile calibrate --images 2 --card {DRAW} profile-card"),
    Command("profile-compare", f"profile digits-dit finetune --images 2 {DRAW} profile-compare"),
    Command("table", "profile --table"),
    Command("table-json", "profile --table --json"),
    Command("losses", f"losses finetune digits-dit --images 3 --timesteps 3 --map-images 2 --map-noises 1 {CPU} --out losses"),
    Command("losses-json", f"losses control --images 2 --timesteps 3 --map-images 1 --map-noises 1 --maps-at 20,500 {CPU} "
                           "--out losses-json --json"),
    Command("evaluate", f"evaluate sample --features digits {CPU} --out evaluate.json"),
    Command("evaluate-npz", f"evaluate sample-npz/samples.npz --features digits --reference digits:held-out {CPU} --json"),
    Command("evaluate-drawn", f"evaluate finetune --features digits --num 8 --steps 2 {CPU} --out evaluate-drawn.json"),
    Command("export-dit", "export digits-dit dit.pt --format dit"),
    Command("export-dydit", "export finetune dydit.pt --format dydit"),
    Command("export-diffusers", "export digits-dit diffusers --format diffusers --any-variant"),
    Command("export-native", "export finetune native --format native --dtype bf16"),
    Command("export-complete", "export finetune complete.pt --format dit --complete"),
    *(
        Command(f"inspect-{path.partition('.')[0]}", f"inspect {path} --json")
        for path in ("digits-dit", "fashion-dit", "finetune", "calibrate", "whole-layers", "prune-diff", "diffusers", "native")
    ),
    Command("inspect-dit", "inspect dit.pt --num-heads 6 --json"),
    Command("inspect-dydit", "inspect dydit.pt --json"),
    Command("inspect", "inspect finetune"),
    Command("sample-pt", f"sample dit.pt --num-heads 6 --num 2 {DRAW} sample-pt"),
    Command("sample-dydit-pt", f"sample dydit.pt --num 2 {DRAW} sample-dydit-pt"),
    # not from a .pt file, whose bytes are others each time: the name of a temporary file is in them
    Command("convert-diffusers", "convert diffusers convert-diffusers --timestep-variant original"),
    Command("study", f"{STUDY} --no-time --out study"),
    Command("study-json", f"{STUDY} --no-time --out study --json"),
    Command("study-timed", f"{STUDY} --out study-timed --json"),
    Command("bench", f"bench finetune --measure 1 --repeats 1 {CPU} --json", keep="bench.json"),
    Command("bench-tome", f"bench digits-dit --tome 0.25 --measure 1 --repeats 1 {CPU} --json", keep="bench-tome.json"),
    *(
        Command(f"mistake-{line.replace(' ', '_').replace('/', '_')}", line, mistake=True)
        for line in (
            "nothing", "sample digits-dit --nothing", "sample no.pt --out no", "sample digits-dit --classes 11 --out no",
            "profile", "profile finetune --images 0 --out no", "profile finetune --tome 0.25 --out no",
            "sample finetune --tome 0.25 --out no", "finetune convert --out finetune", "finetune convert --lambda 0 --out no",
            "finetune convert --set train.nothing=1 --out no", "finetune --resume finetune", "prune finetune no",
            "convert finetune no", "export finetune no.pt --format dit", "export digits-dit no --format diffusers",
            "evaluate sample --num 3", "losses finetune --data nothing --out no", "inspect inputs",
            "report inputs --out no.html", "visualize profile --figure nothing --out no.png",
            "visualize finetune --figure tokens --out no.png", "visualize profile --out no.gif",
            "study digits/finetune --out no", "bench digits-dit",
        )
    ),
]  # fmt: skip
FIGURES = {
    **dict.fromkeys(("architecture", "tokens", "flops"), "profile"),
    "training": "finetune",
    **dict.fromkeys(("loss-gap", "loss-maps"), "losses"),
    "tradeoff": "study-timed",
    "samples": "study",
    "time": "bench.json",
}
REPORTS = {
    "report": "profile finetune sample losses study-timed evaluate.json bench.json",
    "report-one": "profile-time",
    "report-more": "profile-compare profile-width profile-static profile-tome control convert prune-taylor sample-static "
    "sample-npz study profile-layers calibrate",
}
# from files in which times and versions are fixed ones
DRAWN = [
    *(
        Command(f"figure-{name}", f"visualize {source} --figure {name} --data --out figures/{name}.png")
        for name, source in FIGURES.items()
    ),
    Command("figure-static", "visualize profile-static --data --out figures/static.svg"),
    Command("figure-layers", "visualize profile-layers --figure tokens --data --out figures/layers.svg"),
    Command("figure-control", "visualize control --figure training --data --out figures/control.pdf"),
    Command("figure-folders", "visualize sample sample-complete --figure samples --data --out figures/folders.png"),
    Command("figure-tome", "visualize bench-tome.json --figure time --data --out figures/time-tome.svg"),
    *(Command(name, f"report {sources} --out {name}/report.html") for name, sources in REPORTS.items()),
]


# ---- how it is run


def make_inputs(folder: Path) -> None:
    """Eight pictures of two classes, and a random VAE that makes 32 x 32 pixels 4 x 4."""
    import torch
    from diffusers import AutoencoderKL
    from PIL import Image

    torch.manual_seed(0)
    for i in range(8):
        file = folder / "images" / f"{i % 2:04d}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((40, 32 + i)).rotate(45 * i).convert("RGB").save(file)
    blocks: dict[str, Any] = {
        "block_out_channels": (4, 4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae: Any = AutoencoderKL(**blocks, norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(folder / "vae")


def run_module(arguments: list[str], folder: str, out: str, err: str) -> None:
    """`python -m dydit_cli` in a process that has the libraries already, and nothing of the program."""
    for stream, file in ((1, out), (2, err)):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, stream)
        os.close(handle)
    os.chdir(folder)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(ROOT))]
    sys.argv[:] = ["dydit", *arguments]
    assert "dydit_cli" not in sys.modules
    runpy.run_module("dydit_cli", run_name="__main__", alter_sys=True)


class Runner:
    """Runs commands in `folder`, one after the other; `fresh` in an interpreter each, which takes five times as long."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        self.folder, self._fresh = folder, fresh
        (folder / LOGS).mkdir()
        os.environ.update(SURROUNDINGS)
        os.environ.pop("DYDIT_TRACEBACK", None)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(LIBRARIES))

    def call(self, target: Callable[..., None], *arguments: Any) -> int | None:
        """The exit code of `target` in a process of its own; None where it did not end."""
        process = self._context.Process(target=target, args=arguments)
        process.start()
        process.join(SECONDS_PER_COMMAND)
        if process.is_alive():
            process.kill()
            process.join()
            return None
        return process.exitcode

    def run(self, command: Command) -> int | None:
        """What it prints goes into logs/NAME.out and logs/NAME.err."""
        out, err = (self.folder / LOGS / f"{command.name}.{ending}" for ending in ("out", "err"))
        if self._fresh:
            words = [sys.executable, "-m", "dydit_cli", *command.arguments]
            with out.open("w") as to, err.open("w") as errors:
                code: int | None = subprocess.run(words, cwd=self.folder, stdout=to, stderr=errors).returncode
        else:
            code = self.call(run_module, command.arguments, str(self.folder), str(out), str(err))
        if command.keep:
            shutil.copy(out, self.folder / command.keep)
        if (code != 0) != command.mistake:
            print(f"{command.name}: exit code {code} of dydit {command.line}\n{err.read_text()}", file=sys.stderr)
        return code


# ---- what varies

TIME_KEY = re.compile(r"(^|_)(seconds?|speedup|efficiency|efficiencies|load_average)(_|$)")
VERSION_KEYS = {"versions", "dydit", "torch", "_diffusers_version"}
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
VERSION = re.compile(r"\b(dydit|torch|diffusers) +\d+\.\d[\w+]*(?:\.\w[\w+]*)*")
TIMES = (
    (re.compile(rf"{NUMBER} (steps|images|image-steps|evaluations)/s"), r"RATE \1/s"),
    (re.compile(r"\b\d+ h \d\d min|\b\d+ min \d\d s\b"), "TIME"),
    (re.compile(rf"(?<![\w.]){NUMBER} m?s\b"), "TIME"),
    (re.compile(rf"\bstatic {NUMBER}: speed-up"), "static TIME: speed-up"),
    (re.compile(rf"\b(speed-up|realised efficiency) {NUMBER}"), r"\1 TIMES"),
)
PROGRESS = re.compile(r"^.+: \d+/\d+ .+/s, .*(left|took)")  # how many of these there are is a matter of time


def digest(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def invented(*place: object) -> float:
    """A number in place of one that varies: always the same at one place, and others at others."""
    return round(0.5 + zlib.crc32("/".join(map(str, place)).encode()) % 1000 / 1000, 3)


class Settle:
    """Replaces what varies; `folder` is where the program ran. In what was `drawn` from files in which that was done, no time
    varies any more."""

    def __init__(self, folder: Path, drawn: bool = False) -> None:
        places = {str(folder.resolve()): "FOLDER", str(folder): "FOLDER", str(ROOT): "CODE"}
        self._places = sorted(places.items(), key=lambda pair: -len(pair[0]))
        self._drawn = drawn

    def printed(self, text: str) -> str:
        """Words on a terminal, where times are among others."""
        for pattern, replacement in TIMES:
            text = pattern.sub(replacement, text)
        return "\n".join(line.rstrip() for line in self.text(text).splitlines())  # a table is filled up with spaces

    def text(self, text: str) -> str:
        for place, name in self._places:
            text = text.replace(place, name)
        return VERSION.sub(r"\1 VERSION", text)

    def kind(self, key: str) -> str:
        """Whether what a key or a column names is a `time`, a `version`, or, ``, always the same."""
        if key in VERSION_KEYS:
            return "version"
        return "time" if TIME_KEY.search(key) and not self._drawn else ""

    def value(self, value: Any, *place: object, varies: str = "") -> Any:
        """JSON's values; under a key that says so, `varies` is `time` or `version`."""
        if isinstance(value, dict):
            timed = {"parts"} if "plan_seconds" in value else set()
            return {
                key: self.value(each, *place, key, varies=varies or ("time" if key in timed else self.kind(key)))
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [self.value(each, *place, i, varies=varies) for i, each in enumerate(value)]
        if varies == "time" and isinstance(value, int | float) and not isinstance(value, bool):
            return invented(*place)
        if isinstance(value, str):
            return "VERSION" if varies == "version" else self.text(value)
        return value

    def lines(self, text: str) -> list[dict[str, Any]]:
        """Of a .jsonl file."""
        return [self.value(json.loads(line), i) for i, line in enumerate(text.splitlines())]

    def rows(self, text: str) -> list[list[str]]:
        """Of a CSV file, the heading among them."""
        heading, *rows = csv.reader(text.splitlines())
        varies = [self.kind(name) for name in heading]
        return [heading] + [
            [
                str(invented(i, name)) if kind == "time" and cell else self.text(cell)
                for name, kind, cell in zip(heading, varies, row, strict=True)
            ]
            for i, row in enumerate(rows)
        ]

    def file(self, path: Path) -> None:
        """Rewrites a file that a figure or a report is drawn from."""
        text = path.read_text()
        if path.suffix == ".json":
            path.write_text(json.dumps(self.value(json.loads(text)), indent=2))
        elif path.suffix == ".jsonl":
            path.write_text("".join(f"{json.dumps(line)}\n" for line in self.lines(text)))
        elif path.suffix == ".csv" and text:
            with path.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(self.rows(text))


# ---- what came out

Parts = Iterator[tuple[str, str]]  # the part's name behind the file's, and its hash


def parts_of(path: Path, settle: Settle) -> Parts:
    """The parts of any file."""
    if path.suffix in (".json", ".jsonl", ".csv"):
        yield from parts_of_text(path.suffix, path.read_text(), settle)
    elif path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                yield f"#{name}", digest(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    elif path.suffix in (".safetensors", ".pt"):
        yield from parts_of_weights(path)
    elif path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            yield "", digest(f"{image.mode} {image.size} ".encode() + image.tobytes())
    elif path.suffix == ".html":
        yield from parts_of_page(path.read_text(), settle)
    else:
        data = path.read_bytes()
        try:
            yield "", digest(settle.text(data.decode()))
        except UnicodeDecodeError:
            yield "", digest(data)


def parts_of_text(ending: str, text: str, settle: Settle) -> Parts:
    """A hash for every key of JSON's top level, every key of a line, or every column."""
    if ending == ".csv":
        columns = list(zip(*settle.rows(text), strict=True)) if text else []
        yield "", digest("\n".join(name for name, *_ in columns))
        for name, *cells in columns:
            yield f"#{name}", digest("\n".join(cells))
        return
    value = settle.lines(text) if ending == ".jsonl" else settle.value(json.loads(text))
    if isinstance(value, dict):
        for key, each in value.items():
            yield f"#{key}", digest(json.dumps(each, sort_keys=True))
    elif ending == ".jsonl":
        for key in sorted({key for line in value for key in line}):
            yield f"#{key}", digest(json.dumps([line.get(key) for line in value], sort_keys=True))
    else:
        yield "", digest(json.dumps(value, sort_keys=True))


def parts_of_weights(path: Path) -> Parts:
    """All tensors together, and what stands beside them."""
    import torch
    from safetensors import safe_open

    if path.suffix == ".pt":
        weights, metadata = torch.load(path, weights_only=True), None
    else:
        with safe_open(path, "pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    whole = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    yield "", whole.hexdigest()
    yield "#metadata", digest(json.dumps(metadata, sort_keys=True))


def parts_of_page(page: str, settle: Settle) -> Parts:
    """The words under each heading, each drawn figure, all pictures, and the page's style and script."""
    for heading, sentences in sentences_of(page, settle).items():
        yield f"#words of {heading}", digest("\n".join(sentences))
    seen: Counter[str] = Counter()
    for svg in re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL):
        title = (re.findall(r'^<svg [^>]*aria-label="([^"]*)"', svg) or ["without a title"])[0]
        seen[title] += 1
        yield f"#figure {title}" + (f" ({seen[title]})" if seen[title] > 1 else ""), digest(svg)
    yield "#pictures", digest("\n".join(re.findall(r'src="(data:[^"]+)"', page)))
    for name in ("style", "script"):
        yield f"#{name}", digest("\n".join(re.findall(rf"<{name}[ >].*?</{name}>", page, flags=re.DOTALL)))


class Words(HTMLParser):
    """The text of a page without its figures: `lines` are paragraphs, headings and the rows of tables."""

    SILENT = frozenset({"script", "style", "svg"})
    INLINE = frozenset({"a", "b", "i", "em", "strong", "small", "code", "span", "td", "th", "abbr", "kbd", "sub", "sup"})

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []
        self._text, self._silent, self._tag = "", 0, ""

    def _flush(self, tag: str) -> None:
        if self._text.strip():
            self.lines += [(self._tag, " ".join(line.split())) for line in self._text.splitlines() if line.strip()]
        self._text, self._tag = "", tag

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in self.SILENT
        if tag not in self.INLINE:
            self._flush(tag)
        elif tag in ("td", "th") and self._text.strip():
            self._text += " | "

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in self.SILENT
        if tag not in self.INLINE:
            self._flush("")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._text += data


def sentences_of(page: str, settle: Settle) -> dict[str, list[str]]:
    """The page's words, a sentence each, by the heading that they stand under."""
    words = Words()
    words.feed(page)
    words.close()
    heading, found = "the summary", dict[str, list[str]]()
    for tag, line in words.lines:
        heading = line if tag == "h2" else heading
        found.setdefault(heading, []).extend(re.split(r"(?<=[.!?]) (?=[A-Z])", settle.text(line)))
    return found


def outputs(folder: Path) -> dict[str, list[str]]:
    """The names in every folder that the program wrote, by the folder's own."""
    every = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    apart = {folder / LOGS, folder / INPUTS}
    ours = [path for path in every if not apart & {path, *path.parents}]
    return {str(path.relative_to(folder)): sorted(child.name for child in path.iterdir()) for path in sorted(ours)}


def said(command: Command, folder: Path, settle: Settle) -> Iterator[tuple[str, str]]:
    """What a command printed, but for its progress."""
    out, err = ((folder / LOGS / f"{command.name}.{ending}").read_text() for ending in ("out", "err"))
    if command.prints_json and out.startswith(("{", "[")):
        for part, value in parts_of_text(".json", out, settle):
            yield f"says/{command.name}{part}", value
    else:
        yield f"says/{command.name}", digest(settle.printed(out))
    notes = [line for line in err.splitlines() if not PROGRESS.match(line)]
    yield f"notes/{command.name}", digest(settle.printed("\n".join(notes)))


def record(folder: Path, fresh: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Everything in `folder`, which is empty: what was found, and the reports' sentences."""
    began, runner = time.perf_counter(), Runner(folder, fresh)
    (folder / INPUTS).mkdir()
    if runner.call(make_inputs, folder / INPUTS) != 0:
        raise SystemExit("the pictures and the VAE could not be made")
    found: dict[str, str] = {}
    done: set[Path] = set()

    def collect(commands: list[Command], settle: Settle) -> None:
        for command in commands:
            found[f"exit/{command.name}"] = str(runner.run(command))
            found.update(said(command, folder, settle))
            if command.name == "study-json" and (folder / "study").is_dir():
                shutil.copytree(folder / "study", folder / "study-timed")  # whose times alone are left to take
        for name, names in outputs(folder).items():
            for path in (folder / name / each for each in names):
                if path.is_file() and path not in done:
                    done.add(path)
                    for part, value in parts_of(path, settle):
                        found[f"{path.relative_to(folder)}{part}"] = value

    settle, as_drawn = Settle(folder), Settle(folder, drawn=True)
    collect(WORK, settle)
    for path in done:
        if path.suffix in (".json", ".jsonl", ".csv"):
            settle.file(path)
    collect(DRAWN, as_drawn)
    for name in [name for name in found if name.startswith("study-timed/study.md")]:
        del found[name]  # a table with times in it; study/study.md is the same without
    lines = []
    for page in sorted(path for path in done if path.suffix == ".html"):
        lines.append(f"==== {page.relative_to(folder)}")
        for heading, sentences in sentences_of(page.read_text(), as_drawn).items():
            lines += [f"== {heading}", *sentences]
    about = {"code": str(ROOT), "python": sys.version.split()[0], "seconds": round(time.perf_counter() - began, 1)}
    return {"about": about, "folders": outputs(folder), "hashes": dict(sorted(found.items()))}, lines


# ---- the comparison


def compare(after: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """A line for every name that differs, is new or is gone."""
    lines = []
    for name in sorted({*after["hashes"], *before["hashes"]}):
        ours, theirs = after["hashes"].get(name), before["hashes"].get(name)
        if ours != theirs:
            codes = f": {theirs}, now {ours}" if name.startswith("exit/") else ""
            lines.append(f"{'new    ' if theirs is None else 'gone   ' if ours is None else 'differs'}  {name}{codes}")
    for name in sorted({*after["folders"], *before["folders"]}):
        ours, theirs = (set(each["folders"].get(name, ())) for each in (after, before))
        changed = [f"+ {each}" for each in sorted(ours - theirs)] + [f"- {each}" for each in sorted(theirs - ours)]
        if changed:
            lines.append(f"files    {name}/: {', '.join(changed)}")
    return lines


def report_file(out: Path) -> Path:
    """Where the reports' sentences are kept."""
    return out.with_name(f"{out.stem}-report.txt")


def show(out: Path, against: Path) -> int:
    """Prints how the two recordings differ; how many lines that were."""
    after, before = (json.loads(path.read_text()) for path in (out, against))
    lines = compare(after, before)
    print("\n".join(lines), end="\n" if lines else "")
    files = (report_file(against), report_file(out))
    theirs, ours = (file.read_text().splitlines() if file.is_file() else [] for file in files)
    for line in difflib.unified_diff(theirs, ours, str(files[0]), str(files[1]), lineterm="", n=1):
        print(line)
    counts = Counter(line.split()[0] for line in lines)
    same = sum(value == before["hashes"].get(name) for name, value in after["hashes"].items())
    print(f"{same} the same; " + ", ".join(f"{counts[kind]} {kind}" for kind in ("differs", "new", "gone", "files")))
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--against", type=Path, metavar="OTHER.json", help="an earlier recording to compare with")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all that the program wrote, to look at what differs")
    parser.add_argument("--fresh", action="store_true", help="an interpreter for every command: slower, nothing shared")
    parser.add_argument("--no-run", action="store_true", help="OUT.json is there already: compare alone")
    arguments = parser.parse_args()
    if arguments.keep and arguments.keep.exists():
        parser.error(f"{arguments.keep} exists already")
    if arguments.against and not arguments.against.is_file():
        parser.error(f"{arguments.against} is not there")
    if not arguments.no_run:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "behaviour"
            folder.mkdir()
            found, sentences = record(folder, arguments.fresh)
            if arguments.keep:
                shutil.copytree(folder, arguments.keep)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        report_file(arguments.out).write_text("".join(f"{line}\n" for line in sentences))
        print(f"{len(found['hashes'])} hashes of {ROOT} in {found['about']['seconds']} s: {arguments.out}")
    if arguments.against and show(arguments.out, arguments.against):
        sys.exit(1)


if __name__ == "__main__":
    main()

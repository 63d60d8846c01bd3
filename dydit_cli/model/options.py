"""What options say about a model and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal

from dydit_cli.errors import DyditError
from dydit_cli.options import Opt

TimestepVariant = Literal["original", "diffusers"]

FlowPath = Literal["linear", "gvp", "vp"]

FlowPrediction = Literal["velocity", "score", "noise"]

FlowWeight = Literal["none", "velocity", "likelihood"]

FlowEnd = Literal[0, 1]  # of t

GuidanceChannels = Literal["3", "all"]

Execution = str  # a name of `EXECUTIONS`

WeightAccess = Literal["views", "copies"]

PlanMemory = Annotated[
    int | None,
    Opt(
        "The most that copies of weights take, and that a cache takes.",
        metavar="GB",
        default="a quarter of what is free; a cache all of it",
        of=float,
        parse=lambda gigabytes: int(gigabytes * 1e9),
    ),
]


@dataclass(frozen=True)
class PaddedOptions:
    """How `padded` execution runs: `capacity` is the share of a batch's tokens for which the MLPs have room at first, None what
    was measured. Raises `DyditError` for one that is no share."""

    capacity: Annotated[
        float | None,
        Opt(
            "Padded execution: MLPs begin with room for this share of the tokens, over 0 and at most 1, and get more where it "
            "does not do; of 1 no step is ever looked at.",
            ("--token-capacity",),
            metavar="SHARE",
            default="as measured on the images before",
        ),
    ] = None
    cuda_graphs: Annotated[
        bool, Opt("Padded execution on a GPU: every step is recorded as a CUDA graph once and launched as one.")
    ] = False
    triton: Annotated[
        bool,
        Opt("Padded execution on a GPU, without --compile: Triton's kernels around the MLP (pip install 'dydit[triton]')."),
    ] = False

    def __post_init__(self) -> None:
        if self.capacity is not None and not 0 < self.capacity <= 1:
            raise DyditError(f"token-capacity {self.capacity:g}; it is a share of the tokens, over 0 and at most 1")

    @property
    def given(self) -> str | None:
        """The first option that says something."""
        given = {"token-capacity": self.capacity is not None, "cuda-graphs": self.cuda_graphs, "triton": self.triton}
        return next((f"--{name}" for name, is_given in given.items() if is_given), None)


@dataclass(frozen=True)
class RunOptions:
    """What a model is run with: as `execution.executor` takes them."""

    compile: bool = False
    plan_memory: int | None = None
    padded: PaddedOptions = PaddedOptions()


@dataclass(frozen=True)
class ExecutionKind:
    """A way to run a dynamic model: its name followed by `help` is a phrase. `make` takes the model and `RunOptions` to the
    executable; it is named here as module and attribute, since this module imports no torch."""

    help: str
    made_by: str

    def make(self, model: Any, run: RunOptions) -> Any:
        module, _, name = self.made_by.partition(":")
        maker: Callable[[Any, RunOptions], Any] = getattr(import_module(module), name).of
        return maker(model, run)


# by name; a new one is an entry here
EXECUTIONS: dict[str, ExecutionKind] = {
    "sparse": ExecutionKind("leaves skipped work out", "dydit_cli.model.execution:SparseModel"),
    "padded": ExecutionKind(
        "too, in shapes that are known before the step, so that nothing waits for a GPU", "dydit_cli.model.padded:PaddedModel"
    ),
    "masked": ExecutionKind("computes everything under masks", "dydit_cli.model.execution:MaskedModel"),
    "complete": ExecutionKind("has everything on", "dydit_cli.model.execution:CompleteModel"),
}

Tome = Annotated[
    float | None,
    Opt(
        "Merge this share of a static model's tokens before every attention (ToMe), at most 0.75.",
        metavar="RATIO",
        default="none",
    ),
]

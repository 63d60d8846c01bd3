"""How `dydit bench` takes its times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, get_args

from dydit_cli.diffusion.options import spaced_timesteps
from dydit_cli.errors import DyditError
from dydit_cli.model.options import PlanMemory, WeightAccess
from dydit_cli.options import DtypeName, Opt, Seed
from dydit_cli.seeds import check_seed


@dataclass(frozen=True)
class BenchSettings:
    """`batch` is what the model sees (guidance's two halves included); `measured` of the `steps` sampling timesteps are
    run, spread evenly, `repeats` times over; `compile` adds the static model under torch.compile and the sparse one with
    its elementwise work fused."""

    batch: Annotated[int, Opt("What the model sees at once, both guidance halves counted.")] = 4
    steps: Annotated[int, Opt("Sampling steps, 1 to 1000.", metavar="N")] = 50
    measured: Annotated[int, Opt("How many of the steps are run.", ("--measure",), metavar="N")] = 10
    repeats: Annotated[int, Opt("How often they are run.")] = 3
    dtype: Annotated[DtypeName, Opt("fp32, bf16 or fp16.")] = "fp32"
    compile: Annotated[bool, Opt("Also time static and sparse with torch.compile.")] = False
    masked: Annotated[bool, Opt("Also time masked execution.")] = True
    access: Annotated[
        WeightAccess | None, Opt("Active weights as views, or as copies.", default="views on cpu, copies on a GPU")
    ] = None
    plan_memory: PlanMemory = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        spaced_timesteps(self.steps)
        for name, value in (("batch", self.batch), ("measured steps", self.measured), ("repeats", self.repeats)):
            if value < 1:
                raise DyditError(f"{name} {value}; it must be 1 or more")
        if self.dtype not in get_args(DtypeName):
            raise DyditError(f"no dtype {self.dtype!r}; choose one of {', '.join(get_args(DtypeName))}")

    @property
    def count(self) -> int:
        """How many timesteps are run."""
        return min(self.measured, self.steps)

    def measured_of(self, every: Sequence[float]) -> list[float]:
        """Of all sampling timesteps those that are run."""
        return [every[round(i * (len(every) - 1) / max(1, self.count - 1))] for i in range(self.count)]

"""Router thresholds shifted until a sampling run has the ratio asked for."""

from __future__ import annotations

import pytest
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import asked_ratio
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DyDiT
from dydit_cli.profiling.calibrate import TOLERANCE, calibrate, sampled_ratio

SETTINGS = SamplerSettings(steps=5)


@pytest.mark.parametrize("target", [0.35, 0.6])
def test_the_ratio_is_reached_by_biases_alone(tiny_dynamic: DyDiT, target: float) -> None:
    before = Checkpoint.of(tiny_dynamic, [])
    after, result = calibrate(before, target, images=8, settings=SETTINGS, device="cpu")
    model = after.build()
    assert isinstance(model, DyDiT)
    assert sampled_ratio(model, 8, SETTINGS, 0) == pytest.approx(result.ratio_after)
    assert abs(result.ratio_after - target) < abs(result.ratio_before - target)
    # a handful of tokens and heads: the ratio moves in steps
    assert abs(result.ratio_after - target) <= TOLERANCE + 0.02
    for name, w in after.weights.items():
        assert torch.equal(w, before.weights[name] + (result.shift if name in tiny_dynamic.router_biases() else 0))
    assert asked_ratio(after.lineage) == target


def test_what_is_right_stays_as_it_is(tiny_dynamic: DyDiT) -> None:
    checkpoint = Checkpoint.of(tiny_dynamic, [])
    ratio = sampled_ratio(tiny_dynamic, 8, SETTINGS, 0)
    same, result = calibrate(checkpoint, ratio, images=8, settings=SETTINGS, device="cpu")
    assert same is checkpoint
    assert result.shift == 0


def test_what_cannot_be_calibrated_is_refused(tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    with pytest.raises(DyditError, match="over 0 and at most 1"):
        calibrate(Checkpoint.of(tiny_dynamic, []), 1.5, device="cpu")
    with pytest.raises(DyditError, match="has no routers to calibrate"):
        calibrate(Checkpoint.of(tiny_static, []), 0.5, device="cpu")

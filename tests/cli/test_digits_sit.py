"""The bundled model of flow matching: what its own samples are taken for, and that it is a SiT wherever it is read."""

from __future__ import annotations

from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.evaluate.classifier import classify_samples


def test_its_samples_are_recognised() -> None:
    checkpoint = read("digits-sit")
    config = checkpoint.config
    assert (config.kind, config.size_name, config.learn_sigma) == ("sit", "SiT-6x96/1", False)
    settings = SamplerSettings(sampler="euler", steps=10)
    assert classify_samples(checkpoint.build(), images=40, settings=settings).class_accuracy >= 0.95

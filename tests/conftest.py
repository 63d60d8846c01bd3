"""Shared fixtures: tiny models, and the reference numbers where they are present."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig

ROOT = Path(__file__).parent.parent
TINY = DiTConfig(input_size=4, patch_size=1, in_channels=1, hidden_size=24, depth=3, num_heads=3, num_classes=10)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers made by other people's code."""
    folder = Path(os.environ.get("DYDIT_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"the reference numbers are not at {folder}; set DYDIT_GOLDEN to their folder")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """How many threads share a product decides its last bits, and accelerate gives each of its processes one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomize(model: DiT, seed: int = 0, scale: float = 0.2) -> DiT:
    """Fills every trainable weight with noise, so that zero-initialised layers take part too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in model.trainable():
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    return model.eval()


def inputs(config: DiTConfig, batch: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.in_channels, config.input_size, config.input_size, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    y = torch.randint(0, config.num_classes + 1, (batch,), generator=generator)
    return x, t, y


@pytest.fixture
def tiny_static() -> DiT:
    return randomize(DiT(TINY))


@pytest.fixture
def tiny_dynamic() -> DyDiT:
    """Random routers: about half of everything is on."""
    model = randomize(DyDiT(DyDiTConfig.from_static(TINY, token_router_reduction=4)))
    assert isinstance(model, DyDiT)
    return model

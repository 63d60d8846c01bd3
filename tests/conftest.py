"""Shared fixtures: tiny models, and the reference numbers where they are present."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from dydit_cli.data import fashion
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.config import FlowConfig, ModelConfig
from dydit_cli.model.families import build_model, with_routers
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.model.families.latte import LatteConfig
from dydit_cli.model.families.lightningdit import LightningDiTConfig
from dydit_cli.model.families.repa import REPAConfig
from dydit_cli.model.families.sit import SiTConfig
from tests.datasets import idx_digests, idx_folder

ROOT = Path(__file__).parent.parent
SIZES: dict[str, Any] = {
    "input_size": 4, "patch_size": 1, "in_channels": 1, "hidden_size": 24, "depth": 3, "num_heads": 3, "num_classes": 10,
}  # fmt: skip
TINY = DiTConfig(**SIZES)
VIDEO = LatteConfig(
    input_size=4, patch_size=2, in_channels=2, hidden_size=24, depth=4, num_heads=3, num_classes=5, num_frames=3
)
# every family, and what its blocks can be made of; a SwiGLU's 64 channels are groups of 22, 21 and 21
FAMILIES: dict[str, DiTConfig] = {
    "dit": TINY,
    "sit": SiTConfig(**SIZES),
    "repa": REPAConfig(**SIZES, qk_norm=True, projector_dims=(5,), projector_width=8),
    "lightningdit": LightningDiTConfig(**SIZES),
    "lightningdit with qk-norm, without shift": LightningDiTConfig(**SIZES, qk_norm=True, shift=False),
    "latte": VIDEO,
    "latte without classes": replace(VIDEO, num_classes=0),
}


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


@pytest.fixture
def small_fashion(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The data set `fashion` is 17 pictures of noise, 12 of them to train on, whether or not its real files are there."""
    folder = idx_folder(tmp_path_factory.mktemp("fashion"), side=28)
    monkeypatch.setattr(fashion, "CONTENTS", idx_digests(folder))
    monkeypatch.setenv("DYDIT_DATA", str(folder))
    fashion.load_fashion_split.cache_clear()
    yield
    fashion.load_fashion_split.cache_clear()


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Files end at `size` bytes, where a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Model = TypeVar("Model", bound=Backbone)


def randomize(model: Model, seed: int = 0, scale: float = 0.2) -> Model:
    """Fills every trainable weight with noise, so that zero-initialised layers take part too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in model.trainable():
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    return model.eval()


def inputs(config: ModelConfig, batch: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *config.sample_shape, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    if isinstance(config, FlowConfig):
        t = t / 1000
    y = torch.randint(0, config.num_classes + 1, (batch,), generator=generator)
    return x, t, y


@pytest.fixture
def tiny_static() -> DiT:
    return randomize(DiT(TINY))


@pytest.fixture
def tiny_dynamic() -> DyDiT:
    """Random routers: about half of everything is on."""
    return randomize(DyDiT(DyDiTConfig.from_static(TINY, token_router_reduction=4)))


@pytest.fixture(params=FAMILIES)
def any_static(request: pytest.FixtureRequest) -> Backbone:
    """As `tiny_static`, of every family."""
    return randomize(build_model(FAMILIES[request.param]))


@pytest.fixture(params=FAMILIES)
def any_dynamic(request: pytest.FixtureRequest) -> DynamicBackbone:
    """As `tiny_dynamic`, of every family."""
    model = randomize(build_model(with_routers(FAMILIES[request.param], token_router_reduction=4)))
    assert isinstance(model, DynamicBackbone)
    return model

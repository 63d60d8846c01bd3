"""Gaussian diffusion: schedule, training objective and samplers. They take a callable and never see a model's class."""

from __future__ import annotations

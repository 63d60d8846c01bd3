"""Registries that fill themselves: what a module of a package registers is there once the module is imported."""

from __future__ import annotations

import importlib
import pkgutil


def import_modules(package: str) -> None:
    """Imports every module of the package of that name."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)

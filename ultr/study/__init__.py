"""Comparing methods over seeds and logs: a study in TOML, results that are made once, one table with its tests.

The names load their modules when first used: the registry of methods is read by commands that need no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultr.study.building import build_model
    from ultr.study.nuisance import NuisanceEstimates
    from ultr.study.reading import parse_study, read_study
    from ultr.study.registry import METHODS, method_spec, methods_table
    from ultr.study.results import collect_results
    from ultr.study.running import run_study
    from ultr.study.settings import JudgedData, LogSpec, Study, StudyMethod
    from ultr.study.specs import MethodSpec
    from ultr.study.tables import results_markdown
    from ultr.study.tower_factory import ModelConfig

_NAMES = {
    "METHODS": "registry",
    "JudgedData": "settings",
    "LogSpec": "settings",
    "MethodSpec": "specs",
    "ModelConfig": "tower_factory",
    "NuisanceEstimates": "nuisance",
    "Study": "settings",
    "StudyMethod": "settings",
    "build_model": "building",
    "collect_results": "results",
    "method_spec": "registry",
    "methods_table": "registry",
    "parse_study": "reading",
    "read_study": "reading",
    "results_markdown": "tables",
    "run_study": "running",
}

__all__ = [
    "METHODS",
    "JudgedData",
    "LogSpec",
    "MethodSpec",
    "ModelConfig",
    "NuisanceEstimates",
    "Study",
    "StudyMethod",
    "build_model",
    "collect_results",
    "method_spec",
    "methods_table",
    "parse_study",
    "read_study",
    "results_markdown",
    "run_study",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"ultr.study.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'ultr.study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

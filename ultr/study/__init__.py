"""Comparing methods over seeds and logs: a study in TOML, results that are made once, one table with its tests.

The names load their modules when first used: the registry of methods is read by commands that need no JAX.
"""

from typing import TYPE_CHECKING

from ultr.lazy import lazy_exports

if TYPE_CHECKING:
    from ultr.study.building import build_model as build_model
    from ultr.study.nuisance import NuisanceEstimates as NuisanceEstimates
    from ultr.study.reading import parse_study as parse_study
    from ultr.study.reading import read_study as read_study
    from ultr.study.registry import METHODS as METHODS
    from ultr.study.registry import method_spec as method_spec
    from ultr.study.registry import methods_table as methods_table
    from ultr.study.results import collect_results as collect_results
    from ultr.study.running import run_study as run_study
    from ultr.study.settings import JudgedData as JudgedData
    from ultr.study.settings import LogSpec as LogSpec
    from ultr.study.settings import Study as Study
    from ultr.study.settings import StudyMethod as StudyMethod
    from ultr.study.specs import MethodSpec as MethodSpec
    from ultr.study.tables import results_markdown as results_markdown
    from ultr.study.tower_factory import ModelConfig as ModelConfig

_EXPORTS = {
    "building": ("build_model",),
    "nuisance": ("NuisanceEstimates",),
    "reading": ("parse_study", "read_study"),
    "registry": ("METHODS", "method_spec", "methods_table"),
    "results": ("collect_results",),
    "running": ("run_study",),
    "settings": ("JudgedData", "LogSpec", "Study", "StudyMethod"),
    "specs": ("MethodSpec",),
    "tables": ("results_markdown",),
    "tower_factory": ("ModelConfig",),
}
__all__ = [name for names in _EXPORTS.values() for name in names]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)

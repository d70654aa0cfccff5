"""`ultr`: unbiased learning to rank from click logs.

The public names load their modules when first used, so that `import ultr` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultr import (
        baselines,
        data,
        evaluation,
        identifiability,
        ingest,
        models,
        plots,
        propensity,
        simulate,
        study,
        towers,
        training,
    )
    from ultr.data import ClickLog, Collection, Counts, Dataset, InMemory, as_dataset, collapse, open_data
    from ultr.errors import CheckpointError, ConfigError, DataError, UltrError
    from ultr.evaluation import Estimate, evaluate
    from ultr.ingest import prepare
    from ultr.models import ClickModel
    from ultr.sessions import Sessions
    from ultr.training import Fitted, fit, load, save, solve

__version__ = "0.1.0"

_MODULES = (
    "baselines",
    "data",
    "evaluation",
    "identifiability",
    "ingest",
    "models",
    "plots",
    "propensity",
    "simulate",
    "study",
    "towers",
    "training",
)
_NAMES = {
    "CheckpointError": "ultr.errors",
    "ClickLog": "ultr.data",
    "ClickModel": "ultr.models",
    "Collection": "ultr.data",
    "ConfigError": "ultr.errors",
    "Counts": "ultr.data",
    "Dataset": "ultr.data",
    "DataError": "ultr.errors",
    "Estimate": "ultr.evaluation",
    "Fitted": "ultr.training",
    "InMemory": "ultr.data",
    "Sessions": "ultr.sessions",
    "UltrError": "ultr.errors",
    "as_dataset": "ultr.data",
    "collapse": "ultr.data",
    "evaluate": "ultr.evaluation",
    "fit": "ultr.training",
    "load": "ultr.training",
    "open_data": "ultr.data",
    "prepare": "ultr.ingest",
    "save": "ultr.training",
    "solve": "ultr.training",
}

__all__ = [
    "CheckpointError",
    "ClickLog",
    "ClickModel",
    "Collection",
    "ConfigError",
    "Counts",
    "DataError",
    "Dataset",
    "Estimate",
    "Fitted",
    "InMemory",
    "Sessions",
    "UltrError",
    "as_dataset",
    "baselines",
    "collapse",
    "data",
    "evaluate",
    "evaluation",
    "fit",
    "identifiability",
    "ingest",
    "load",
    "models",
    "open_data",
    "plots",
    "prepare",
    "propensity",
    "save",
    "simulate",
    "solve",
    "study",
    "towers",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ultr.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'ultr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

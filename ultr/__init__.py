"""`ultr`: unbiased learning to rank from click logs.

The public names load their modules when first used, so that `import ultr` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultr import (
        baselines,
        compare,
        evaluation,
        identifiability,
        logs,
        models,
        propensity,
        simulate,
        towers,
        training,
    )
    from ultr.errors import CheckpointError, ConfigError, DataError, UltrError
    from ultr.evaluation import Estimate, evaluate
    from ultr.logs import ClickLog, Collection, Counts, collapse, open_data
    from ultr.logs.prepare import prepare
    from ultr.models import ClickModel
    from ultr.sessions import InMemory, Sessions
    from ultr.training import Fitted, fit, load, save
    from ultr.training.solve import solve

__version__ = "0.1.0"

_MODULES = (
    "baselines",
    "compare",
    "evaluation",
    "identifiability",
    "logs",
    "models",
    "propensity",
    "simulate",
    "towers",
    "training",
)
_NAMES = {
    "CheckpointError": "ultr.errors",
    "ClickLog": "ultr.logs",
    "ClickModel": "ultr.models",
    "Collection": "ultr.logs",
    "ConfigError": "ultr.errors",
    "Counts": "ultr.logs",
    "DataError": "ultr.errors",
    "Estimate": "ultr.evaluation",
    "Fitted": "ultr.training",
    "InMemory": "ultr.sessions",
    "Sessions": "ultr.sessions",
    "UltrError": "ultr.errors",
    "collapse": "ultr.logs",
    "evaluate": "ultr.evaluation",
    "fit": "ultr.training",
    "load": "ultr.training",
    "open_data": "ultr.logs",
    "prepare": "ultr.logs.prepare",
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
    "Estimate",
    "Fitted",
    "InMemory",
    "Sessions",
    "UltrError",
    "baselines",
    "collapse",
    "compare",
    "evaluate",
    "evaluation",
    "fit",
    "identifiability",
    "load",
    "logs",
    "models",
    "open_data",
    "prepare",
    "propensity",
    "save",
    "simulate",
    "solve",
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

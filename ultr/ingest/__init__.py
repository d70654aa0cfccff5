"""Raw click logs and graded lists of many formats, prepared as folders that can be trained on.

`prepare` is loaded when first used: the command line asks this package for its formats without loading the engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultr.ingest.preparing import prepare

__all__ = ["prepare"]


def __getattr__(name: str) -> Any:
    if name == "prepare":
        return importlib.import_module("ultr.ingest.preparing").prepare
    raise AttributeError(f"module 'ultr.ingest' has no attribute {name!r}")

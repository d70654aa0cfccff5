"""Raw click logs and graded lists of many formats, prepared as folders that can be trained on.

`prepare` is loaded when first used: the command line asks this package for its formats without loading the engine.
"""

from typing import TYPE_CHECKING

from ultr.lazy import lazy_exports

if TYPE_CHECKING:
    from ultr.ingest.preparing import prepare as prepare

_EXPORTS = {"preparing": ("prepare",)}
__all__ = [name for names in _EXPORTS.values() for name in names]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)

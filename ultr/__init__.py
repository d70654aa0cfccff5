"""`ultr`: unbiased learning to rank from click logs.

The public names load their modules when first used, so that `import ultr` is quick.
"""

from typing import TYPE_CHECKING

from ultr.lazy import lazy_exports

if TYPE_CHECKING:
    from ultr import baselines as baselines
    from ultr import data as data
    from ultr import evaluation as evaluation
    from ultr import identifiability as identifiability
    from ultr import ingest as ingest
    from ultr import models as models
    from ultr import plots as plots
    from ultr import propensity as propensity
    from ultr import simulate as simulate
    from ultr import study as study
    from ultr import towers as towers
    from ultr import training as training
    from ultr.data import ClickLog as ClickLog
    from ultr.data import Collection as Collection
    from ultr.data import Counts as Counts
    from ultr.data import Dataset as Dataset
    from ultr.data import InMemory as InMemory
    from ultr.data import as_dataset as as_dataset
    from ultr.data import collapse as collapse
    from ultr.data import open_data as open_data
    from ultr.errors import CheckpointError as CheckpointError
    from ultr.errors import ConfigError as ConfigError
    from ultr.errors import DataError as DataError
    from ultr.errors import UltrError as UltrError
    from ultr.evaluation import Estimate as Estimate
    from ultr.evaluation import evaluate as evaluate
    from ultr.ingest import prepare as prepare
    from ultr.models import ClickModel as ClickModel
    from ultr.sessions import Sessions as Sessions
    from ultr.training import Fitted as Fitted
    from ultr.training import fit as fit
    from ultr.training import load as load
    from ultr.training import save as save
    from ultr.training import solve as solve

__version__ = "0.1.0"

_PACKAGES = (
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
_EXPORTS = {
    "data": ("ClickLog", "Collection", "Counts", "Dataset", "InMemory", "as_dataset", "collapse", "open_data"),
    "errors": ("CheckpointError", "ConfigError", "DataError", "UltrError"),
    "evaluation": ("Estimate", "evaluate"),
    "ingest": ("prepare",),
    "models": ("ClickModel",),
    "sessions": ("Sessions",),
    "training": ("Fitted", "fit", "load", "save", "solve"),
}
__all__ = [*_PACKAGES, *(name for names in _EXPORTS.values() for name in names)]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS, packages=_PACKAGES)

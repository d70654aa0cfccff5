"""Every method of a comparison: those of `ultr.study.registry.MODELS`, and those that `fit` does not train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ultr.study.registry import MODELS

TRAINING = (
    "relevance", "hidden", "transform", "rows", "epochs", "patience", "batch_size", "learning_rate", "table_rate", "l2",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """What `ultr compare` has to know of a method before it runs.

    Attributes:
      how: "fit" (a model of the registry, or full information), "boost" (trees of a peer) or "given" (not trained).
      learns: from "clicks", from "labels" (the grades of the train lists) or from "nothing".
      weighs: whether it is given propensities or trust.
      options: of its own, with their defaults.
    """

    how: Literal["fit", "boost", "given"]
    learns: Literal["clicks", "labels", "nothing"]
    weighs: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def takes(self, setting: str) -> bool:
        """Whether a setting of `ultr.study.spec.Method` says something to it."""
        if setting == "propensity":
            return self.weighs
        return setting not in TRAINING or self.how == "fit"


# Of boosted trees: how many at most, of which the validation clicks choose; `most_rows`: documents of sessions that are
# kept in memory, drawn by the seed from longer logs.
BOOSTER = {"rounds": 300, "learning_rate": 0.1, "leaves": 31, "least_in_leaf": 20, "most_rows": 2_000_000, "threads": 1}

KINDS: dict[str, Kind] = {
    name: Kind("fit", "clicks", bool({"propensity", "affine"} & set(recipe.needs)), recipe.options)
    for name, recipe in MODELS.items()
} | {
    "full-information": Kind("fit", "labels"),
    "logger": Kind("given", "nothing"),
    "random": Kind("given", "nothing"),
    "lightgbm": Kind("boost", "clicks", options=BOOSTER),
    "lightgbm-position": Kind("boost", "clicks", options=BOOSTER | {"position_regularisation": 0.0}),
    "lightgbm-labels": Kind("boost", "labels", options=BOOSTER),
    "xgboost": Kind("boost", "clicks", options=BOOSTER),
    "xgboost-unbiased": Kind("boost", "clicks", options=BOOSTER | {"bias_norm": 2.0}),
    "xgboost-labels": Kind("boost", "labels", options=BOOSTER),
}

# Those that a mixture may be made of.
CLICK_MODELS = tuple(name for name, recipe in MODELS.items() if recipe.mixes)


def kind_of(model: str) -> Kind:
    """Of a name in `KINDS`, or of a mixture, which has no options and weighs where one of its parts does."""
    if model in KINDS:
        return KINDS[model]
    return Kind("fit", "clicks", any(KINDS[part].weighs for part in model.split("+")))

"""The ground truth of a simulated user, as JSON values for the metadata of the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from ultr import models
from ultr.models import ClickModel
from ultr.sessions import Sessions
from ultr.simulate.examination_curves import BiasExponent, ClickGapCurve, Context, RankCurve
from ultr.simulate.wrapped_users import BottomUpUser, NoisyUser
from ultr.towers import Constant, RankTable

# Class of the model -> the name and the tower of what depends on the rank alone; that of UBM depends on the last click
# too.
_CURVES: dict[type, tuple[str, Callable[[Any], Any]]] = {
    models.PBM: ("examination", lambda model: model.examination),
    models.TrustPBM: ("examination", lambda model: model.examination),
    models.AdditivePBM: ("examination_logit", lambda model: model.examination),
    models.DCM: ("continuation", lambda model: model.continuation),
    models.DBN: ("continuation", lambda model: model.continuation),
    models.CCM: ("after_skip", lambda model: model.after_skip),
    models.RCTR: ("click", lambda model: model.tower),
}


def bias_exponents(model: nnx.Module) -> list[BiasExponent]:
    """Returns the different exponents of the towers of a model."""
    found = (module.bias for _, module in nnx.iter_modules(model) if isinstance(module, RankCurve | ClickGapCurve))
    return list(dict.fromkeys(found))


def user_class(model: ClickModel) -> str:
    """Returns the name of the class of a model, without noise and direction of reading around it."""
    while isinstance(model, NoisyUser | BottomUpUser):
        model = model.model
    return type(model).__name__


def describe_user(model: ClickModel, contexts: Sequence[Context], ranks: int) -> dict[str, Any]:
    """Describes a user by the values of its towers.

    Args:
      model: the user.
      contexts: those of the log.
      ranks: number of ranks shown.

    Returns:
      `examination` (or `continuation`, `after_skip`; `examination_logit` of an additive user; `click` of RCTR): [ranks]
        probabilities, in the first value of every context and at the start of the log.
      `contexts`: name -> value -> its `share`, and its curve, other contexts at their first values.
      `drift`: `eta` at the `start` and the `end` of the log, and the curves there.
      `trust`: `alpha` and `beta` [ranks] of P(click) = alpha relevance + beta; and where there is an examination by
        rank, from which they follow, e+ and e- as `relevant` and `irrelevant` (trust-affine has no such examination).
      `noise`: `flip` and `random_clicks`.
      `components`: of a mixture, each with its `share`; `bottom_up`: true where reading goes upwards.
    """
    if isinstance(model, NoisyUser):
        noise = {"flip": model.flip, "random_clicks": model.random_clicks}
        return describe_user(model.model, contexts, ranks) | {"noise": noise}
    if isinstance(model, BottomUpUser):
        return describe_user(model.model, contexts, ranks) | {"bottom_up": True}
    out: dict[str, Any] = {}
    if isinstance(model, models.Mixture):
        prior = model.prior_logits
        shares: Sequence[float | None] = [None] * len(model.components)
        if isinstance(prior, nnx.Variable):
            shares = _softmax(np.asarray(prior[...]))
        parts = zip(model.components, shares, strict=True)
        out["components"] = [{"user": user_class(m), "share": s} | describe_user(m, contexts, ranks) for m, s in parts]
        return out | _curves(model, contexts, ranks)
    out |= _curves(model, contexts, ranks)
    if isinstance(model, models.TrustPBM):
        tables, seen = (model.trust_relevant, model.trust_irrelevant), out.get("examination")
        by_rank = seen is not None
        if isinstance(model.examination, Constant):
            seen = 1 / (1 + np.exp(-np.asarray(model.examination.value[...], np.float64)))
        if seen is not None and all(isinstance(t, RankTable) for t in tables):
            yes, no = (np.asarray(_values(t, [], ranks, 0.0, False)) for t in tables if isinstance(t, RankTable))
            seen = np.asarray(seen)
            out["trust"] = {"relevant": yes.tolist(), "irrelevant": no.tolist()} if by_rank else {}
            out["trust"] |= {"alpha": (seen * (yes - no)).tolist(), "beta": (seen * no).tolist()}
    return out


def _curves(model: ClickModel, contexts: Sequence[Context], ranks: int) -> dict[str, Any]:
    """Describes what depends on the rank: by default, in every context, and at the ends of a drift."""
    name, find = _CURVES.get(type(model), ("", lambda model: None))
    tower = find(model)

    def at(values: Sequence[int], time: float = 0.0) -> dict[str, Any]:
        if not isinstance(tower, RankTable | RankCurve):
            return {}
        chosen = list(zip(contexts, values, strict=True))
        return {name: _values(tower, chosen, ranks, time, isinstance(model, models.AdditivePBM))}

    first = [1] * len(contexts)
    out = at(first)
    if contexts:
        out["contexts"] = {
            c.name: {
                value: {"share": float(c.chances[j]), "factor": c.factors[j]}
                | at([j + 1 if i == number else 1 for i in range(len(contexts))])
                for j, value in enumerate(c.values)
            }
            for number, c in enumerate(contexts)
        }
    moving = [bias for bias in bias_exponents(model) if bias.drift is not None]
    if moving:
        out["drift"] = {
            "start": {"eta": moving[0].eta} | at(first, 0.0),
            "end": {"eta": moving[0].drift} | at(first, 1.0),
        }
    return out


def _softmax(logits: np.ndarray) -> list[float]:
    p = np.exp(logits - logits.max())
    shares: list[float] = (p / p.sum()).tolist()
    return shares


def _values(
    tower: RankTable | RankCurve, chosen: Sequence[tuple[Context, int]], ranks: int, time: float, additive: bool
) -> list[float]:
    """Returns the probabilities [ranks] of a tower, or its logits, in the given contexts and at the given time."""
    if isinstance(tower, RankTable):
        table = np.asarray(tower.table[...], np.float64)
        logit = (table - table[0] if tower.pin_first else table)[:ranks]
    else:
        size = min(ranks, len(tower.base))
        features = {c.name: np.full((1, size), value, np.int32) for c, value in chosen}
        lists = Sessions(
            mask=np.ones((1, size), bool),
            position=np.arange(size, dtype=np.int32)[None, :],
            features=features | {"time": np.full((1, size), time, np.float32)},
        )
        logit = np.asarray(tower(lists)[0], np.float64)
    values: list[float] = (logit if additive else 1 / (1 + np.exp(-logit))).tolist()
    return values

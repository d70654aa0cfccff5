"""Simulated users: click models with the constants of the literature, whose relevance reads the grades."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ultr import models
from ultr.errors import ConfigError
from ultr.models import ClickModel
from ultr.simulate.curves import Bias, Context, Curve, GapCurve, Product
from ultr.simulate.curves import examination as examination_by_rank
from ultr.simulate.processes import BottomUp, Noisy
from ultr.towers import Constant, GradeTable, LastClickTable, RankTable, logits_of

BOTTOM_UP = "-bottom-up"
AFFINE_ALPHA = (0.35, 0.53, 0.55, 0.54, 0.52)
AFFINE_BETA = (0.65, 0.26, 0.15, 0.11, 0.08)
_MIXTURE = ("dbn", "dbn" + BOTTOM_UP), (0.7, 0.3)


@dataclasses.dataclass(frozen=True)
class _Spec:
    """What every user is built from.

    Attributes:
      grades: the highest grade.
      base: [ranks] examination for eta = 1.
      bias: the exponent.
    """

    grades: int
    base: np.ndarray
    bias: Bias

    @property
    def ranks(self) -> int:
        return len(self.base)

    def by_rank(self, base: np.ndarray | None = None, *, scale: float = 1.0) -> Any:
        """Tower of scale base_k^eta."""
        base = self.base if base is None else base
        if self.bias.constant:
            return RankTable(self.ranks, initial=logits_of(scale * base**self.bias.eta))
        curve = Curve(base, bias=self.bias)
        return curve if scale == 1 else Product(curve, Constant(float(logits_of(scale))))

    def constant(self, p: float) -> Any:
        """Tower of p^eta at every rank."""
        if self.bias.constant:
            return Constant(float(logits_of(p**self.bias.eta)))
        return Curve(np.full(self.ranks, p), bias=self.bias)

    def relevance(self) -> GradeTable:
        """.1 + .9 (2^y - 1) / (2^grades - 1)."""
        gain = (2.0 ** np.arange(self.grades + 1) - 1) / (2.0**self.grades - 1)
        return GradeTable.from_probabilities(0.1 + 0.9 * gain)

    def share_of_grade(self, most: float) -> GradeTable:
        """most y / grades."""
        return GradeTable.from_probabilities(most * np.arange(self.grades + 1) / self.grades)


def _trust(spec: _Spec) -> ClickModel:
    k = np.arange(1, spec.ranks + 1)
    gain = (2.0 ** np.arange(spec.grades + 1) - 1) / (2.0**spec.grades - 1)
    return models.TrustPBM(
        relevance=GradeTable.from_probabilities(gain),
        examination=spec.by_rank(),
        trust_relevant=RankTable(spec.ranks, initial=logits_of(np.maximum(1 - (k + 1) / 100, 0.01))),
        trust_irrelevant=RankTable(spec.ranks, initial=logits_of(0.65 / k)),
    )


def _affine(spec: _Spec) -> ClickModel:
    if spec.ranks > len(AFFINE_ALPHA):
        raise ConfigError(
            f"the constants of 'trust-affine' are of the first {len(AFFINE_ALPHA)} ranks, found {spec.ranks}: cut the "
            f"lists there (ranks={len(AFFINE_ALPHA)}, --ranks {len(AFFINE_ALPHA)}), or use 'trust'"
        )
    alpha, beta = np.asarray(AFFINE_ALPHA[: spec.ranks]), np.asarray(AFFINE_BETA[: spec.ranks])
    gain = (2.0 ** np.arange(spec.grades + 1) - 1) / (2.0**spec.grades - 1)
    return models.TrustPBM(
        relevance=GradeTable.from_probabilities(gain),
        examination=Constant(float(logits_of(1.0))),
        trust_relevant=RankTable(spec.ranks, initial=logits_of(np.minimum(alpha + beta, 1.0))),
        trust_irrelevant=RankTable(spec.ranks, initial=logits_of(beta)),
    )


def _additive(spec: _Spec) -> ClickModel:
    bias: Any = Curve(spec.base, bias=spec.bias, additive=True)
    if spec.bias.constant:
        bias = RankTable(spec.ranks, initial=spec.bias.eta * np.log(spec.base))
    relevance = GradeTable([y - 2.0 for y in range(spec.grades + 1)])
    return models.AdditivePBM(relevance=relevance, examination=bias)


def _ubm(spec: _Spec) -> ClickModel:
    if not spec.bias.constant:
        return models.UBM(relevance=spec.relevance(), examination=GapCurve(spec.base, bias=spec.bias))
    rank, last = np.arange(1, spec.ranks + 1)[:, None], np.arange(spec.ranks + 1)[None, :]
    table = LastClickTable(spec.ranks)
    p = spec.base[np.maximum(rank - last, 1) - 1] ** spec.bias.eta
    table.table[...] = jnp.asarray(logits_of(p), "float32")
    return models.UBM(relevance=spec.relevance(), examination=table)


def _sdbn(spec: _Spec) -> ClickModel:
    return models.SDBN(relevance=spec.share_of_grade(1.0), satisfaction=spec.share_of_grade(0.5))


def _dbn(spec: _Spec) -> ClickModel:
    return models.DBN(
        relevance=spec.share_of_grade(1.0),
        satisfaction=spec.share_of_grade(0.5),
        continuation=spec.constant(0.8),
    )


def _ccm(spec: _Spec) -> ClickModel:
    return models.CCM(
        relevance=spec.relevance(),
        after_skip=spec.constant(0.9),
        after_irrelevant_click=spec.constant(0.7),
        after_relevant_click=spec.constant(0.3),
    )


USERS: dict[str, Callable[[_Spec], ClickModel]] = {
    "gctr": lambda spec: models.GCTR(Constant(float(logits_of(0.1)))),
    "rctr": lambda spec: models.RCTR(spec.by_rank(scale=0.5)),
    "dctr": lambda spec: models.DCTR(spec.relevance()),
    "rdctr": lambda spec: models.RDCTR(Product(spec.by_rank(), spec.relevance())),
    "pbm": lambda spec: models.PBM(relevance=spec.relevance(), examination=spec.by_rank()),
    "trust": _trust,
    "trust-affine": _affine,
    "additive": _additive,
    "ubm": _ubm,
    "cascade": lambda spec: models.CascadeModel(relevance=spec.relevance()),
    "dcm": lambda spec: models.DCM(relevance=spec.relevance(), continuation=spec.by_rank()),
    "sdbn": _sdbn,
    "dbn": _dbn,
    "ccm": _ccm,
    "mixture": lambda spec: _mixed(*_MIXTURE, spec),
}
UNBENT = ("gctr", "dctr", "cascade", "sdbn", "trust-affine")  # in which nothing depends on eta


def user(
    name: str,
    *,
    grades: int,
    ranks: int = 10,
    eta: float = 1.0,
    examination: str = "inverse",
    shares: Sequence[float] | None = None,
    contexts: Sequence[Context] = (),
    drift: float | None = None,
    flip: float = 0.0,
    random_clicks: float = 0.0,
) -> ClickModel:
    """A simulated user with the constants of the literature.

    A document of grade y attracts with probability .1 + .9 (2^y - 1)/(2^grades - 1), and rank k is examined with
    probability 1/k^eta, or by the table of Joachims 2005 to the power eta. In particular
      `gctr` clicks everything with .1; `rctr` rank k with half of its examination; `dctr` what attracts; `rdctr` with
        the product of the two, as `pbm` does.
      `trust`: relevant with (2^y - 1)/(2^grades - 1), e+ = 1 - (k+1)/100, e- = .65/k (Agarwal 2019).
      `trust-affine`: alpha_k times the same relevance plus beta_k, at the first five ranks (Vardasbi 2020).
      `additive`: logit eta ln(examination_k) + (y - 2) (Yan 2022).
      `ubm`: the examination of the distance to the last click above. `dcm`: that of the rank is the chance to go on
        after a click.
      `sdbn`, `dbn`: attracts with y/grades, satisfies with half of that; `dbn` goes on with .8^eta.
      `ccm`: goes on with .9^eta after a skip, .7^eta and .3^eta after a click on what is not and what is relevant.
      `mixture`: 70 % of the users are `dbn`, 30 % read from the last rank upwards (Deffayet 2023).
    Any name with `-bottom-up` behind it reads from the last shown rank upwards; names joined by `+`, such as
    `pbm+dbn`, are a mixture of users.

    Args:
      name: one of `USERS`, one of them with `-bottom-up`, or several joined by `+`.
      grades: the highest grade of the collection.
      ranks: length of the lists.
      eta: how fast examination falls.
      examination: `inverse` (1/k) or `joachims` (.68 .61 .48 .34 .28 .20 .11 .10 .08 .06).
      shares: how many of the users are of each kind, where names are joined; None: equally many.
      contexts: what changes eta from session to session; `clicks` draws it and writes it to the log.
      drift: eta at the end of the log; it moves there from `eta` in a straight line. None: it stays.
      flip: probability that what the log says of a document is the opposite of what the user did.
      random_clicks: probability of a click, by accident, on a document that the user does not click.

    Raises:
      ConfigError: an unknown name or examination, a number out of range, more ranks than a table has, or
        contexts or a drift for a user whom eta does not change.
    """
    if grades < 1 or ranks < 1:
        raise ConfigError(f"expected a highest grade and a number of ranks of at least 1, found {grades} and {ranks}")
    names = name.split("+")
    for one in names:
        if one.removesuffix(BOTTOM_UP) not in USERS or one == "mixture" + BOTTOM_UP:
            known = f"{', '.join(USERS)}, each also with '{BOTTOM_UP}', and several joined by '+'"
            raise ConfigError(f"unknown user model '{one}'; known: {known}")
    bias = Bias(eta, drift, tuple(contexts))
    fixed = [one for one in names if one.removesuffix(BOTTOM_UP) in UNBENT]
    if not bias.constant and len(fixed) == len(names):
        raise ConfigError(f"the user '{name}' does not depend on eta: contexts and drift would change nothing")
    spec = _Spec(grades, examination_by_rank(examination, ranks), bias)
    model = _mixed(names, shares, spec) if len(names) > 1 or shares is not None else _one(name, spec)
    return Noisy(model, flip=flip, random_clicks=random_clicks) if flip or random_clicks else model


def _one(name: str, spec: _Spec) -> ClickModel:
    model = USERS[name.removesuffix(BOTTOM_UP)](spec)
    return BottomUp(model) if name.endswith(BOTTOM_UP) else model


def _mixed(names: Sequence[str], shares: Sequence[float] | None, spec: _Spec) -> ClickModel:
    share = np.ones(len(names)) if shares is None else np.asarray(shares, np.float64)
    if len(share) != len(names) or not ((share > 0) & np.isfinite(share)).all():
        raise ConfigError(f"expected one share above 0 for each of {len(names)} users, found {shares}")
    prior = jnp.asarray(np.log(share / share.sum()), jnp.float32)
    return models.Mixture(components=[_one(name, spec) for name in names], prior_logits=prior)

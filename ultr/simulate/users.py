"""Simulated users: click models with the constants of the literature, whose relevance reads the grades."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ultr import models
from ultr.arguments import check_count
from ultr.errors import ConfigError
from ultr.models import ClickModel
from ultr.simulate.examination_curves import BiasExponent, ClickGapCurve, Context, ProductTower, RankCurve
from ultr.simulate.examination_curves import examination as examination_by_rank
from ultr.simulate.wrapped_users import BottomUpUser, NoisyUser
from ultr.text import did_you_mean
from ultr.towers import Constant, GradeTable, LastClickTable, RankTable, logits_of

BOTTOM_UP = "-bottom-up"
AFFINE_ALPHA = (0.35, 0.53, 0.55, 0.54, 0.52)
AFFINE_BETA = (0.65, 0.26, 0.15, 0.11, 0.08)
_MIXTURE = ("dbn", "dbn" + BOTTOM_UP), (0.7, 0.3)


@dataclasses.dataclass(frozen=True)
class _UserSettings:
    """What every user is built from, and the towers made from it.

    Attributes:
      grades: the highest grade.
      base: [ranks] examination for eta = 1.
      bias: the exponent of the position bias.
    """

    grades: int
    base: np.ndarray
    bias: BiasExponent

    @property
    def ranks(self) -> int:
        return len(self.base)

    def by_rank(self, base: np.ndarray | None = None, *, scale: float = 1.0) -> Any:
        """Makes a tower of the probability scale base_k^eta at rank k."""
        base = self.base if base is None else base
        if self.bias.constant:
            return RankTable(self.ranks, initial=logits_of(scale * base**self.bias.eta))
        curve = RankCurve(base, bias=self.bias)
        return curve if scale == 1 else ProductTower(curve, Constant(float(logits_of(scale))))

    def constant(self, p: float) -> Any:
        """Makes a tower of the probability p^eta at every rank."""
        if self.bias.constant:
            return Constant(float(logits_of(p**self.bias.eta)))
        return RankCurve(np.full(self.ranks, p), bias=self.bias)

    def relevance(self) -> GradeTable:
        """Makes a tower of the probability .1 + .9 (2^y - 1) / (2^grades - 1) for grade y."""
        gain = (2.0 ** np.arange(self.grades + 1) - 1) / (2.0**self.grades - 1)
        return GradeTable.from_probabilities(0.1 + 0.9 * gain)

    def share_of_grade(self, most: float) -> GradeTable:
        """Makes a tower of the probability most y / grades for grade y."""
        return GradeTable.from_probabilities(most * np.arange(self.grades + 1) / self.grades)


def _trust(settings: _UserSettings) -> ClickModel:
    k = np.arange(1, settings.ranks + 1)
    gain = (2.0 ** np.arange(settings.grades + 1) - 1) / (2.0**settings.grades - 1)
    return models.TrustPBM(
        relevance=GradeTable.from_probabilities(gain),
        examination=settings.by_rank(),
        trust_relevant=RankTable(settings.ranks, initial=logits_of(np.maximum(1 - (k + 1) / 100, 0.01))),
        trust_irrelevant=RankTable(settings.ranks, initial=logits_of(0.65 / k)),
    )


def _affine(settings: _UserSettings) -> ClickModel:
    if settings.ranks > len(AFFINE_ALPHA):
        raise ConfigError(
            f"'trust-affine' has constants for the first {len(AFFINE_ALPHA)} ranks, found {settings.ranks}: cut the "
            f"lists there (ranks={len(AFFINE_ALPHA)}, --ranks {len(AFFINE_ALPHA)}), or use 'trust'"
        )
    alpha, beta = np.asarray(AFFINE_ALPHA[: settings.ranks]), np.asarray(AFFINE_BETA[: settings.ranks])
    gain = (2.0 ** np.arange(settings.grades + 1) - 1) / (2.0**settings.grades - 1)
    return models.TrustPBM(
        relevance=GradeTable.from_probabilities(gain),
        examination=Constant(float(logits_of(1.0))),
        trust_relevant=RankTable(settings.ranks, initial=logits_of(np.minimum(alpha + beta, 1.0))),
        trust_irrelevant=RankTable(settings.ranks, initial=logits_of(beta)),
    )


def _additive(settings: _UserSettings) -> ClickModel:
    bias: Any = RankCurve(settings.base, bias=settings.bias, additive=True)
    if settings.bias.constant:
        bias = RankTable(settings.ranks, initial=settings.bias.eta * np.log(settings.base))
    relevance = GradeTable([y - 2.0 for y in range(settings.grades + 1)])
    return models.AdditivePBM(relevance=relevance, examination=bias)


def _ubm(settings: _UserSettings) -> ClickModel:
    if not settings.bias.constant:
        return models.UBM(relevance=settings.relevance(), examination=ClickGapCurve(settings.base, bias=settings.bias))
    rank, last = np.arange(1, settings.ranks + 1)[:, None], np.arange(settings.ranks + 1)[None, :]
    table = LastClickTable(settings.ranks)
    p = settings.base[np.maximum(rank - last, 1) - 1] ** settings.bias.eta
    table.table[...] = jnp.asarray(logits_of(p), "float32")
    return models.UBM(relevance=settings.relevance(), examination=table)


def _sdbn(settings: _UserSettings) -> ClickModel:
    return models.SDBN(relevance=settings.share_of_grade(1.0), satisfaction=settings.share_of_grade(0.5))


def _dbn(settings: _UserSettings) -> ClickModel:
    return models.DBN(
        relevance=settings.share_of_grade(1.0),
        satisfaction=settings.share_of_grade(0.5),
        continuation=settings.constant(0.8),
    )


def _ccm(settings: _UserSettings) -> ClickModel:
    return models.CCM(
        relevance=settings.relevance(),
        after_skip=settings.constant(0.9),
        after_irrelevant_click=settings.constant(0.7),
        after_relevant_click=settings.constant(0.3),
    )


USERS: dict[str, Callable[[_UserSettings], ClickModel]] = {
    "gctr": lambda settings: models.GCTR(Constant(float(logits_of(0.1)))),
    "rctr": lambda settings: models.RCTR(settings.by_rank(scale=0.5)),
    "dctr": lambda settings: models.DCTR(settings.relevance()),
    "rdctr": lambda settings: models.RDCTR(ProductTower(settings.by_rank(), settings.relevance())),
    "pbm": lambda settings: models.PBM(relevance=settings.relevance(), examination=settings.by_rank()),
    "trust": _trust,
    "trust-affine": _affine,
    "additive": _additive,
    "ubm": _ubm,
    "cascade": lambda settings: models.CascadeModel(relevance=settings.relevance()),
    "dcm": lambda settings: models.DCM(relevance=settings.relevance(), continuation=settings.by_rank()),
    "sdbn": _sdbn,
    "dbn": _dbn,
    "ccm": _ccm,
    "mixture": lambda settings: _mixed(*_MIXTURE, settings),
}
INDEPENDENT_OF_ETA = ("gctr", "dctr", "cascade", "sdbn", "trust-affine")
# Users whose examination is no curve over ranks.
WITHOUT_CURVE = (*INDEPENDENT_OF_ETA, "dbn", "ccm", "mixture")


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
    """Makes a simulated user with the constants of the literature.

    A document of grade y attracts with probability .1 + .9 (2^y - 1)/(2^grades - 1), and rank k is examined with
    probability 1/k^eta, or by the table of Joachims 2005 to the power eta. In particular
      `gctr`: clicks everything with probability .1; `rctr`: rank k with half of its examination; `dctr`: documents with
        their attraction; `rdctr` and `pbm`: with examination times attraction.
      `trust`: relevant with (2^y - 1)/(2^grades - 1), e+ = 1 - (k+1)/100, e- = .65/k (Agarwal 2019).
      `trust-affine`: alpha_k times the same relevance plus beta_k, at the first five ranks (Vardasbi 2020).
      `additive`: logit eta ln(examination_k) + (y - 2) (Yan 2022).
      `ubm`: examines by the distance to the last click above in place of the rank.
      `dcm`: goes on after a click with the examination of the rank.
      `sdbn`, `dbn`: attracts with y/grades, satisfies with half of that; `dbn` goes on with .8^eta.
      `ccm`: goes on with .9^eta after a skip, with .7^eta after a click on an irrelevant document and .3^eta on a
        relevant one.
      `mixture`: 70 % of the users are `dbn`, 30 % read from the last rank upwards (Deffayet 2023).
    A name followed by `-bottom-up` is a user who reads from the last shown rank upwards; names joined by `+`, such as
    `pbm+dbn`, are a mixture of users.

    Args:
      name: one of `USERS`, one of them with `-bottom-up`, or several joined by `+`.
      grades: the highest grade of the collection.
      ranks: length of the lists.
      eta: how fast examination falls with the rank.
      examination: `inverse` (1/k) or `joachims` (.68 .61 .48 .34 .28 .20 .11 .10 .08 .06).
      shares: how many of the users are of each kind, where names are joined; None: equally many.
      contexts: properties of sessions that change eta; `clicks` draws them and writes them to the log.
      drift: eta at the end of the log, to which it changes linearly; None: it does not change.
      flip: probability that the log records the opposite of what the user did with a document.
      random_clicks: probability of an accidental click on a document that the user would not click.

    Raises:
      ConfigError: an unknown name or examination, a number out of range, more ranks than a table has, shares of one
        user, contexts, a drift or another eta for a user that does not depend on eta, or another examination for one
        that has no curve over ranks.
    """
    check_count("grades", grades)
    check_count("ranks", ranks)
    names = name.split("+")
    for one in names:
        if one.removesuffix(BOTTOM_UP) not in USERS or one == "mixture" + BOTTOM_UP:
            known = f"{', '.join(USERS)}, each also with '{BOTTOM_UP}', and several joined by '+'"
            hint = did_you_mean(one, USERS)
            raise ConfigError(f"unknown user model '{one}'{hint}; known: {known}")
    bias = BiasExponent(eta, drift, tuple(contexts))
    fixed = [one for one in names if one.removesuffix(BOTTOM_UP) in INDEPENDENT_OF_ETA]
    if not bias.constant and len(fixed) == len(names):
        raise ConfigError(f"the user '{name}' does not depend on eta: contexts and drift would change nothing")
    if eta != 1 and len(fixed) == len(names):
        raise ConfigError(f"the user '{name}' does not depend on eta: {eta:g} would change nothing. Leave eta out")
    if examination != "inverse" and all(one.removesuffix(BOTTOM_UP) in WITHOUT_CURVE for one in names):
        raise ConfigError(f"the user '{name}' has no curve over ranks: examination would change nothing. Leave it out")
    if shares is not None and len(names) == 1:
        raise ConfigError(f"shares are of users joined by '+', such as pbm+dbn, and '{name}' is one. Leave shares out")
    settings = _UserSettings(grades, examination_by_rank(examination, ranks), bias)
    model = _mixed(names, shares, settings) if len(names) > 1 or shares is not None else _one(name, settings)
    return NoisyUser(model, flip=flip, random_clicks=random_clicks) if flip or random_clicks else model


def _one(name: str, settings: _UserSettings) -> ClickModel:
    model = USERS[name.removesuffix(BOTTOM_UP)](settings)
    return BottomUpUser(model) if name.endswith(BOTTOM_UP) else model


def _mixed(names: Sequence[str], shares: Sequence[float] | None, settings: _UserSettings) -> ClickModel:
    share = np.ones(len(names)) if shares is None else np.asarray(shares, np.float64)
    if len(share) != len(names) or not ((share > 0) & np.isfinite(share)).all():
        raise ConfigError(f"expected one share above 0 for each of {len(names)} users, found {shares}")
    prior = jnp.asarray(np.log(share / share.sum()), jnp.float32)
    return models.Mixture(components=[_one(name, settings) for name in names], prior_logits=prior)

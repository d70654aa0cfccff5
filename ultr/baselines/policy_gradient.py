"""`PolicyGradient`: maximises an objective over the exposure of documents under a stochastic ranker."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ultr.arguments import check_count, check_number
from ultr.baselines.base import Baseline, clicks_of
from ultr.baselines.exposure_objectives import (
    EXPOSURE_OBJECTIVES,
    LEAST_SESSIONS,
    LoggedExposure,
    divergence,
    penalty,
)
from ultr.baselines.pairwise import RunningMean
from ultr.baselines.plackett_luce import policy_value
from ultr.baselines.regression import estimates, frozen
from ultr.baselines.tables import affine_tables, propensity_table
from ultr.baselines.weighted import by_rank, rank_values, relative_curve
from ultr.data.query_lists import CLICK_RATE, DISPLAYS
from ultr.errors import ConfigError
from ultr.sessions import Sessions
from ultr.text import did_you_mean
from ultr.towers import IndexBound, Statistic, TowerLike, read_feature

CLIP = 10.0  # in training, exposure below this over the root of the number of sessions counts as that


class PolicyGradient(Baseline):
    """Learns a Plackett-Luce ranker that maximises an objective over the exposure of documents, query by query.

    The exposure of a document is the mean weight of the ranks that the ranker gives it. Its relevance is estimated from
    what the log showed: R + (clicks - rho_0 R - beta_0) / rho_0 per session, where rho_0 and beta_0 are the means of
    alpha and beta at the ranks shown and R is a regression (0 without one). Gradients come from the score function over
    drawn rankings (`ultr.baselines.plackett_luce.policy_value`).

    Objectives (all to maximise; `ultr.baselines.exposure_objectives`):

    - `ips`, `doubly-robust`: the estimated utility.
    - `exposure-crm` (Gupta 2023): by IPS, less a bound on how far the estimate may be off, which grows with the
      divergence of the ranker's exposure from that of the logging policy.
    - `safe-doubly-robust` (Gupta 2024): the same for the doubly robust estimate and under trust bias.
    - `prpo`, proximal ranking policy optimisation (Gupta 2024): exposure pays only within delta to 1/delta times that
      under the logging policy. No assumption of how users click enters this limit.

    The last three are safe only if training starts at the logging policy: let `relevance` be fitted to the logged order
    first (`LoggedOrder`). From other scores, the gradient of `prpo` may be 0 from the start.

    It learns per query: give `fit` a log, which it collapses to `ultr.data.QueryLists`, or these. A session on its own
    is taken for a query that was shown once. Documents that the log never showed have no reward. In training, rho_0
    counts as at least 10 / sqrt(sessions); not so in validation. Where `fit` validates, the same rankings are drawn at
    every epoch.

    Args:
      relevance: tower whose logits are the scores.
      objective: one of the names above.
      alpha, beta: [R] by rank, absolute: P(click at k) = alpha_k relevance + beta_k; beta None: no trust bias.
      regression: as in `DirectMethod`; None: 0. `ips` and `exposure-crm` take neither this nor beta.
      sessions: how many sessions the log has that is trained on.
      delta: `exposure-crm`, `safe-doubly-robust`: the probability that the bound may fail; the smaller, the closer to
        the logging policy, and at 1 there is no penalty [.1; Gupta 2024 has .95, a bound that hardly ever holds].
        `prpo`: the limit of the ratio of exposures; at 1 nothing pays beyond the logging policy [100 / sessions].
      per_query: `prpo`: take 100 / sessions of the query itself, since the guarantee is one per query.
      metric: weights of the ranks: `clicks`, alpha + beta (`ips`, `exposure-crm`: alpha); `dcg`, 1/log2(1 + rank).
        Ranks that the log does not show have none.
      samples: rankings drawn per list and step; even.
      momentum: share of a batch in the running mean of the divergence.
      seed: of the rankings drawn.

    Attributes:
      diverged: running mean of the divergence d2 of training batches.
      steps: how many training steps it has seen.
      limit, penalty, least: delta, the factor of the root of the divergence, and the least rho_0 in training.
      start: the key that `seed` gives.

    Raises:
      ConfigError: an unknown objective or metric; a number out of range; an argument that the objective does not take;
        what `DoublyRobust` raises of alpha and beta.
    """

    sufficient_statistics = "query"
    curve_source = "given"
    has_pure_loss = False
    metrics = ("clicks", "dcg")

    def __init__(
        self,
        *,
        relevance: TowerLike,
        objective: str,
        alpha: Any,
        beta: Any = None,
        regression: TowerLike | None = None,
        sessions: float,
        delta: float | None = None,
        per_query: bool = False,
        metric: str = "clicks",
        samples: int = 100,
        momentum: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(relevance=relevance)
        for name, given, known in (("objective", objective, EXPOSURE_OBJECTIVES), ("metric", metric, self.metrics)):
            if given not in known:
                raise ConfigError(f"unknown {name} '{given}'{did_you_mean(given, known)}; known: {', '.join(known)}")
        self.objective, self.metric = objective, metric
        self._objective = EXPOSURE_OBJECTIVES[objective]
        if not self._objective.doubly_robust and (regression is not None or (beta is not None and np.any(beta))):
            raise ConfigError(f"objective '{objective}' takes neither a regression nor beta: leave them out")
        high, low = affine_tables(alpha, np.zeros(len(propensity_table(alpha, "alpha"))) if beta is None else beta)
        self.alpha, self.beta = tuple(high.tolist()), tuple(low.tolist())
        self.regression = None if regression is None else frozen(regression)
        self.sessions = check_number("sessions", sessions, least=1)
        self.samples = check_count("samples", samples, least=4)
        self.momentum, self.seed = float(momentum), check_count("seed", seed, least=0)
        if samples % 2 or not 0 < momentum <= 1:
            raise ConfigError(
                f"expected an even number of samples and momentum above 0 and at most 1, found {samples} and {momentum}"
            )
        if delta is not None and not 0 < delta <= 1:
            raise ConfigError(f"expected delta above 0 and at most 1, found {delta}")
        if per_query and (self._objective.delta is not None or delta is not None):
            raise ConfigError("per_query takes delta from the sessions of each query: only with 'prpo' and no delta")
        self.delta, self.per_query = delta, bool(per_query)
        limit = delta or self._objective.delta or min(LEAST_SESSIONS / self.sessions, 1.0)
        weights = high + low if metric == "clicks" else 1.0 / np.log2(np.arange(2, len(high) + 2))
        self._penalised = self._objective.penalty_factor > 0
        factor = 0.0
        if self._penalised:
            factor = penalty(
                self._objective, weights=weights, alpha=high, beta=low, delta=limit, sessions=self.sessions
            )
        # Arguments of what is compiled, so that it serves logs of other sizes.
        self.limit, self.penalty, self.least = (
            Statistic(jnp.float32(x)) for x in (limit, factor, CLIP / self.sessions**0.5)
        )
        self.weights, self.slope, self.offset = by_rank(weights), by_rank(high), by_rank(low)
        self.start = Statistic(jax.random.key_data(jax.random.key(self.seed)))
        self.diverged = RunningMean(jnp.ones(()))
        self.steps = Statistic(jnp.zeros((), jnp.uint32))
        self.deterministic = False

    @property
    def corrects_trust_bias(self) -> bool:
        return bool(np.any(self.beta))

    @property
    def index_bounds(self) -> tuple[IndexBound, ...]:
        return (IndexBound("position", len(self.alpha), "ranks"),)

    def logged(self, sessions: Sessions) -> LoggedExposure:
        """Estimates exposure and relevance of the documents from what the log showed."""
        mask, name = jnp.asarray(sessions.mask), type(self).__name__
        if DISPLAYS in sessions.features:
            displays = read_feature(sessions, DISPLAYS, name)
            if (ranks := displays.shape[-1]) > len(self.alpha):
                raise ConfigError(f"expected displays at up to {len(self.alpha)} ranks, found {ranks}")
            rate = read_feature(sessions, CLICK_RATE, name)
            exposed, added, unearned = (displays @ x[...][:ranks] for x in (self.weights, self.slope, self.offset))
        else:
            rate = clicks_of(sessions, name).astype(jnp.float32)
            exposed, added, unearned = (rank_values(x[...], sessions) for x in (self.weights, self.slope, self.offset))
        guess = jnp.zeros(mask.shape) if self.regression is None else estimates(self.regression, sessions)
        least = 0.0 if self.deterministic else self.least[...]
        never = added == 0  # a NaN shall be seen
        chance = jnp.where(never, 1.0, jnp.maximum(added, least))
        relevance = jnp.where(never | ~mask, 0.0, guess + (rate - added * guess - unearned) / chance)
        delta = self.limit[...]
        if self.per_query:
            own = jnp.ones(len(mask)) if sessions.weight is None else jnp.asarray(sessions.weight, jnp.float32)
            delta = jnp.minimum(LEAST_SESSIONS / jnp.maximum(own, 1.0), 1.0)[:, None]
        return LoggedExposure(
            jnp.where(mask, exposed, 0.0), relevance, mask, delta, self.penalty[...], self.diverged[...]
        )

    def loss(self, sessions: Sessions) -> jax.Array:
        """Computes minus the objective, [B], whose gradient is that of drawn rankings."""
        scores = self.relevance(sessions.unbiased())
        logged = jax.lax.stop_gradient(self.logged(sessions))
        step = jnp.uint32(0xFFFFFFFF) if self.deterministic else self.steps[...]
        key = jax.random.fold_in(jax.random.wrap_key_data(self.start[...]), step)
        value, exposures = policy_value(
            lambda exposure: self._objective.value(exposure, logged),
            scores,
            sessions.mask,
            self.weights[...],
            key=key,
            samples=self.samples,
        )
        if not self.deterministic:
            self.steps[...] = self.steps[...] + jnp.uint32(1)
            if self._penalised:
                self._note_divergence(sessions, logged, exposures)
        return jnp.where(jnp.any(logged.mask, axis=1), -value, 0.0)

    def _note_divergence(self, sessions: Sessions, logged: LoggedExposure, exposures: Any) -> None:
        """Adds the batch to the running mean of the divergence."""
        first, second = jax.lax.stop_gradient(tuple(exposures))
        own = divergence(first, logged.exposure, logged.mask, other=second)
        rows = jnp.any(logged.mask, axis=1) * (1.0 if sessions.weight is None else jnp.asarray(sessions.weight))
        total = jnp.sum(rows)
        mean = jnp.maximum(jnp.sum(own * rows) / jnp.where(total > 0, total, 1.0), 1.0)
        moved = (1.0 - self.momentum) * self.diverged[...] + self.momentum * mean
        self.diverged[...] = jnp.where(total > 0, moved, self.diverged[...])

    def examination_curve(self, ranks: int) -> np.ndarray | None:
        return relative_curve(self.alpha, ranks)

"""Whether examination falls alike for documents of low and high relevance: score tests of an interaction.

Under the position-based model, P(click) = theta_k gamma_d, the curve theta is the same for all documents. With clicks
that relevance does not explain, P(click) = theta_k (gamma_d + delta_k), it is not: under trust bias, delta falls with
the rank, and the least relevant documents have a steeper curve than the others; under noise, a floor of clicks at every
rank, delta_k = beta / theta_k rises, and their curve is flatter.

Where the clicks of a document fell, given their number (`conditional_likelihood`), is compared with what the common
curve predicts, r_dk = c_dk - q_dk sum_j c_dj; the test sums s_d h_k r_dk, where s_d falls with the relevance of the
document and h_k is the shape of delta. No other shape of the curve has to be known: h is taken free of what the common
curve could explain (Neyman's C(alpha)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ultr.propensity.arm_counts import ArmCounts
from ultr.propensity.conditional import fit_conditional, unbiased_click_variance
from ultr.propensity.information import profile_laplacian

SMALLEST_EXAMINATION = 0.02  # of the largest; below it 1 / examination is not resolved
ROUNDING = 1e-9  # a variance per click below it is a rounding error
LOW, HIGH = 0.1, 0.9  # quantiles of the relevance of clicked documents between which an effect is stated


class Interaction(NamedTuple):
    """The test of one shape of delta.

    Attributes:
      z: in standard deviations; above 0 where low relevance has more clicks than the common curve predicts at the ranks
        where the shape is large.
      log_error: the standard error of the logarithm of the ratio between the curves of low and of high relevance, from
        one end of the shape to the other.
    """

    z: float
    log_error: float


class MainComponent(NamedTuple):
    """The arms that clicks compare with each other, and the common curve there.

    Attributes:
      counts: the cells of those arms and of items with clicks.
      log_propensity: [arms], 0 at its largest; NaN elsewhere.
    """

    counts: ArmCounts
    log_propensity: np.ndarray


def main_component(counts: ArmCounts) -> MainComponent:
    """Fits the common curve to the connected arms that have the most clicks."""
    fit = fit_conditional(counts)
    by_component = np.bincount(np.maximum(fit.component, 0), counts.sum_by_arm(counts.clicks))
    inside = fit.component == int(np.argmax(by_component))
    clicked = counts.sum_by_item(counts.clicks) > 0
    a = np.where(inside, fit.log_propensity, np.nan)
    return MainComponent(counts.select(inside[counts.arm] & clicked[counts.item]), a - np.nanmax(a))


def relevance_score(clicks: np.ndarray, examined: np.ndarray, average: float) -> np.ndarray:
    """Computes a score from 0 to 1 that falls with the relevance of an item: average / (average + relevance).

    Args:
      clicks, examined: [items] clicks and examined impressions; one of average relevance is added to each.
      average: clicks per examined impression over all items.
    """
    relevance = (np.maximum(clicks, 0.0) + average) / (examined + 1)
    return np.asarray(average / (relevance + average))


def interactions(main: MainComponent, shapes: np.ndarray) -> list[Interaction]:
    """Tests whether the curve differs between low and high relevance by each of several shapes.

    The weight of a document leaves the click out that it weighs, so that it is independent of it; that clicks vary less
    than Poisson counts is corrected for.

    Args:
      shapes: [tests, arms] h_k.
    """
    counts, a = main
    theta = np.exp(a)[counts.arm]
    examined, clicks = counts.sum_by_item(counts.impressions * theta), counts.sum_by_item(counts.clicks)
    q = counts.impressions * theta / np.where(examined > 0, examined, 1.0)[counts.item]
    average = clicks.sum() / max(examined.sum(), 1e-300)
    s, less = (relevance_score(clicks - left_out, examined, average) for left_out in (1, 2))
    centre = float(clicks @ s) / max(clicks.sum(), 1e-300)
    change = np.where(clicks > 1, s - less, 0.0)
    s = np.where(clicks > 0, s - centre, 0.0)
    # The weight of a click falls with the other clicks of the document: expected are -change (sum of p^2 at k less its
    # share of all of them).
    pairs = examined**2 - counts.sum_by_item(counts.impressions * theta**2)
    square = np.where(pairs > 0, (clicks**2 - clicks) / np.where(pairs > 0, pairs, 1.0), 0.0)
    p2 = counts.impressions * theta**2 * square[counts.item]
    bias = -change[counts.item] * (p2 - q * counts.sum_by_item(p2)[counts.item])
    residual = s[counts.item] * (counts.clicks - q * clicks[counts.item]) - bias
    inverse = np.linalg.pinv(profile_laplacian(counts, clicks[counts.item] * q), hermitian=True)
    expected = q * clicks[counts.item]
    variance = unbiased_click_variance(counts, a)
    variance = np.where(variance > ROUNDING * expected, variance, 0.0)  # 0 of documents that are always clicked
    low, high = _weighted_quantiles(s, clicks, (LOW, HIGH))
    out = []
    for shape in shapes:
        h = shape[counts.arm]
        w = s[counts.item] * (h - counts.sum_by_item(q * h)[counts.item])
        common = (inverse @ counts.sum_by_arm(expected * w))[counts.arm]
        u = w - (common - counts.sum_by_item(q * common)[counts.item])
        spread, information = float(u**2 @ variance), float(u**2 @ expected)
        if not (spread > 0 and information > 0):
            out.append(Interaction(math.nan, math.inf))
            continue
        used = shape[np.isfinite(a)]
        reach = (high - low) * float(used.max() - used.min())
        out.append(Interaction(float(residual @ h) / math.sqrt(spread), reach * math.sqrt(spread) / information))
    return out


def trust_shape(rank: np.ndarray) -> np.ndarray:
    """Computes the shape of the check of trust: 1 / rank. Source: the trust parameters of Agarwal et al. 2019."""
    return np.asarray(1.0 / rank)


def noise_shape(log_propensity: np.ndarray) -> np.ndarray:
    """Computes the shape of the check of noise, 1 / examination; 0 where there is none.

    Args:
      log_propensity: 0 at its largest.
    """
    with np.errstate(invalid="ignore"):
        theta = np.maximum(np.exp(log_propensity), SMALLEST_EXAMINATION)
    return np.where(np.isfinite(theta), 1 / theta, 0.0)


def low_over_high(main: MainComponent, arm: int, reference: int) -> float:
    """Estimates the examination of an arm relative to a reference for low relevance, over that for high relevance.

    Documents are parted by their relevance so that both parts have half of the clicks. NaN where a part does not
    compare the two arms.
    """
    counts, a = main
    examined = counts.sum_by_item(counts.impressions * np.exp(a)[counts.arm])
    clicks = counts.sum_by_item(counts.clicks)
    order = np.argsort(clicks / np.where(examined > 0, examined, 1.0), kind="stable")
    low = np.zeros(counts.items, bool)
    low[order[np.cumsum(clicks[order]) <= clicks.sum() / 2]] = True
    ratios = []
    for part in (low, ~low):
        some = counts.select(part[counts.item])
        if not some.clicks.sum():
            return math.nan
        fit = fit_conditional(some)
        if fit.component[arm] != fit.component[reference] or fit.component[arm] < 0:
            return math.nan
        ratios.append(float(fit.log_propensity[arm] - fit.log_propensity[reference]))
    return math.exp(ratios[0] - ratios[1])


def _weighted_quantiles(x: np.ndarray, weight: np.ndarray, levels: tuple[float, ...]) -> list[float]:
    order = np.argsort(x, kind="stable")
    share = np.cumsum(weight[order]) / max(float(weight.sum()), 1e-300)
    return [float(x[order][min(int(np.searchsorted(share, level)), len(x) - 1)]) for level in levels]

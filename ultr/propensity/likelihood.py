"""What likelihoods of the position-based model have in common: components of ranks, information, errors.

    P(click of item d at arm k) = theta_k gamma_d,   log = a_k + b_d < 0

Both theta and gamma are known up to one factor per connected component of arms, so that only ratios of theta are
reported. The information about a with b profiled out is the Laplacian of a graph over arms,

    S = diag_k(sum_d w_dk) - sum_d w_dk w_dj / sum_i w_di,   w = n p / (1 - p),

and the variance of log(theta_k / theta_1) at best the effective resistance between k and 1 (Chen 2024).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ultr.propensity.cells import Cells


def components(cells: Cells) -> np.ndarray:
    """[arms] number of the connected component of each arm, -1 for arms without impressions.

    Two arms are connected where an item was shown at both, or over other arms. Components are numbered by their first
    arm.
    """
    shown = np.zeros(cells.arms, bool)
    shown[cells.arm] = True
    links = _incidence(cells, np.ones(len(cells.item)))
    _, label = connected_components((links.T @ links), directed=False)
    order = dict.fromkeys(label[shown].tolist())
    number = {old: new for new, old in enumerate(order)}
    return np.array([number[c] if s else -1 for c, s in zip(label.tolist(), shown, strict=True)], np.int64)


def bounded(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """[arms], [items] number of the component in which clicks bound all ratios, -1 for what was never clicked.

    An item that was clicked at one arm and shown at another without a click says that the former is examined more, by
    any factor: its most likely value is infinite. Only clicks the other way round, of another item perhaps, or over
    other arms, make it finite. Components are those of the graph in which the item leads from each arm where it was
    shown to each where it was clicked, there and back. They are numbered by their first arm.
    """
    clicked = cells.clicks > 0
    arm, item = cells.arm, cells.arms + cells.item
    nodes = cells.arms + cells.items
    edges = np.concatenate([arm, item[clicked]]), np.concatenate([item, arm[clicked]])
    graph = csr_array((np.ones(len(edges[0])), edges), shape=(nodes, nodes))
    _, label = connected_components(graph, directed=True, connection="strong")
    some = np.append(cells.per_arm(cells.clicks), cells.per_item(cells.clicks)) > 0
    number = np.full(nodes, -1)
    order = np.array(list(dict.fromkeys(label[: cells.arms][some[: cells.arms]].tolist())), np.int64)
    number[order] = np.arange(len(order))
    out = np.where(some, number[label], -1)
    return out[: cells.arms], out[cells.arms :]


def within(cells: Cells, component: np.ndarray, item_component: np.ndarray) -> tuple[Cells, np.ndarray]:
    """The cells of an arm and an item of the same component (`bounded`), and which arms are free, [arms] bool.

    The first arm of each component is not: others are relative to it.
    """
    free = component >= 0
    free[np.unique(component, return_index=True)[1]] = False
    return cells.where((component >= 0)[cells.arm] & (component[cells.arm] == item_component[cells.item])), free


def weights(impressions: Any, log_probability: np.ndarray) -> np.ndarray:
    """n p / (1 - p), what n impressions say about log(p); 0 where that is not finite. Arrays that broadcast."""
    with np.errstate(over="ignore"):
        w = impressions / np.expm1(-np.minimum(log_probability, -1e-12))
    return np.where(np.isfinite(log_probability), w, 0.0)


def laplacian(cells: Cells, log_propensity: np.ndarray, log_relevance: np.ndarray) -> np.ndarray:
    """[arms, arms] information about log(theta) with the relevances profiled out, at the given probabilities.

    Cells whose probability is 0 or unknown bring none.
    """
    return profiled(cells, weights(cells.impressions, log_propensity[cells.arm] + log_relevance[cells.item]))


def profiled(cells: Cells, weight: np.ndarray) -> np.ndarray:
    """[arms, arms] the Laplacian over arms of weights [C] between items and arms, the items eliminated."""
    return laplacian_of(between(cells, weight))


def between(cells: Cells, weight: np.ndarray) -> np.ndarray:
    """[arms, arms] conductance between arms of weights [C], the items eliminated; its diagonal means nothing."""
    weight = np.where(np.isfinite(weight), weight, 0.0)
    total = cells.per_item(weight)
    scaled = _incidence(cells, weight / np.sqrt(np.where(total > 0, total, 1.0))[cells.item])
    return (scaled.T @ scaled).toarray()


def laplacian_of(conductance: np.ndarray) -> np.ndarray:
    """[arms, arms] Laplacian of conductances between arms, whose diagonal is not looked at."""
    conductance = conductance.copy()
    np.fill_diagonal(conductance, 0.0)
    return np.diag(conductance.sum(1)) - conductance  # rows add up to 0 exactly


def resistance(s: np.ndarray, reference: int = 0) -> np.ndarray:
    """[arms, arms] covariance of log(theta_k / theta_reference) from the Laplacian S; its diagonal is R_eff.

    Infinite variances and NaN covariances where an arm is not connected with the reference, by its own weights.
    """
    arms = len(s)
    out = np.full((arms, arms), np.nan)
    _, label = connected_components(csr_array(s < 0), directed=False)
    inside = label == label[reference]
    np.fill_diagonal(out, np.where(inside, 0.0, np.inf))
    rest = np.flatnonzero(inside & (np.arange(arms) != reference))
    out[np.ix_(inside, inside)] = 0.0
    if len(rest):
        part = s[np.ix_(rest, rest)]
        scale = 1 / np.sqrt(np.diag(part))
        out[np.ix_(rest, rest)] = np.linalg.inv(part * scale * scale[:, None]) * scale * scale[:, None]
    return out


def over_queries(cells: Cells, slope: np.ndarray) -> np.ndarray:
    """[arms, arms] sum over queries of the outer products of their sums of slopes [C]; NaN with fewer than two queries.

    Memory grows with the number of cells, whatever the number of queries.
    """
    _, query = np.unique(cells.cluster, return_inverse=True)
    table = csr_array((slope, (query[cells.item], cells.arm)), shape=(int(query.max()) + 1, cells.arms))
    table.eliminate_zeros()
    used = int(np.count_nonzero(np.diff(table.indptr)))
    if used < 2:
        return np.full((cells.arms, cells.arms), np.nan)
    return (table.T @ table).toarray() * (used / (used - 1))


def sandwich(bread: np.ndarray, meat: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """[arms, arms] bread meat bread of the arms that are finite [arms]; infinite variances of the others."""
    out = np.full_like(bread, np.nan)
    np.fill_diagonal(out, np.where(finite, 0.0, np.inf))
    part = np.ix_(finite, finite)
    out[part] = bread[part] @ meat[part] @ bread[part]
    return out


def relevance(cells: Cells, log_propensity: np.ndarray) -> np.ndarray:
    """[items] log of clicks per examination; arms without a propensity (NaN) count as never examined."""
    examined = cells.per_item(cells.impressions * np.exp(np.nan_to_num(log_propensity, nan=-np.inf))[cells.arm])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(cells.per_item(cells.clicks)) - np.log(examined)


def smoothed_relevance(cells: Cells, log_propensity: np.ndarray) -> np.ndarray:
    """[items] log(gamma) with one examined impression added, of the average relevance of items like it.

    Where an item was shown once, the maximum of the likelihood is a relevance of 0 or 1, which would claim to bring no
    information or any amount of it. Items are alike that were shown most often at the same arm: a logger that ranks by
    relevance has documents of less relevance there than on average over all ranks.

    Args:
      cells: the log.
      log_propensity: [arms]; NaN or -inf: not examined.
    """
    theta = np.exp(np.where(np.isfinite(log_propensity), log_propensity, -np.inf))
    examined, clicks = cells.per_item(cells.impressions * theta[cells.arm]), cells.per_item(cells.clicks)
    average = clicks.sum() / max(examined.sum(), 1e-300)
    most, typical = np.zeros(cells.items), np.zeros(cells.items, np.int64)
    np.maximum.at(most, cells.item, cells.impressions)
    often = np.flatnonzero(cells.impressions == most[cells.item])[::-1]
    typical[cells.item[often]] = cells.arm[often]  # of several arms the first, which is assigned last
    alike = [np.bincount(typical, values, cells.arms) for values in (clicks, examined)]
    alike_average = (alike[0] + average) / (alike[1] + 1)
    top = np.zeros(cells.items)
    np.maximum.at(top, cells.item, theta[cells.arm])
    with np.errstate(divide="ignore"):
        gamma = np.log((clicks + alike_average[typical]) / (examined + 1))
        return np.minimum(gamma, -np.log(np.maximum(top, 1e-300)) - 1e-3)  # a probability stays below 1


def _incidence(cells: Cells, values: np.ndarray) -> Any:
    return csr_array((values, (cells.item, cells.arm)), shape=(cells.items, cells.arms))

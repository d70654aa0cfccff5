"""Information about propensities in the position-based model: graph Laplacians over arms, components, covariances.

    P(click of item d at arm k) = theta_k gamma_d,   log = a_k + b_d < 0

Both theta and gamma are identified up to one factor per connected component of arms, so that only ratios of theta are
reported. The information about a with b profiled out is the Laplacian of a graph over arms,

    S = diag_k(sum_d w_dk) - sum_d w_dk w_dj / sum_i w_di,   w = n p / (1 - p),

and the smallest variance of log(theta_k / theta_1) is the effective resistance between k and 1 (Chen 2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ultr.propensity.arm_counts import ArmCounts


def arm_components(counts: ArmCounts) -> np.ndarray:
    """Numbers the connected components of arms: [arms], -1 for arms without impressions.

    Two arms are connected where an item was shown at both, or through other arms. Components are numbered by their
    first arm.
    """
    shown = np.zeros(counts.arms, bool)
    shown[counts.arm] = True
    incidence = _item_arm_matrix(counts, np.ones(len(counts.item)))
    _, label = connected_components((incidence.T @ incidence), directed=False)
    order = dict.fromkeys(label[shown].tolist())
    number = {old: new for new, old in enumerate(order)}
    return np.array([number[c] if s else -1 for c, s in zip(label.tolist(), shown, strict=True)], np.int64)


def click_components(counts: ArmCounts) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the components within which clicks bound all ratios of propensities: ([arms], [items]).

    What was never clicked has -1. An item that was clicked at one arm and shown at another without a click says that
    the former is examined more, by any factor: the most likely ratio is infinite. Clicks the other way round, perhaps
    of other items or through other arms, make it finite. These are the strongly connected components of the graph in
    which an item leads from each arm where it was shown to each arm where it was clicked. They are numbered by their
    first arm.
    """
    clicked = counts.clicks > 0
    arm, item = counts.arm, counts.arms + counts.item
    nodes = counts.arms + counts.items
    edges = np.concatenate([arm, item[clicked]]), np.concatenate([item, arm[clicked]])
    graph = csr_array((np.ones(len(edges[0])), edges), shape=(nodes, nodes))
    _, label = connected_components(graph, directed=True, connection="strong")
    some = np.append(counts.sum_by_arm(counts.clicks), counts.sum_by_item(counts.clicks)) > 0
    number = np.full(nodes, -1)
    order = np.array(list(dict.fromkeys(label[: counts.arms][some[: counts.arms]].tolist())), np.int64)
    number[order] = np.arange(len(order))
    out = np.where(some, number[label], -1)
    return out[: counts.arms], out[counts.arms :]


def split_free_arms(
    counts: ArmCounts, component: np.ndarray, item_component: np.ndarray
) -> tuple[ArmCounts, np.ndarray]:
    """Drops cells between components (`click_components`), and says which arms have a free parameter, [arms] bool.

    The first arm of each component has none: the others are relative to it.
    """
    free = component >= 0
    free[np.unique(component, return_index=True)[1]] = False
    inside = (component >= 0)[counts.arm] & (component[counts.arm] == item_component[counts.item])
    return counts.select(inside), free


def information_weights(impressions: ArrayLike, log_probability: np.ndarray) -> np.ndarray:
    """Computes n p / (1 - p), the information of n impressions about log(p); 0 where log(p) is not finite.

    The two arguments broadcast against each other.
    """
    with np.errstate(over="ignore"):
        w = np.asarray(impressions) / np.expm1(-np.minimum(log_probability, -1e-12))
    return np.where(np.isfinite(log_probability), w, 0.0)


def information_laplacian(counts: ArmCounts, log_propensity: np.ndarray, log_relevance: np.ndarray) -> np.ndarray:
    """Computes the information about log(theta), relevances profiled out, at given probabilities: [arms, arms].

    Cells whose probability is 0 or unknown contribute nothing.
    """
    log_probability = log_propensity[counts.arm] + log_relevance[counts.item]
    return profile_laplacian(counts, information_weights(counts.impressions, log_probability))


def profile_laplacian(counts: ArmCounts, weight: np.ndarray) -> np.ndarray:
    """Eliminates the items from the bipartite graph of items and arms with edge weights [C]: Laplacian [arms, arms]."""
    return laplacian_of_conductances(arm_conductances(counts, weight))


def arm_conductances(counts: ArmCounts, weight: np.ndarray) -> np.ndarray:
    """Computes conductances between arms, [arms, arms], from weights [C]; the diagonal is to be ignored."""
    weight = np.where(np.isfinite(weight), weight, 0.0)
    total = counts.sum_by_item(weight)
    scaled = _item_arm_matrix(counts, weight / np.sqrt(np.where(total > 0, total, 1.0))[counts.item])
    return np.asarray((scaled.T @ scaled).toarray())


def laplacian_of_conductances(conductance: np.ndarray) -> np.ndarray:
    """Converts conductances between arms, [arms, arms], whose diagonal is ignored, to their Laplacian."""
    conductance = conductance.copy()
    np.fill_diagonal(conductance, 0.0)
    return np.asarray(np.diag(conductance.sum(1)) - conductance)  # rows add up to 0 exactly


def relative_covariance(laplacian: np.ndarray, reference: int = 0) -> np.ndarray:
    """Computes the covariance of log(theta_k / theta_reference), [arms, arms], whose inverse is the Laplacian.

    The diagonal holds the effective resistances between each arm and the reference. An arm that is not connected with
    the reference has an infinite variance and NaN covariances.
    """
    arms = len(laplacian)
    out = np.full((arms, arms), np.nan)
    _, label = connected_components(csr_array(laplacian < 0), directed=False)
    inside = label == label[reference]
    np.fill_diagonal(out, np.where(inside, 0.0, np.inf))
    rest = np.flatnonzero(inside & (np.arange(arms) != reference))
    out[np.ix_(inside, inside)] = 0.0
    if len(rest):
        part = laplacian[np.ix_(rest, rest)]
        scale = 1 / np.sqrt(np.diag(part))
        out[np.ix_(rest, rest)] = np.linalg.inv(part * scale * scale[:, None]) * scale * scale[:, None]
    return out


def score_products_by_query(counts: ArmCounts, score: np.ndarray) -> np.ndarray:
    """Sums the outer products of each query's scores per arm, the middle of a sandwich: [arms, arms].

    NaN with fewer than two queries. Memory grows with the number of cells, whatever the number of queries.

    Args:
      score: [C] derivative of the log-likelihood by the logarithm of each cell's probability.
    """
    _, query = np.unique(counts.query, return_inverse=True)
    by_query = csr_array((score, (query[counts.item], counts.arm)), shape=(int(query.max()) + 1, counts.arms))
    by_query.eliminate_zeros()
    used = int(np.count_nonzero(np.diff(by_query.indptr)))
    if used < 2:
        return np.full((counts.arms, counts.arms), np.nan)
    return np.asarray((by_query.T @ by_query).toarray() * (used / (used - 1)))


def sandwich_covariance(bread: np.ndarray, meat: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Computes bread meat bread over the arms that are `finite`, [arms]; the others get infinite variances."""
    out = np.full_like(bread, np.nan)
    np.fill_diagonal(out, np.where(finite, 0.0, np.inf))
    part = np.ix_(finite, finite)
    out[part] = bread[part] @ meat[part] @ bread[part]
    return out


def log_relevance_at(counts: ArmCounts, log_propensity: np.ndarray) -> np.ndarray:
    """Estimates log(gamma) as clicks per examined impression: [items].

    Impressions at arms without a propensity (NaN) count as not examined.
    """
    propensity = np.exp(np.nan_to_num(log_propensity, nan=-np.inf))
    examined = counts.sum_by_item(counts.impressions * propensity[counts.arm])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(counts.sum_by_item(counts.clicks)) - np.log(examined))


def smoothed_log_relevance(counts: ArmCounts, log_propensity: np.ndarray) -> np.ndarray:
    """Estimates log(gamma) with one more examined impression, of the average relevance of similar items: [items].

    For an item that was shown once, the maximum of the likelihood is a relevance of 0 or 1, with no information or any
    amount of it. Items are similar that were shown most often at the same arm: a logging policy that ranks by relevance
    puts less relevant documents there than the average over all ranks.

    Args:
      counts: of the log.
      log_propensity: [arms]; NaN or -inf where nothing is examined.
    """
    theta = np.exp(np.where(np.isfinite(log_propensity), log_propensity, -np.inf))
    examined = counts.sum_by_item(counts.impressions * theta[counts.arm])
    clicks = counts.sum_by_item(counts.clicks)
    average = clicks.sum() / max(examined.sum(), 1e-300)
    most, typical_arm = np.zeros(counts.items), np.zeros(counts.items, np.int64)
    np.maximum.at(most, counts.item, counts.impressions)
    most_often = np.flatnonzero(counts.impressions == most[counts.item])[::-1]
    typical_arm[counts.item[most_often]] = counts.arm[most_often]  # the first of equal arms, which is assigned last
    similar = [np.bincount(typical_arm, values, counts.arms) for values in (clicks, examined)]
    similar_average = (similar[0] + average) / (similar[1] + 1)
    top = np.zeros(counts.items)
    np.maximum.at(top, counts.item, theta[counts.arm])
    with np.errstate(divide="ignore"):
        gamma = np.log((clicks + similar_average[typical_arm]) / (examined + 1))
        upper = -np.log(np.maximum(top, 1e-300)) - 1e-3  # probabilities stay below 1
        return np.asarray(np.minimum(gamma, upper))


def _item_arm_matrix(counts: ArmCounts, values: np.ndarray) -> csr_array:
    """Builds the sparse matrix [items, arms] of values [C]."""
    return csr_array((values, (counts.item, counts.arm)), shape=(counts.items, counts.arms))

"""Click models as generative stories, enumerated by brute force: the oracle of the tests.

A story is a small program that scans one list and flips coins for what the user does out of our sight
(is the rank examined? is the document relevant? is the user satisfied?). `flip(x)` says whether the coin
with parameter `x` came up heads; the story returns which ranks were clicked. The enumerator runs the story
once for every sequence of outcomes, so every hidden variable is summed out in the plainest way there is.
A coin that a story does not flip (relevance of a rank that nobody examined) would sum to one.

A story never computes with its parameters. So the same story can be read with probabilities (`table`), or
with logits in log space (`log_table`), where nothing rounds to 0 or 1 however extreme the logits are.

Parameters are rank-first: `relevance[k]` belongs to rank k + 1 and is a number, or an array with one number
per list; all lists are then enumerated at once. UBM's `examination[k][0]` is for no click before rank k,
`examination[k][1 + j]` for a last click at 0-based rank j.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

Flip = Callable[[Any], bool]
Ranks = Any  # a sequence or array whose first axis is the rank
Story = Callable[..., Sequence[bool]]  # story(flip, **parameters) -> was rank k clicked?


# --- The stories ------------------------------------------------------------------------------------------


def independent(flip: Flip, click: Ranks) -> list[bool]:
    """GCTR, RCTR, DCTR, RDCTR (Chuklin 2015): every click is a coin of its own."""
    return [flip(c) for c in click]


def pbm(flip: Flip, relevance: Ranks, examination: Ranks) -> list[bool]:
    """Position-based model (Richardson 2007, Craswell 2008): a click is an examined, relevant document."""
    return [flip(t) and flip(g) for g, t in zip(relevance, examination, strict=True)]


def trust_pbm(
    flip: Flip, relevance: Ranks, examination: Ranks, trust_relevant: Ranks, trust_irrelevant: Ranks
) -> list[bool]:
    """PBM with trust bias (Agarwal 2019): of what is examined, the relevant is clicked with the chance e+_k

    and the irrelevant with the chance e-_k.
    """
    clicks = []
    for g, t, yes, no in zip(relevance, examination, trust_relevant, trust_irrelevant, strict=True):
        examined = flip(t)
        relevant = examined and flip(g)
        clicks.append(examined and flip(yes if relevant else no))
    return clicks


def ubm(flip: Flip, relevance: Ranks, examination: Ranks) -> list[bool]:
    """User browsing model (Dupret & Piwowarski 2008): examination depends on the rank of the last click."""
    clicks, last = [], -1
    for k, g in enumerate(relevance):
        click = flip(examination[k][1 + last]) and flip(g)
        last = k if click else last
        clicks.append(click)
    return clicks


def cascade(flip: Flip, relevance: Ranks) -> list[bool]:
    """Cascade model (Craswell 2008): scan from the top, stop for good at the first click."""
    clicks, examined = [], True
    for g in relevance:
        click = examined and flip(g)
        examined = examined and not click
        clicks.append(click)
    return clicks


def dcm(flip: Flip, relevance: Ranks, continuation: Ranks) -> list[bool]:
    """Dependent click model (Guo 2009): after a click at rank k go on with the chance lambda_k."""
    clicks, examined = [], True
    for g, go_on in zip(relevance, continuation, strict=True):
        click = examined and flip(g)
        examined = examined and (not click or flip(go_on))
        clicks.append(click)
    return clicks


def sdbn(flip: Flip, relevance: Ranks, satisfaction: Ranks) -> list[bool]:
    """Simplified DBN (Chapelle & Zhang 2009): scan from the top until a click satisfies."""
    clicks, examined = [], True
    for g, s in zip(relevance, satisfaction, strict=True):
        click = examined and flip(g)
        satisfied = click and flip(s)
        examined = examined and not satisfied
        clicks.append(click)
    return clicks


def dbn(flip: Flip, relevance: Ranks, satisfaction: Ranks, continuation: Ranks) -> list[bool]:
    """Dynamic Bayesian network (Chapelle & Zhang 2009): the unsatisfied go on with the chance lambda."""
    clicks, examined = [], True
    for g, s, go_on in zip(relevance, satisfaction, continuation, strict=True):
        click = examined and flip(g)
        satisfied = click and flip(s)
        examined = examined and not satisfied and flip(go_on)
        clicks.append(click)
    return clicks


def ccm(
    flip: Flip,
    relevance: Ranks,
    after_skip: Ranks,
    after_irrelevant_click: Ranks,
    after_relevant_click: Ranks,
) -> list[bool]:
    """Click chain model (Guo 2009): go on with tau_1 after a skip, tau_3 after a relevant click, else tau_2.

    Whether a clicked document is relevant is a coin of its own, with the chance g that drew the click:
    the user goes on after a click with the chance (1 - g) tau_2 + g tau_3.
    """
    clicks, examined = [], True
    taus = zip(after_skip, after_irrelevant_click, after_relevant_click, strict=True)
    for g, (skip, irrelevant, relevant) in zip(relevance, taus, strict=True):
        click = examined and flip(g)
        if examined and click:
            examined = flip(relevant) if flip(g) else flip(irrelevant)
        elif examined:
            examined = flip(skip)
        clicks.append(click)
    return clicks


def mixture(
    flip: Flip, choice: Sequence[Any], components: Sequence[Callable[[Flip], Sequence[bool]]]
) -> Sequence[bool]:
    """One of M stories tells the whole session: story m by the coin `choice[m]`, if none before it was taken."""
    for coin, component in zip(choice, components[:-1], strict=True):
        if flip(coin):
            return component(flip)
    return components[-1](flip)


# --- The enumeration --------------------------------------------------------------------------------------


def paths(story: Story, **parameters: Any) -> Iterator[tuple[Sequence[bool], list[tuple[Any, bool]]]]:
    """Yields (clicks, [(coin's parameter, heads), ...]) of every run of the story, each run once."""
    pending: list[list[bool]] = [[]]
    while pending:
        given = pending.pop()
        flips: list[tuple[Any, bool]] = []

        def flip(parameter: Any, given: list[bool] = given, flips: list[tuple[Any, bool]] = flips) -> bool:
            if len(flips) < len(given):
                heads = given[len(flips)]
            else:  # the first time that a run comes here: heads now, tails later
                pending.append([heads for _, heads in flips] + [False])
                heads = True
            flips.append((parameter, heads))
            return heads

        yield story(flip, **parameters), flips


def click_vectors(ranks: int) -> np.ndarray:
    """All [2**K, K] click vectors, in the order of the tables: the first rank changes slowest."""
    return np.array(list(product((0, 1), repeat=ranks)), np.int8)


def _row(clicks: Sequence[bool]) -> int:
    return sum(int(c) << i for i, c in enumerate(reversed(clicks)))


def table(story: Story, **probabilities: Any) -> np.ndarray:
    """[2**K, ...] probability of every click vector; `probabilities` are the story's parameters."""
    totals: dict[int, Any] = {}
    for clicks, flips in paths(story, **probabilities):
        weight: Any = 1.0
        for p, heads in flips:
            weight = weight * (p if heads else 1 - p)
        totals[_row(clicks)] = totals.get(_row(clicks), 0.0) + weight
        size = 2 ** len(clicks)
    return _stack(totals, size, missing=0.0)


def log_table(story: Story, **logits: Any) -> np.ndarray:
    """[2**K, ...] log-probability of every click vector; `logits` are those of the story's parameters."""
    totals: dict[int, Any] = {}
    for clicks, flips in paths(story, **logits):
        weight: Any = 0.0
        for x, heads in flips:
            weight = weight - np.logaddexp(0.0, -x if heads else x)
        totals[_row(clicks)] = np.logaddexp(totals.get(_row(clicks), -np.inf), weight)
        size = 2 ** len(clicks)
    return _stack(totals, size, missing=-np.inf)


def expected_flips(story: Story, **logits: np.ndarray) -> dict[str, np.ndarray]:
    """How often each coin comes up heads and tails, on average over the runs that lead to given clicks.

    Args:
      story: flips a coin any number of times, or never.
      logits: name -> [K, ..., lists].

    Returns:
      Name -> [2, 2**K, K, ..., lists], heads first; NaN for click vectors that cannot happen.
    """
    labels = {}  # a story never looks at its coins, so names may stand for their parameters
    for name, x in logits.items():
        labels[name] = np.empty(x.shape[:-1], object)
        for place in np.ndindex(x.shape[:-1]):
            labels[name][place] = (name, place)
    ranks, lists = (next(iter(logits.values())).shape[i] for i in (0, -1))
    found = {name: np.zeros((2, 2**ranks, *x.shape)) for name, x in logits.items()}
    totals = np.zeros((2**ranks, lists))
    for clicks, flips in paths(story, **labels):
        log_weight = np.zeros(lists)
        for (name, place), heads in flips:
            x = logits[name][place]
            log_weight = log_weight - np.logaddexp(0.0, -x if heads else x)
        totals[_row(clicks)] += np.exp(log_weight)
        for (name, place), heads in flips:
            found[name][(0 if heads else 1, _row(clicks), *place)] += np.exp(log_weight)
    with np.errstate(invalid="ignore"):
        return {name: x / totals.reshape(1, 2**ranks, *[1] * (x.ndim - 3), lists) for name, x in found.items()}


def _stack(totals: dict[int, Any], size: int, *, missing: float) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*(totals.get(i, missing) for i in range(size))))


# --- What follows from a table ----------------------------------------------------------------------------


def log_marginal(log_table: np.ndarray) -> np.ndarray:
    """[K, ...] log P(C_k = 1)."""
    clicks = click_vectors(len(log_table).bit_length() - 1)
    return np.stack([np.logaddexp.reduce(log_table[column == 1], axis=0) for column in clicks.T])


def log_conditional(log_table: np.ndarray) -> np.ndarray:
    """[2**K, K, ...] log P(C_k = 1 | the clicks before k of that row); NaN where those have probability 0."""
    clicks = click_vectors(len(log_table).bit_length() - 1)
    out = np.empty((*clicks.shape, *log_table.shape[1:]))
    for row, k in np.ndindex(clicks.shape):
        prefix = (clicks[:, :k] == clicks[row, :k]).all(1)
        before = np.logaddexp.reduce(log_table[prefix], axis=0)
        clicked = np.logaddexp.reduce(log_table[prefix & (clicks[:, k] == 1)], axis=0)
        out[row, k] = clicked - np.where(np.isneginf(before), np.nan, before)
    return out

"""The report as text: what the numbers mean, then the numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ultr.text import counted, ranks_text, table

if TYPE_CHECKING:
    from ultr.identifiability.diagnosis import Report

PAIR_ROWS, SWAP_ROWS = 12, 8  # rows of the plan that are printed
REALISTIC = 1000  # times the log: larger numbers of sessions are called unrealistic
ASSUMPTION = (
    "clicks are examination times relevance, with no trust bias. Under trust bias the estimated curve is distorted by "
    "alpha and beta, which the errors do not cover: then train with --model trust or affine-ips."
)


def summary_lines(report: Report) -> list[str]:
    """Says what the log identifies, what limits it, what to do about it, and what that assumes."""
    assumed = f"Assumed: {ASSUMPTION}"
    identified = [*_verdict(report), *_limit(report), *_recommendation(report), assumed]
    fit = report.fit.text().splitlines()
    out = [*fit, *identified] if report.fit.failed else [*identified, *fit]  # what fails is said first
    out += ["", *_logging_policy(report)]
    return [*out, *(f"Note: {warning}." for warning in report.warnings)]


def _verdict(report: Report) -> list[str]:
    """Says which propensities the log identifies, and how well."""
    shown = np.flatnonzero(report.impressions > 0) + 1
    if len(shown) == 1:
        return [f"Nothing to identify: the log shows {ranks_text(shown)} only, and propensities compare ranks."]
    if shown[0] > 1:
        return [
            "No: nothing was shown at rank 1, to which propensities are relative. Check the ranks of the log: they "
            "start at 1."
        ]
    error = report.standard_error[shown - 1]
    good = shown[(error <= report.target)].tolist()
    fair = shown[np.isfinite(error) & (error > report.target)].tolist()
    lost = shown[~np.isfinite(error)].tolist()
    goal = f"to {percent(report.target)}"
    if report.clicks[0] == 0:
        return [
            f"No: rank 1 was never clicked in {report.impressions[0]:,.0f} impressions, so that no propensity can be "
            "told relative to it. The propensities below are assumed, not measured."
        ]
    if report.all_clicked:
        return [
            f"No: every one of the {report.impressions.sum():,.0f} impressions was clicked, so that nothing tells "
            "examination from attraction. The propensities below are assumed, not measured."
        ]
    if report.unsupported:
        return [_unsupported_verdict(report, [k for k in good + fair if k > 1 and k not in report.unsupported], lost)]
    if not fair and not lost:
        worst = f"the worst, rank {report.worst}, to {percent(error.max())}"
        return [f"Yes: this log identifies the propensities of {ranks_text(shown)} {goal} or better; {worst}."]
    if len(good) + len(fair) == 1:
        return [f"No: this log does not identify propensities. No document connects rank 1 with {ranks_text(lost)}."]
    out = []
    if len(good) > 1:
        out.append(f"{ranks_text(good)} are known {goal} or better")
    if fair:
        known = report.standard_error[np.array(fair) - 1]
        best, worst = percent(known.min()), percent(known.max())
        out.append(f"{ranks_text(fair)} can be known to {best if best == worst else f'{best} - {worst}'} at best")
    if lost:
        out.append(f"{ranks_text(lost)} cannot be compared with rank 1 at all")
    return [f"In part: {'; '.join(out)}. (Errors are relative standard errors.)"]


def _unsupported_verdict(report: Report, measured: list[int], lost: list[int]) -> str:
    """Gives the verdict where clicks do not bound all ratios.

    Args:
      measured: 1-based ranks below rank 1 whose ratio to rank 1 clicks do bound.
      lost: 1-based ranks that no document connects with rank 1.
    """
    which, one = ranks_text(report.unsupported), len(report.unsupported) == 1
    what = f"propensity of {which} is" if one else f"propensities of {which} are"
    verdict = "In part" if measured else "No: this log does not identify propensities"
    out = [
        f"{verdict}: the {what} assumed rather than measured, because too few clicks compare "
        f"{'it' if one else 'them'} with other ranks."
    ]
    if measured:
        worst = percent(float(report.standard_error[np.array(measured) - 1].max()))
        out.append(f"Of the others, {ranks_text(sorted(measured))} can be known to {worst} or better.")
    if lost:
        out.append(f"No document connects rank 1 with {ranks_text(lost)}.")
    return " ".join(out)


def _limit(report: Report) -> list[str]:
    """Says what limits the rank that is known worst."""
    if report.cut is None or report.all_clicked:
        return []
    enough = report.standard_error[report.worst - 1] <= report.target
    text = report.cut.text()
    out = [f"The weakest link: {text.replace(' only', '')}." if enough else f"What limits it: {text}."]
    others = [c for c in report.components[1:] if len(c.ranks) > 1]
    if report.cut.conductance > 0:
        if not enough:
            out.append(f"That alone leaves an error of {percent(report.cut.standard_error)}.")
    elif others:
        parts = [f"{ranks_text(c.ranks)} (to {percent(max(c.standard_error))} or better)" for c in others]
        out.append(f"Among themselves, {' and '.join(parts)} are compared.")
    return [" ".join(out)]


def _recommendation(report: Report) -> list[str]:
    """Recommends what to log to reach the target."""
    plan, out = report.plan, []
    worst = float(report.sessions_needed[report.worst - 1])
    if report.cut is None:
        return []
    if report.all_clicked:
        return ["What to do: log the impressions without a click as well; more clicks alone say nothing."]
    if plan.reached and not plan.swaps and report.unsupported:
        return [
            f"What to do: log more sessions until there are clicks that compare {ranks_text(report.unsupported)} with "
            "rank 1. The impressions would suffice if examination were as assumed below."
        ]
    if plan.reached and not plan.swaps:
        return ["What to do: nothing; the target is reached."]
    if len(report.unsupported) == np.count_nonzero(report.impressions) - 1:
        out.append("First of all log more sessions: no click compares ranks so far, and what follows is a guess.")
    times = (worst + report.sessions) / report.sessions
    if times <= REALISTIC:
        larger = f"{times:.2g}" if times < 100 else _rounded(times)
        out.append(
            f"About {_rounded(worst)} more sessions of the same kind would reach the target: a log of {larger} times "
            "as many sessions as this one."
        )
    elif math.isfinite(worst):
        out.append(
            f"No realistic number of sessions of the same kind reaches the target: it takes more than {REALISTIC:,} "
            "times this log."
        )
    else:
        out.append("More sessions of the same kind do not help.")
    if plan.swaps:
        pairs = ", ".join(f"{i} with {j}" for i, j in list(plan.pairs)[:3])
        more = f" and {len(plan.pairs) - 3} more" if len(plan.pairs) > 3 else ""
        n = counted(plan.queries, "query", "queries")
        equal, enough = percent(plan.epsilon_greedy_error), plan.epsilon_greedy_sessions
        needs = f"about {_rounded(enough)} of them reach the target"
        if enough > REALISTIC * report.sessions:
            needs = "no realistic number of them reaches the target"
        exchanged = f"sessions of {n} in which pairs of ranks are exchanged ({pairs}{more})"
        if plan.epsilon_greedy_error <= plan.standard_error:
            out.append(
                f"Randomise some sessions (epsilon-greedy): about {_rounded(plan.sessions)} of them bring the error to "
                f"{equal}; {needs}. That is as good as the plan below or better: as many {exchanged} bring it to "
                f"{percent(plan.standard_error)}{'' if plan.reached else f'; {plan.reason}'}."
            )
        else:
            short = f"bring the error to {percent(plan.standard_error)}; {plan.reason}"
            out.append(f"About {_rounded(plan.sessions)} {exchanged} {'reach the target' if plan.reached else short}.")
            out.append(f"As many epsilon-greedy sessions bring the error to {equal}; {needs}.")
        out.append(
            "These numbers depend on the propensities assumed below: diagnose again when the sessions are logged."
        )
    elif plan.reason:
        out.append(f"No swap plan: {plan.reason}.")
    return [f"What to do: {' '.join(out)}"]


def _logging_policy(report: Report) -> list[str]:
    """Describes how the logging policy showed documents, and what features could learn from it."""
    v, c = report.variation, report.confounding
    out = [
        f"{v.queries:.0%} of the queries and {v.impressions:.0%} of the impressions have a document that was shown at "
        f"two or more ranks; on average {v.largest_share:.0%} of a document's impressions are at one rank"
        f"{' (a deterministic logging policy)' if v.largest_share > 0.999 else ''}."
    ]
    if math.isfinite(c.slope):
        shown = np.flatnonzero(report.impressions > 0)
        how = ["hardly", "somewhat", "strongly"][int(np.searchsorted([0.1, 0.3], abs(c.slope)))]
        text = f"Rank and relevance are {how} confounded, under the propensities assumed below: "
        text += f"the documents at rank {shown[-1] + 1} are {c.relevance_by_rank[shown[-1]]:.2f} times as relevant as "
        text += f"those at rank {shown[0] + 1} (relevance goes as rank^{c.slope:.2f}"
        out.append(text + (f"; correlation {c.correlation:+.2f})." if math.isfinite(c.correlation) else ")."))
    if report.features is not None:
        f = report.features
        known = np.isfinite(f.standard_error) & (report.impressions > 0)
        text = f"The {f.features} document features explain {f.r_squared:.0%} of the variance of rank"
        if math.isnan(f.r_squared):
            text = f"Rank does not vary, so that the {f.features} document features explain nothing of it"
        if known.sum() > 1:
            text += "; a linear additive tower over them could learn the examination logits of ranks with standard "
            text += f"errors of {f.standard_error[known].max():.3f} or less, if the tower is right"
        if len(lost := np.flatnonzero(~known & (report.impressions > 0)) + 1):
            text += f"; they separate {ranks_text(lost)} from rank 1"
        out.append(text + ".")
    return [" ".join(out)]


def number_tables(report: Report) -> list[str]:
    """Formats the table by rank, and those of the swap plan."""
    head = ["rank", "impressions", "clicks", "relevance shown", "assumed propensity", "best error", "sessions needed"]
    rows = [head + (["tower error", "inflation"] if report.features else [])]
    for k in range(len(report.standard_error)):
        row = [
            str(k + 1),
            f"{report.impressions[k]:,.0f}",
            f"{report.clicks[k]:,.0f}",
            _number(report.confounding.relevance_by_rank[k], "{:.2f}"),
            _number(report.propensity[k], "{:.4f}"),
            percent(report.standard_error[k]),
            _rounded(report.sessions_needed[k]),
        ]
        if report.features:
            row.append(_number(report.features.standard_error[k], "{:.4f}"))
            row.append(_number(report.features.inflation[k], "{:.2f}"))
        rows.append(row)
    out = [table(rows, left=0)]
    if swaps := report.plan.swaps:
        rows = [["exchanged", "sessions"], *([f"{i} with {j}", f"{n:,}"] for (i, j), n in report.plan.pairs.items())]
        out += ["", table(rows[: 1 + PAIR_ROWS], left=0)]
        rows = [["sessions", "exchanged in each", "query"]]
        for swap in swaps[:SWAP_ROWS]:
            rows.append([f"{swap.sessions:,}", ", ".join(f"{i} with {j}" for i, j in swap.ranks), _short(swap.query)])
        out += ["", table(rows, left=0)]
        rest = len(swaps) - SWAP_ROWS
        out += [f"and {counted(rest, 'more row')}: see --json"] if rest > 0 else []
    return out


def percent(error: float) -> str:
    """Formats a relative error."""
    if not math.isfinite(error):
        return "-"
    if error >= 10:
        return "more than 1000 %"
    return f"{error:.0%}" if error >= 0.1 else f"{error:.1%}" if error >= 0.01 or error == 0 else f"{error:.2%}"


def _rounded(number: float) -> str:
    """Formats a number of sessions with two significant digits."""
    return f"{float(f'{number:.2g}'):,.0f}" if math.isfinite(number) else "-"


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:21]}..."

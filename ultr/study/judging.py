"""Makes one run of a study: trains its method, judges the ranker, and collects what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ultr import stopping
from ultr.data import Collection
from ultr.errors import ConfigError, DataError, UltrError
from ultr.evaluation import evaluate, per_query
from ultr.evaluation.compiled import CompiledModel
from ultr.evaluation.graded import GradedLists
from ultr.evaluation.judged import judged_documents
from ultr.evaluation.trec import write_run
from ultr.exhaustion import memory_problem
from ultr.files import folder_name
from ultr.models import ClickModel
from ultr.study.learning import TrainedMethod, propensity_error, train_method
from ultr.study.prepared import JudgedLists, PreparedLog, SplitUnit, count_shared
from ultr.study.runs import Run, StoredRuns
from ultr.study.settings import Study
from ultr.study.specs import NETWORKS
from ultr.study.truth import true_alpha, true_examination
from ultr.towers import input_match, row_tables

CLICK_METRICS = ("log_likelihood", "perplexity", "conditional_perplexity")
WEIGHTING_FACTS = ("effective_sample_size", "clipped", "affected", "unsupported")

Facts = dict[str, Any]
Values = dict[str, np.ndarray]  # metric -> [Q], and "query"


def make_run(
    study: Study, run: Run, log: PreparedLog | None, lists: JudgedLists, stored: StoredRuns
) -> tuple[Facts, Values | None]:
    """Makes a run; returns its facts and, where the study has test lists, its metrics per query.

    An error becomes a fact, so that one run does not end the others. One that is not expected (no `UltrError`) is
    marked, and the run is tried again next time.
    """
    stopping.check()
    try:
        spec = run.method.spec
        if log is not None and spec.learns_from == "clicks" and not log.log.metadata["clicks"]:
            raise DataError(f"expected clicks to learn from, found none in {len(log.log):,} sessions")
        trained = train_method(run.method, log, lists, seed=run.seed, metric=study.metrics[0])
        facts = _facts_of_training(trained, log)
        if log is not None and isinstance(trained.model, ClickModel) and study.test_share:
            assert trained.by is not None
            facts["clicks"] = _click_metrics(trained.model, log, trained.by, run.seed)
        if study.data.test is None:
            return facts, None
        ranking, values = _judge_ranking(study, run, log, lists["test"], trained, stored)
        facts["notes"] += ranking.pop("notes")
        return facts | ranking, values
    except UltrError as error:
        return {"error": one_line(error)}, None
    except Exception as error:
        if (problem := memory_problem(error)) is not None:
            lower = "Lower --jobs, or the sizes of the log and the model in the study"
            return {"error": f"memory ran out ({problem}). {lower}", "unexpected": True}, None
        return {"error": f"{type(error).__name__}: {one_line(error)}", "unexpected": True}, None


def one_line(error: BaseException) -> str:
    """Writes the message of an error in one line."""
    return " ".join(str(error).split())


def add_cautions(facts: Facts, log_facts: Mapping[str, Any]) -> None:
    """Adds notes to the facts of a run where its numbers rest on less than they seem to."""
    notes = facts.setdefault("notes", [])
    diagnosis = log_facts.get("diagnosis", {})
    if facts.get("propensity") is not None and diagnosis.get("identified") is False:
        notes.append(
            "the diagnosis said that this log does not identify examination by rank: the curve, and what it corrects, "
            "come from assumptions of the method"
        )
    if left_out := facts.get("weighting", {}).get("unsupported"):
        notes.append(f"{left_out:,.0f} impressions were left out: the displays give their documents no weight")


def _facts_of_training(trained: TrainedMethod, log: PreparedLog | None) -> Facts:
    facts: Facts = {"chosen": trained.chosen, "notes": trained.notes + (log.notes if log else [])}
    facts |= {"seconds": round(trained.seconds, 3), "all_seconds": round(trained.all_seconds, 3), "queries": 0}
    if trained.best:
        epoch = trained.history[trained.best - 1]
        facts |= {"best": trained.best, "epochs": len(trained.history)}
        facts["weighting"] = {name: epoch[name] for name in WEIGHTING_FACTS if epoch.get(name) is not None}
    if trained.examination is not None:
        facts["examination"] = {key: value for key, value in trained.examination.items() if key != "text"}
    if trained.propensity is not None:
        facts["propensity"] = trained.propensity
        facts["propensity_error"] = propensity_error(trained.propensity, _true_curve(trained.model, log))
    return facts


def _true_curve(model: Any, log: PreparedLog | None) -> np.ndarray | None:
    """Returns what a model's examination should be; None where no single curve is true.

    For affine methods and users with trust bias it is alpha.
    """
    truth = (log.truth or {}) if log else {}
    alpha = true_alpha(truth) if model is not None and model.corrects_trust_bias else None
    return true_examination(truth) if alpha is None else alpha


def _click_metrics(model: ClickModel, log: PreparedLog, by: SplitUnit, seed: int) -> dict[str, float]:
    """Computes click metrics on the sessions that nothing was learnt from or chosen by."""
    found = evaluate(model, log.distinct("test", by), metrics=CLICK_METRICS, key=jax.random.key(seed))
    return {name: estimate.value for name, estimate in found.items()}


def _judge_ranking(
    study: Study, run: Run, log: PreparedLog | None, test: Collection, trained: TrainedMethod, stored: StoredRuns
) -> tuple[Facts, Values]:
    """Computes the ranking metrics on the test lists, and writes the rankings as a TREC file."""
    notes = _vocabulary_notes(trained.model, log, test)
    notes += judged_documents(CompiledModel(trained.ranker), GradedLists(test)).notes
    key = jax.random.key(run.seed)
    values = per_query(trained.ranker, test, metrics=study.metrics, key=key)
    facts: Facts = {"queries": len(values["query"]), "notes": notes}
    if log is not None and log.settings.path is not None and run.method.spec.learns_from == "clicks":
        if shared := count_shared(log.query_names, test.query_names):
            facts["notes"].append(
                f"{shared:,} of {len(test):,} test queries are in the log that it learnt from as well"
            )
    facts["metrics"] = {name: float(np.nanmean(values[name])) for name in study.metrics}
    path = stored.path(run, "trec", ".run")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_run(path, trained.ranker, test, name=folder_name(run.method.name), key=key)
    return facts, values


def _vocabulary_notes(model: Any, log: PreparedLog | None, test: Collection) -> list[str]:
    """Says how many of the test lists' documents a table of documents knows, where it finds them by name.

    Raises:
      ConfigError: it knows none of them.
    """
    if log is None or model is None or not any("relevance" in path for path in row_tables(model)):
        return []
    try:
        match = input_match(model, test, name="test lists")
    except DataError as error:
        if error.field != "vocabulary":
            raise
        raise ConfigError(
            "a table of documents knows only those of its log, and the test lists are others: choose a network as "
            f"relevance ({', '.join(NETWORKS)}), or test lists of the same collection"
        ) from error
    if match is None or match.documents is None:
        return []
    found, unknown = match.documents
    return [
        f"{found:,} documents of the test lists are in the vocabulary of its log by name; the other {unknown:,} have "
        "one score"
    ]

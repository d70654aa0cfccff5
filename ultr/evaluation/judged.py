"""What judged documents can tell of a model: whether its training showed them, and whether their grades differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from flax import nnx

from ultr.data.input_schema import DOCUMENT
from ultr.evaluation.compiled import CompiledModel, fitted_batch_size
from ultr.evaluation.graded import GradedLists
from ultr.sessions import whole_feature
from ultr.text import counted
from ultr.towers import ranks_by_table, shown_documents

WHAT_TO_DO = "Split the log with --split-by session or time, or train a network over features (--relevance mlp)"


class Judged(NamedTuple):
    """The judged documents of graded lists, beside what a model was trained on.

    Attributes:
      documents: how many there are.
      never_shown: how many of them the model's training did not show; 0 where the model does not know documents by
        their ids alone.
      known: whether the model says which documents its training showed; otherwise `never_shown` counts those that are
        not in its vocabulary.
      lists: how many lists have a document with a grade above 0.
      one_grade: how many of them have that one grade alone.
    """

    documents: int
    never_shown: int
    known: bool
    lists: int
    one_grade: int

    @property
    def obstacle(self) -> str | None:
        """Says why no ranking of these documents means anything; None where it does."""
        if not self.documents or self.never_shown < self.documents:
            return None
        return (
            f"training showed none of the {counted(self.documents, 'judged document')}. The model knows documents by "
            f"their ids alone and has no opinion on these: their order would be chance. {WHAT_TO_DO}"
        )

    @property
    def notes(self) -> list[str]:
        """Says what a reader of the metrics should know."""
        notes = []
        share = f"{self.never_shown:,} of the {counted(self.documents, 'judged document')}"
        share += f" ({self.never_shown / max(self.documents, 1):.1%})"
        if not self.known:
            notes.append(
                "the model does not say which documents its training showed (an earlier version saved it, or its "
                f"training data did not tell); {share} are not in its vocabulary. It knows documents by their ids "
                "alone, and has no opinion on those that training never showed: chance orders them. Train again to "
                "see how many these are"
            )
        elif self.never_shown and self.obstacle is None:
            notes.append(
                f"training never showed {share}. The model knows documents by their ids alone and has no opinion on "
                f"these: chance breaks the ties between them. {WHAT_TO_DO}"
            )
        if self.one_grade * 2 > self.lists:
            notes.append(
                f"in {self.one_grade:,} of the {counted(self.lists, 'list')} with a relevant document, all judged "
                "documents have one grade: nDCG and MRR are 1 there for every ranker, so that they tell nothing of "
                "this one. Grade the documents that are not relevant as well, with 0. LETOR and SVMlight files have "
                "-1 for unjudged: if it means not relevant in yours, write 0"
            )
        return notes


def judged_documents(compiled: CompiledModel, graded: GradedLists, batch_size: int = 4096) -> Judged:
    """Counts the judged documents of graded lists by one pass.

    Args:
      compiled: the model.
      graded: the lists.
      batch_size: lists per step.
    """
    model = compiled.model
    by_table = isinstance(model, nnx.Module) and ranks_by_table(model)
    shown = shown_documents(model) if isinstance(model, nnx.Module) and by_table else None
    bound = compiled.on(graded.source) if by_table else compiled
    total = np.zeros(4, np.int64)
    for batch in graded.source.batches(fitted_batch_size(batch_size, graded.source)):
        labels = np.asarray(batch.labels, np.float32)
        where = np.asarray(batch.mask) & ~np.isnan(labels)
        if graded.queries is not None and batch.query is not None:
            where &= np.isin(batch.query, graded.queries)[:, None]
        never = np.zeros(1, bool)
        if by_table:
            with np.errstate(invalid="ignore"):  # what is no id is refused where the model looks it up
                ids = np.asarray(whole_feature(bound.matched(batch).features[DOCUMENT])).astype(np.int64)[where]
            never = ids == 0 if shown is None else ~shown.holds(np.maximum(ids, 0))
        highest = np.max(labels, axis=1, where=where, initial=-np.inf)
        relevant = highest > 0
        same = relevant & (np.min(labels, axis=1, where=where, initial=np.inf) == highest)
        total += np.array([where.sum(), never.sum(), relevant.sum(), same.sum()])
    documents, never_shown, lists, one_grade = (int(x) for x in total)
    return Judged(documents, never_shown, not by_table or shown is not None, lists, one_grade)

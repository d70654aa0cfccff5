"""`Fitted`: a trained model with the history of its training, what it was trained on, and where validation turned."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ultr.data.dataset import Coverage, Dataset, SufficientStatistics
from ultr.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on.

    Attributes:
      statistics: "rank" or "last-click": counts by these; "list": lists.
      collapsed: whether `fit` made these statistics of the log.
      rows: number of cells of counts, or of lists.
      sessions: number of lists behind them, by weight; a session may have several.
      queries, documents: number of distinct queries and documents behind them; None: not known.
    """

    statistics: SufficientStatistics
    collapsed: bool
    rows: int
    sessions: float
    queries: int | None
    documents: int | None

    @classmethod
    def of(cls, data: Dataset, coverage: Coverage | None, *, collapsed: bool = False) -> TrainedOn:
        """Describes a dataset.

        Args:
          data: the dataset.
          coverage: its own; of a log that takes a pass over the columns of queries and documents.
          collapsed: whether `fit` made its statistics of a log.
        """
        about = data.description
        queries, documents = (None, None) if coverage is None else coverage[:2]
        sessions = about.total_weight / about.rows_per_session
        return cls(about.sufficient_statistics, collapsed, about.rows, sessions, queries, documents)

    def sessions_per(self, unit: Literal["session", "query"]) -> float:
        """Computes how many sessions stand for a unit of a prior: one, or those of an average query.

        Raises:
          ConfigError: an unknown unit, or data that does not tell its queries.
        """
        if unit == "session":
            return 1.0
        if unit != "query":
            raise ConfigError(f"expected l2_unit 'session' or 'query', found {unit!r}")
        if not self.queries:
            raise ConfigError("l2_unit='query' needs data that tells its queries, such as a click log or its counts")
        return self.sessions / self.queries

    @property
    def text(self) -> str:
        """Says it in a few words."""
        lists = f"{self.sessions:,.0f} {'list' if self.sessions == 1 else 'lists'}"
        if self.statistics == "query":
            what = f"what {lists} showed and clicked, by query"
        elif self.statistics != "list":
            what = f"counts by {self.statistics.replace('-', ' ')} of {lists} ({self.rows:,} cells)"
        else:
            what = f"{self.rows:,} distinct ones of {lists}" if self.collapsed else lists
        if self.queries is None:
            return what
        return f"{what}, on {self.queries:,} queries and {self.documents:,} documents"


@dataclasses.dataclass(frozen=True)
class Turning:
    """Where the validation loss was lowest.

    Attributes:
      judgement: its number, from 1.
      epoch: passes over the data up to there.
      steps: optimizer steps up to there.
      turned: whether later judgements were worse; otherwise the loss was still falling when training ended.
    """

    judgement: int
    epoch: float
    steps: int | None
    turned: bool

    @property
    def text(self) -> str:
        """Says it in a sentence."""
        if not self.turned:
            return "validation loss was still falling when training ended: more --epochs may do better"
        steps = "" if self.steps is None else f", {self.steps:,} steps"
        return f"validation loss turned after epoch {self.epoch:g} (judgement {self.judgement}{steps})"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model with the history of its training, as `fit` and `solve` return it.

    Attributes:
      model: the model with the parameters of the best judgement.
      history: one dict per judgement, at the end of an epoch and, of an epoch that has many steps, within it: epoch
        (from 1; a fraction within an epoch), steps (made so far), valid_loss (None without validation) and, of what was
        trained on since the judgement before, loss, sessions, impossible (sessions that the model cannot produce, left
        out of the loss), seconds, and of these those spent waiting for data. Of rankers that weigh impressions also,
        over the impressions that the weights matter for
        (`ultr.rankers.ImpressionWeights`, such as the clicks): effective_sample_size (Kish 1965: the number of equal
        weights that would be as steady, sum^2 / sum of squares), clipped (share of weights that were cut down; None
        without any), affected (share of the sessions with a weight other than 1; None on counts, which do not tell)
        and unsupported (number of impressions left out, since the log has no weight for them).
      best: the number of the judgement whose parameters `model` holds, from 1; 0 means the start, before any.
      resumed: how many judgements of the history an earlier call had made, which this one resumed.
      trained_on: the data that the model was trained on; None where `solve` made it.
      held_out: where folds of the queries judged, the copies of the model that were trained without each fold.
    """

    model: Any
    history: list[dict[str, Any]]
    best: int
    resumed: int = 0
    trained_on: TrainedOn | None = None
    held_out: tuple[Any, ...] = ()

    @property
    def turning(self) -> Turning | None:
        """Where the validation loss was lowest; None without validation, or where no judgement beat the start."""
        if not self.best or self.history[self.best - 1]["valid_loss"] is None:
            return None
        entry = self.history[self.best - 1]
        return Turning(self.best, entry["epoch"], entry.get("steps"), self.best < len(self.history))

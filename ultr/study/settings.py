"""What a comparison is made of: dataclasses of a study."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ultr import simulate
from ultr.models import ClickModel
from ultr.study.options import setting
from ultr.study.registry import method_spec
from ultr.study.specs import RELEVANCE_TOWERS, TRANSFORMS, MethodSpec


@dataclasses.dataclass(frozen=True)
class JudgedData:
    """The graded lists of a study.

    Attributes:
      collection: folder of a collection with splits; None: `train`, `vali` and `test` are folders of their own.
      train: the queries that simulated logs are drawn from and that methods learn from which learn from grades.
      vali: the queries by whose grades these methods alone are chosen.
      test: the queries that every method is judged on; nothing is chosen by them.
    """

    collection: Path | None = None
    train: str | None = None
    vali: str | None = None
    test: str | None = None


@dataclasses.dataclass(frozen=True)
class LogSpec:
    """One log of a study: simulated anew for every seed, or real.

    Attributes:
      name: its name in tables and files.
      path: folder of a real log; None: simulated.
      split: of a real log, the split to learn from; None: all of it.
      user: the simulated user, a name of `ultr.simulate.user`.
      policy: the ranker of the logging policy.
      options: further options of `simulate.user`, `simulate.Policy` and `simulate.clicks`, by their names.
    """

    name: str
    path: Path | None = None
    split: str | None = None
    user: str = "pbm"
    policy: str = "linear"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def logging_policy(self) -> simulate.Policy:
        """Makes the logging policy of a simulated log."""
        names = {field.name for field in dataclasses.fields(simulate.Policy)}
        return simulate.Policy(self.policy, **{n: v for n, v in self.options.items() if n in names})

    def simulated_user(self, *, grades: int) -> ClickModel:
        """Makes the user of a simulated log, for lists with this highest grade."""
        return simulate.user(self.user, grades=grades, **self._options_for(simulate.user))

    def session_options(self) -> dict[str, Any]:
        """Returns the options of `simulate.clicks`."""
        return self._options_for(simulate.clicks)

    def _options_for(self, function: Any) -> dict[str, Any]:
        names = inspect.signature(function).parameters
        return {name: self.options[name] for name in names if name in self.options}


@dataclasses.dataclass(frozen=True)
class StudyMethod:
    """One method of a study with its settings: a row of the result's tables.

    Attributes:
      name: its name in tables and files.
      model: a name in `ultr.study.registry.METHODS` or a mixture of click models such as `pbm+dbn`.
      relevance, hidden, transform, rows: the relevance tower, as in `ultr.study.tower_factory.ModelConfig`.
      epochs, patience: passes over the log, at most, and without improvement; of a log with fewer than a hundred steps,
        as many times more as make a hundred.
      batch_size: sessions (or counted rows) per step; 0: chosen so that an epoch has a hundred steps or more.
      learning_rate: of networks. table_rate: how many times higher that of tables is.
      l2: strength of a Gaussian prior on the parameters. l2_unit: "session" or "query", as for `ultr.fit`.
      propensity: where a weighted method takes examination from: "true", an estimator of `ultr.propensity`, or a file
        that `ultr propensity --json` wrote.
      safe: return a correction of the logged order that is only as strong as held-out clicks vouch for.
      logger_score: name of a feature that holds the logger's score, from which `safe` takes the logged order; empty:
        that is estimated from what was shown.
      options: options of the method, such as `clip`.
      grid: setting -> values to choose from, without test grades.
    """

    name: str
    model: str
    relevance: str = setting("auto", choices=RELEVANCE_TOWERS)
    hidden: tuple[int, ...] = setting((64, 64), minimum=1)
    transform: str = setting("standardise", choices=TRANSFORMS)
    rows: int | None = setting(None, minimum=1)
    epochs: int = setting(50, minimum=1)
    patience: int = setting(5, minimum=1)
    batch_size: int = setting(0, minimum=0)
    learning_rate: float = setting(0.003, minimum=0, exclusive=True)
    table_rate: float = setting(10.0, minimum=0, exclusive=True)
    l2: float = setting(0.0, minimum=0)
    l2_unit: Literal["session", "query"] = setting("session", choices=("session", "query"))
    propensity: str = "conditional-likelihood"
    safe: bool = False
    logger_score: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @cached_property
    def spec(self) -> MethodSpec:
        """Finds the method's row in the registry."""
        return method_spec(self.model)

    def all_options(self) -> dict[str, Any]:
        """Returns the method's own options, those not given with their defaults."""
        return {**self.spec.defaults(), **self.options}

    def variants(self) -> list[tuple[dict[str, Any], StudyMethod]]:
        """Lists every setting of the grid with the method that has it; one without a grid."""
        known = {field.name for field in dataclasses.fields(self)}
        out = []
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            own = {k: v for k, v in chosen.items() if k in known}
            options = dict(self.options) | {k: v for k, v in chosen.items() if k not in known}
            out.append((chosen, dataclasses.replace(self, **own, options=options, grid={})))
        return out


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of methods on logs over seeds.

    Attributes:
      file: where it was read from; None: made in Python.
      metrics: ranking metrics, the first of them decides in tests and gaps.
      baseline: the method that the others are tested against.
      reference: the method that learns from grades: the upper end of the gap. None: no gap.
      valid_share, test_share: shares of a log held out, by query (by session for tables), to choose settings by and
        to judge click models on.
      diagnose: whether to say, before training, what each log identifies.
    """

    data: JudgedData
    logs: tuple[LogSpec, ...]
    methods: tuple[StudyMethod, ...]
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ("ndcg@10",)
    baseline: str | None = None
    reference: str | None = None
    valid_share: float = 0.15
    test_share: float = 0.1
    diagnose: bool = True
    file: Path | None = None

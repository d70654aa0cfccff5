"""Click models on the Yandex sample: trained on train.txt, judged on test.txt.

Every model is trained with the same settings; a tenth of the training sessions decides when to stop and which strength
of the prior to use. Documents of the test lists that were not shown in training get the model's common logit.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from common import finish, fit_tables, folder, parser, table

from ultr.data import ClickLog
from ultr.evaluation import evaluate
from ultr.ingest.preparing import prepare

MODELS = ("rctr", "dctr", "pbm", "ubm", "dcm", "sdbn", "dbn", "ccm")
METRICS = ("log_likelihood", "perplexity", "conditional_perplexity")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--l2", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    chosen = options.parse_args()
    data = folder(chosen, "yandex-sample")
    rows = [["model", "prior", "epochs", "log-likelihood", "perplexity", "conditional perplexity", "seconds"]]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        path = Path(work)
        prepare([data / "train.txt"], path / "train", format="yandex-sample")
        prepare([data / "test.txt"], path / "test", format="yandex-sample", vocabulary=path / "train")
        log = ClickLog.open(path / "train")
        test = ClickLog.open(path / "test", vocabulary=log)
        parts = log.split({"train": 0.9, "valid": 0.1}, by="session", seed=chosen.seed)
        for name in MODELS:
            began = time.perf_counter()
            l2, fitted = fit_tables(name, parts["train"], parts["valid"], strengths=chosen.l2, seed=chosen.seed)
            key = jax.random.key(chosen.seed)
            found = evaluate(fitted.model, test, metrics=METRICS, key=key, cluster="session")
            by_rank = evaluate(fitted.model, test, metrics=["perplexity/rank", "conditional_perplexity/rank"], key=key)
            result[name] = {"l2": l2, "epochs": fitted.best} | {
                metric: e.to_json() for metric, e in (found | by_rank).items()
            }
            cells = [f"{found[m].value:.4f} ± {1.96 * found[m].standard_error:.4f}" for m in METRICS]
            rows.append([name, f"{l2:g}", str(fitted.best), *cells, f"{time.perf_counter() - began:.0f}"])
            print(table([rows[0], rows[-1]]).splitlines()[-1], flush=True)
        facts = f"train {len(log):,} lists, test {len(test):,} lists; 95 % intervals over sessions"
    finish(chosen, result, f"\n{table(rows)}\n\n{facts}")


if __name__ == "__main__":
    main()

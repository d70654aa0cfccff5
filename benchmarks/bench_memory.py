"""Peak resident memory of one epoch, each in a process of its own: ultr, CLAX, and PyClick on fewer sessions.

python benchmarks/bench_memory.py --clax /path/to/clax/bin/python --pyclick /path/to/PyClick
"""

from __future__ import annotations

from typing import Any

from speed import Contestants, Peer, finish, parser, short, spanned, summary
from speed_data import Data, Settings, make


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--queries", type=int, nargs="+", default=[10_000, 500_000], help="a tenth of the ids")
    options.add_argument("--sessions", type=int, default=1_000_000)
    options.add_argument("--pyclick-sessions", type=int, default=20_000)
    options.add_argument("--batch", type=int, default=4096)
    chosen = options.parse_args()
    contestants = Contestants(chosen)
    result: dict[str, Any] = {}
    rows = [["model", "ids", "sessions", "contestant", "at the start, B", "peak, B"]]
    for queries in chosen.queries:
        data = make(chosen.work, Settings(queries=queries, sessions=chosen.sessions, seed=chosen.seed))
        for model in chosen.models:
            for who in ("ultr", "clax", "pyclick"):
                starts, peaks = [], []
                for _ in range(chosen.rounds):
                    peer = contestants.start(who)
                    if peer is None:
                        break
                    with peer:
                        starts.append(peer.ask("memory")["peak_bytes"])
                        _epoch(chosen, data, peer, who, model)
                        peaks.append(peer.ask("memory")["peak_bytes"])
                if not peaks:
                    continue
                found = {"start": summary(starts), "peak": summary(peaks)}
                result.setdefault(str(data.settings.documents), {}).setdefault(model, {})[who] = found
                sessions = min(chosen.sessions, chosen.pyclick_sessions) if who == "pyclick" else chosen.sessions
                cells = [short(found["start"]["median"]), spanned(found["peak"])]
                rows.append([model, short(data.settings.documents), short(sessions), who, *cells])
                print(" | ".join(rows[-1]), flush=True)
    finish(chosen, result, rows, contestants)


def _epoch(chosen: Any, data: Data, peer: Peer, who: str, model: str) -> None:
    clicks = "pbm" if model == "pbm" else "dbn"
    if who == "ultr":
        peer.ask("end_to_end", model=model, log=data.log(clicks), batch_size=chosen.batch)
    elif who == "clax":
        peer.ask(
            "end_to_end",
            model=model,
            documents=data.settings.documents,
            batch_size=chosen.batch,
            folder=data.clax(clicks),
            valid=data.clax(clicks, "valid"),
            sessions=chosen.sessions,
            workers=0,
        )
    else:
        peer.ask(
            "train",
            model=model,
            train=data.pyclick(clicks),
            test=data.pyclick(clicks, "test"),
            sessions=min(chosen.sessions, chosen.pyclick_sessions),
            test_sessions=10,
            iterations=1,
        )


if __name__ == "__main__":
    main()

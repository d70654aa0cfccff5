"""Seconds to compile a gradient of the loss and the marginals, and peak memory, by the length of the lists.

Each figure comes from a process of its own without a compilation cache. CLAX's UBM unrolls its marginals over pairs of
ranks: at 20 ranks they take it minutes and gigabytes, so it gets `--clax-widths` of its own.

    python benchmarks/bench_compile.py --clax /path/to/clax/bin/python
"""

from __future__ import annotations

from typing import Any

from speed import Contestants, finish, parser, short, spanned, summary


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--widths", type=int, nargs="+", default=[10, 20, 50, 200], help="documents per list, ours")
    options.add_argument("--clax-widths", type=int, nargs="+", default=[10], help="CLAX's [%(default)s]")
    chosen = options.parse_args()
    contestants = Contestants(chosen)
    result: dict[str, Any] = {}
    rows = [["model", "K", "contestant", "gradient, s", "marginals, s", "peak, B"]]
    cases = [
        (model, width, who)
        for model in chosen.models
        for width in sorted({*chosen.widths, *chosen.clax_widths})
        for who, widths in (("ultr", chosen.widths), ("clax", chosen.clax_widths))
        if width in widths
    ]
    taken: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    for _ in range(chosen.rounds):
        for model, width, who in cases:
            peer = contestants.start(who)
            if peer is not None:
                with peer:
                    taken.setdefault((model, width, who), []).append(peer.ask("compiling", model=model, width=width))
    for (model, width, who), runs in taken.items():
        found = {name: summary([run[name] for run in runs]) for name in ("gradient", "marginals", "peak_bytes")}
        result.setdefault(model, {}).setdefault(str(width), {})[who] = found
        cells = [spanned(found["gradient"]), spanned(found["marginals"]), short(found["peak_bytes"]["median"])]
        rows.append([model, str(width), who, *cells])
        print(" | ".join(rows[-1]), flush=True)
    finish(chosen, result, rows, contestants)


if __name__ == "__main__":
    main()

"""`ultr propensity`: tables, files and figures, and bad use."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Ultr
from propensity_logs import click_log, click_rows, counted, spread_out, write_small

from ultr import plots, propensity
from ultr.data import ClickLog, collapse
from ultr.errors import ConfigError
from ultr.plots.propensity_figure import axis_limits
from ultr.propensity import ESTIMATORS
from ultr.text import ranks_text


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """A log with context columns."""
    return click_log(tmp_path_factory.mktemp("contexts") / "log", sessions=12_000, context=True)


def test_the_command_prints_what_the_function_finds(ultr: Ultr, devices: ClickLog) -> None:
    code, out, _ = ultr("propensity", devices.path, "--no-check", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["goodness_of_fit"] is None
    assert found["log"] == str(devices.path)
    (curve,) = found["propensities"]
    assert curve == json.loads(json.dumps(propensity.conditional_likelihood(devices).to_json()))
    assert set(curve["ranks"][0]) == {
        "rank", "propensity", "standard_error", "interval", "impressions", "compared", "unsupported"
    }  # fmt: skip
    _, text, _ = ultr("propensity", devices.path, "--no-check")
    head, _, first, second, *_ = text.splitlines()
    assert head.split() == ["rank", "propensity", "standard", "error", "95", "%", "interval", "impressions", "compared"]
    assert first.split()[:2] == ["1", "1.0000"]
    assert second.split()[1] == f"{curve['ranks'][1]['propensity']:.4f}"


def test_methods_side_by_side(ultr: Ultr, devices: ClickLog, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    collapse(devices, "rank", directory=counts)
    methods = [word for name in ESTIMATORS for word in ("--method", name)]
    files = ("--out", tmp_path / "curves.csv", "--figure", tmp_path / "curves.png")
    code, text, _ = ultr("propensity", counts, *methods, *files, "--no-check", "--replicates", 50, "--seed", 5)
    assert code == 0
    head, _, first, second, *_ = text.splitlines()
    assert head.split() == ["rank", *ESTIMATORS]
    assert first.split() == ["1"] + ["1.0000"] * len(ESTIMATORS)
    found = propensity.all_pairs(devices, replicates=50, seed=5)
    assert f"{found.value[1]:.4f} ± {found.standard_error[1]:.4f}" in second
    assert "ctr: warning: click rates mix examination" in text
    assert "adjacent-chain: warning: the intervals of all ranks rest on 12 queries" in text
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [name for name in ESTIMATORS for _ in range(4)]
    row = rows[4 * list(ESTIMATORS).index("all-pairs") + 1]
    assert (row["rank"], float(row["propensity"]), float(row["high"])) == ("2", found.value[1], found.interval[1, 1])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    written = tmp_path / "curves.json"
    both = ultr("propensity", counts, "--method", "ctr", "--method", "all-pairs", "--out", written, "--json").json
    assert both == json.loads(written.read_text())
    assert [curve["method"] for curve in both["propensities"]] == ["ctr", "all-pairs"]


def test_curves_per_context(ultr: Ultr, devices: ClickLog, tmp_path: Path) -> None:
    options = ("--context", "device", "--out", tmp_path / "curves.csv", "--figure", tmp_path / "curves.svg")
    code, text, _ = ultr("propensity", devices.path, *options)
    assert code == 0
    assert text.splitlines()[0].split() == ["rank", "device=phone", "device=desk"]
    assert (tmp_path / "curves.csv").read_text().startswith("method,device,rank,propensity")
    drawing = (tmp_path / "curves.svg").read_text()
    assert "device=phone" in drawing
    assert "examination relative to rank 1" in drawing
    code, out, _ = ultr("propensity", devices.path, "--context", "price", "--bins", 2, "--json")
    assert [curve["context"] for curve in json.loads(out)["propensities"]] == [
        {"price": "-2 to 1"}, {"price": "2 to 5"}
    ]  # fmt: skip


def test_what_is_not_known_is_said_and_drawn(ultr: Ultr, tmp_path: Path) -> None:
    rows = [row | {"clicks": [*row["clicks"][:2], 0, row["clicks"][3]]} for row in click_rows(1500)]
    rows = [row | {"ranks": [1, 2, 3, 9]} for row in rows]
    log = write_small(tmp_path / "log", rows)
    code, text, _ = ultr(
        "propensity", log.path, "--method", "all-pairs", "--method", "pivot-one", "--figure", tmp_path / "c.pdf"
    )
    assert code == 0
    assert "all-pairs: rank 3: never clicked: an upper limit only" in text
    assert "pivot-one: ranks 4-8: no document was shown there" in text
    assert text.splitlines()[4].split()[1] == "<"
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    code, out, _ = ultr("propensity", log.path, "--json")
    rank = json.loads(out)["propensities"][0]["ranks"][3]
    assert (rank["propensity"], rank["interval"]) == (None, [None, None])
    assert rank["unsupported"] == "no document was shown there"
    _, text, _ = ultr("propensity", log.path, "--method", "pivot-one")
    assert re.match(r"3 +0\.0000 +- +< 0\.\d{4} ", text.splitlines()[4].strip())


def test_a_split(ultr: Ultr, tmp_path: Path) -> None:
    rows = [row | {"split": "ab"[i % 2]} for i, row in enumerate(click_rows(1000))]
    log = write_small(tmp_path / "log", rows)
    _, out, _ = ultr("propensity", log.path, "--split", "a", "--method", "ctr", "--json")
    found = json.loads(out)
    assert found["split"] == "a"
    part = propensity.ctr(ClickLog.open(log.path, split="a"))
    assert [row["propensity"] for row in found["propensities"][0]["ranks"]] == part.value.tolist()


def test_the_first_ranks_alone(ultr: Ultr, devices: ClickLog, tmp_path: Path) -> None:
    rows = click_rows(6000, context=True)
    short = [row | {name: row[name][:3] for name in ("documents", "ranks", "clicks")} for row in rows]
    log, cut = write_small(tmp_path / "log", rows), write_small(tmp_path / "cut", short)
    for options in (("--method", "all-pairs", "--method", "maximum-likelihood"), ("--context", "device")):
        expected = ultr("propensity", cut.path, *options, "--json").json["propensities"]
        found = ultr("propensity", log.path, *options, "--ranks", 3, "--json").json["propensities"]
        assert found == expected
        assert all([row["rank"] for row in curve["ranks"]] == [1, 2, 3] for curve in found)
        assert ultr("propensity", log.path, *options, "--ranks", 9, "--json").json["propensities"] != expected
    with pytest.raises(ConfigError, match="expected ranks of at least 1, found 0"):
        propensity.contextual(devices, "device", ranks=0)


def test_one_rank_is_an_error_of_the_command(ultr: Ultr, tmp_path: Path) -> None:
    rows = click_rows(300, context=True)
    log = write_small(tmp_path / "log", rows)
    short = [row | {name: row[name][:1] for name in ("documents", "ranks", "clicks")} for row in rows]
    cut = write_small(tmp_path / "cut", short)
    for options in ((), ("--method", "ctr"), ("--context", "device")):
        for path, more, mend in ((log.path, ("--ranks", 1), "Look at more"), (cut.path, (), "lists show more")):
            code, out, err = ultr("propensity", path, *options, *more)
            assert (code, out) == (2, "")
            assert "one rank only: there is nothing to compare. " in err
            assert mend in err


def bad_uses(log: Path, folder: Path) -> Iterator[tuple[tuple[object, ...], str]]:
    yield (folder / "nothing",), "expected the folder of a click log"
    yield (log, "--method", "best"), "unknown method 'best'; known: maximum-likelihood"
    yield (log, "--method", "ctr", "--errors", "query"), "--errors has no effect with --method ctr"
    yield (log, "--replicates", 100), "--replicates has no effect with --method conditional-likelihood"
    yield (log, "--replicates", 10, "--method", "ctr"), "10 is not in the range"
    yield (log, "--ranks", 0), "0 is not in the range"
    yield (log, "--bins", 3), "--bins has no effect without --context"
    yield (log, "--context", "device", "--method", "all-pairs"), "--context goes with --method maximum-likelihood or"
    yield (log, "--context", "wind"), "expected a context column 'wind'"
    yield (log, "--out", folder / "table.txt"), "a file --out that ends in .csv, .json"
    yield (log, "--figure", folder / "table.csv"), "a file --figure that ends in .png, .svg, .pdf"
    yield (log, "--out", folder / "none" / "table.csv"), "is no folder: make it"
    yield (log, "--split", "test"), "prepared without splits"
    yield (folder / "counts", "--split", "a"), "found counts, which have none"
    yield (folder / "counts", "--context", "device"), "expected a ClickLog, found Counts"


def test_bad_use_is_one_line(ultr: Ultr, devices: ClickLog, tmp_path: Path) -> None:
    collapse(devices, "rank", directory=tmp_path / "counts")
    for arguments, message in bad_uses(devices.path, tmp_path):
        code, out, err = ultr("propensity", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["counts"]


def test_figures_need_matplotlib(
    ultr: Ultr, devices: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = ultr(
        "propensity", devices.path, "--figure", tmp_path / "curves.png", "--out", tmp_path / "curves.csv"
    )
    assert code == 2
    assert "pip install matplotlib" in err
    assert list(tmp_path.iterdir()) == []
    assert ultr("propensity", devices.path)[0] == 0


def test_a_figure_of_one_rank_and_of_nothing(tmp_path: Path) -> None:
    one = propensity.ctr(counted(np.arange(50), np.ones(50), np.full(50, 9), np.full(50, 3), np.arange(50)))
    none = propensity.ctr(spread_out(clicks={1: 0}))
    for name, curve in {"one": one, "none": none}.items():
        plots.save_figure(plots.propensities({"ctr": curve}), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    plots.save_figure(plots.propensities({"ctr": none}), tmp_path / "none.svg")
    assert "ranks 2-3: rank 1, which they are" in (tmp_path / "none.svg").read_text()
    plots.save_figure(plots.propensities({"ctr": none, "one": propensity.ctr(spread_out())}), tmp_path / "both.svg")
    assert "ctr has no values. rank 1: never clicked" in (tmp_path / "both.svg").read_text()


def test_figures_hold_values_without_intervals() -> None:
    counts = counted([0, 0], [1, 2], [10_000, 10_000], [4000, 20], [7])
    curve = propensity.ctr(counts)
    assert np.isnan(curve.interval[1]).all()
    low, high = axis_limits({"ctr": curve})
    assert low < curve.value[1] < 1 < high


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([3], "rank 3"),
        ([], "no rank"),
        ([3, 4], "ranks 3-4"),
        ([2, 3, 4], "ranks 2-4"),
        ([1, 3, 4, 5, 9], "ranks 1, 3-5, 9"),
        ([2, 4], "ranks 2, 4"),
    ],
)
def test_ranks_in_words(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text

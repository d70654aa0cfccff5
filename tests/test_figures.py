"""Figures of calibration and of studies: what is drawn is what was found, and bad use ends before any work."""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from conftest import ROOT, Ultr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from narrowing import present
from stored import documents_table, make_rows, plain, write_log
from studies import write_small_collection

from ultr import models, plots, towers
from ultr.errors import ConfigError
from ultr.evaluation import Estimate, calibration
from ultr.evaluation.click_calibration import Calibration, CalibrationBins
from ultr.plots.calibration_figure import rank_groups, root_ticks
from ultr.study import collect_results, read_study, run_study
from ultr.training import save

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def marked(axes: Any) -> list[Any]:
    """The lines of points, in the order drawn."""
    return [line for line in axes.lines if line.get_marker() not in ("None", None, "")]


def bars(axes: Any) -> np.ndarray:
    """[N, 2, 2] both ends of every interval."""
    return np.array([part for lines in axes.collections for part in lines.get_segments()])


def test_no_module_imports_matplotlib_before_it_draws() -> None:
    names = "propensity, evaluate, compare"
    modules = "style, propensities, calibration_figure, comparison_figure"
    imports = f"from ultr.cli import {names}; from ultr.plots import {modules}, calibration, comparison"
    code = f"import sys; {imports}; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_figure_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    figure = Figure()
    figure.text(0, 0, "$\\nonsense$")  # fails when it is drawn
    with pytest.raises(ValueError, match="nonsense"):
        plots.save_figure(figure, tmp_path / "old.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old.png", b"old")]


# Calibration.


def cells(
    rank: list[int], predicted: list[float], clicks: list[int], count: list[int], binned: bool = False
) -> CalibrationBins:
    numbers = {"predicted": predicted, "count": count, "observed": np.divide(clicks, count)}
    arrays = {name: np.array(values, float) for name, values in numbers.items()}
    bins = np.arange(len(rank)) if binned else None
    error = Estimate.of(0.03, 0.01, count=sum(count))
    nothing = np.zeros(len(rank))
    return CalibrationBins(
        rank=np.array(rank),
        bin=bins,
        low=nothing,
        high=nothing,
        standard_error=nothing,
        error=error,
        floor=0.007,
        excess=1.0,
        **arrays,
    )


def score_interval(clicks: int, count: int) -> list[float]:
    """The chances p at which |clicks / count - p| is 1.96 of its standard deviations: roots of a quadratic equation."""
    z, observed = 1.959963984540054, clicks / count
    found = np.roots([1 + z**2 / count, -(2 * observed + z**2 / count), observed**2])
    return sorted(found.real.tolist())


def test_calibration_by_rank_is_drawn_with_its_intervals() -> None:
    clicks, count = [40, 0, 30], [100, 50, 30]
    found = cells([1, 2, 4], [0.35, 0.02, 0.9], clicks, count)
    figure = plots.calibration(Calibration(found, cells([1], [0.3], [1], [4], binned=True)))
    axes = figure.axes[0]
    predicted, observed = marked(axes)
    assert predicted.get_xydata().tolist() == [[1, 0.35], [2, 0.02], [4, 0.9]]
    assert observed.get_xydata().tolist() == [[1, 0.4], [2, 0.0], [4, 1.0]]
    expected = [score_interval(k, n) for k, n in zip(clicks, count, strict=True)]
    drawn = bars(axes)
    assert drawn[:, :, 0].tolist() == [[1, 1], [2, 2], [4, 4]]
    np.testing.assert_allclose(drawn[:, :, 1], expected, atol=1e-9)
    assert drawn[1, 0, 1] == 0 < drawn[1, 1, 1]  # no click at all: an upper end alone
    assert drawn[2, 0, 1] < 1 == drawn[2, 1, 1]
    low, high = axes.get_ylim()
    assert low == 0
    assert high > 1
    assert [text.get_text() for text in present(axes.get_legend()).get_texts()] == ["predicted", "observed"]
    reach = 0.03 - Estimate.of(0.03, 0.01, count=180).interval[0]
    title = (
        f"by rank: calibration error 0.0300\n(95 %: {0.03 - reach:.4f} to {0.03 + reach:.4f}), luck alone would give"
    )
    assert axes.get_title(loc="left") == f"{title} 0.0070"


def test_calibration_by_prediction_has_a_line_per_group_of_ranks_and_the_diagonal() -> None:
    rank, predicted, clicks, count = [1, 1, 3], [0.1, 0.5, 0.2], [20, 60, 9], [100, 100, 36]
    by_rank = cells([1, 3], [0.3, 0.2], [80, 9], [200, 36])
    figure = plots.calibration(Calibration(by_rank, cells(rank, predicted, clicks, count, binned=True)))
    _, axes = figure.axes
    first, third = marked(axes)
    assert first.get_xydata().tolist() == [[0.1, 0.2], [0.5, 0.6]]
    assert third.get_xydata().tolist() == [[0.2, 0.25]]
    assert (first.get_label(), third.get_label()) == ("rank 1", "rank 3")
    expected = [score_interval(k, n) for k, n in zip(clicks, count, strict=True)]
    np.testing.assert_allclose(bars(axes)[:, :, 1], expected, atol=1e-12)
    assert bars(axes)[:, 0, 0].tolist() == predicted
    # Rank 1 at the dark end of the map, the last rank at a tone that is still seen on white.
    viridis = mpl.colormaps["viridis"]
    assert to_hex(first.get_color()) == to_hex(viridis(0.0))
    assert to_hex(third.get_color()) == to_hex(viridis(0.88))
    assert (first.get_marker(), third.get_marker()) == ("o", "s")  # told apart in grey, too
    assert [text.get_text() for text in present(axes.get_legend()).get_texts()] == ["rank 1", "rank 3"]
    (diagonal,) = [line for line in axes.lines if line not in (first, third)]
    assert np.asarray(diagonal.get_xydata()).tolist() == [[0, 0], [1, 1]]
    assert axes.get_xlim() == axes.get_ylim()
    # Square roots: a quarter of the way along the scale is a sixteenth of its top.
    top = axes.get_xlim()[1]
    ends = axes.transAxes.inverted().transform(axes.transData.transform([[top / 16, top / 4]]))
    assert ends[0] == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize("top", [1e-5, 0.004, 0.07, 0.3, 0.85, 1.02])
def test_ticks_are_round_and_apart(top: float) -> None:
    found = np.array(root_ticks(top))
    assert found[0] == 0
    assert 3 < len(found) < 12
    assert 0.3 * top < found[-1] <= top
    assert np.diff(np.sqrt(found)).min() >= 0.084 * math.sqrt(top)
    for value in found[1:].tolist():
        assert float(f"{value:.0e}") == value


def test_neighbouring_ranks_and_bins_of_few_clicks_are_joined() -> None:
    """Twenty-five ranks of ten bins: six lines of few points, whose impressions and clicks are those of the bins."""
    ranks, bins = 25, 10
    rank, number = (x.ravel().tolist() for x in np.mgrid[1 : ranks + 1, 1 : bins + 1])
    predicted = [b / bins / r for r, b in zip(rank, number, strict=True)]
    count = [1000 + 10 * b for b in number]
    clicks = [round(p * n * 0.8) for p, n in zip(predicted, count, strict=True)]
    found = cells(rank, predicted, clicks, count, binned=True)
    groups = rank_groups(found)
    names = ["rank 1", "rank 2", "ranks 3-5", "ranks 6-10", "ranks 11-20", "ranks 21-25"]
    assert [group.name for group in groups] == names
    assert all(3 <= len(group.count) <= 9 for group in groups)
    assert all((group.count * group.observed >= 19.9).all() for group in groups)
    assert all((np.diff(group.predicted) > 0).all() for group in groups)
    for group, own in zip(groups, ([1], [2], [3, 4, 5], range(6, 11), range(11, 21), range(21, 26)), strict=True):
        inside = np.isin(found.rank, own)
        assert group.count.sum() == found.count[inside].sum()
        for name in ("observed", "predicted"):
            total = (getattr(found, name) * found.count)[inside].sum()
            assert (getattr(group, name) * group.count).sum() == pytest.approx(total)
    few = rank_groups(cells([1, 1, 1], [0.1, 0.2, 0.3], [1, 1, 1], [10, 10, 10], binned=True))
    assert (few[0].count.tolist(), few[0].observed.tolist()) == ([30], [0.1])
    figure = plots.calibration(Calibration(found, found))
    assert len({line.get_marker() for line in marked(figure.axes[1])}) == 6


def test_a_model_of_one_rank_has_no_scale_of_ranks() -> None:
    one = cells([1], [0.3], [3], [10])
    one = dataclasses.replace(one, error=Estimate(0.1, math.nan, (math.nan, math.nan), 10))
    figure = plots.calibration(Calibration(one, one))
    left, right = figure.axes
    assert left.get_title(loc="left") == "by rank: calibration error 0.1000\nluck alone would give 0.0070"
    assert marked(right)[0].get_xydata().tolist() == [[0.3, 0.3]]
    assert left.get_xlim() == (0.4, 1.6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A run, its log, and the model."""
    folder = tmp_path_factory.mktemp("calibration")
    log = write_log(folder / "log", plain(make_rows(60, length=3)), documents=documents_table())
    model = models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(log.ranks))
    save(model, folder / "run", extra={"vocabulary": log.vocabulary.identity})
    return folder / "run", log, model


def test_evaluate_draws_the_calibration(ultr: Ultr, trained: Any, tmp_path: Path) -> None:
    run, log, model = trained
    file = tmp_path / "calibration.svg"
    code, _, err = ultr("evaluate", run, log.path, "--metrics", "log_likelihood", "--calibration", "--figure", file)
    assert code == 0, err
    found = calibration(model, log)
    for which in (found.by_rank, found.by_prediction):
        assert f"calibration error {which.error.value:.4f}" in file.read_text()
        assert f"luck alone would give {which.floor:.4f}" in file.read_text()
    for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        plots.save_figure(plots.calibration(found), file.with_suffix(f".{ending}"))
        assert file.with_suffix(f".{ending}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_log_of_one_rank_is_drawn(tmp_path: Path) -> None:
    rows = [row | {"ranks": [1]} for row in plain(make_rows(40, length=1))]
    log = write_log(tmp_path / "log", rows, documents=documents_table())
    model = models.PBM(relevance=towers.DocumentTable(log.documents), examination=towers.RankTable(log.ranks))
    found = calibration(model, log)
    assert found.by_rank.rank.tolist() == [1]
    plots.save_figure(plots.calibration(found), tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text()
    assert f"calibration error {found.by_rank.error.value:.4f}" in text
    assert ">rank 1<" not in text


def test_bad_use_of_evaluate_ends_before_any_work(ultr: Ultr, trained: Any, tmp_path: Path) -> None:
    run, log, _ = trained
    (tmp_path / "folder.png").mkdir()
    for options, said in (
        (("--figure", tmp_path / "c.png"), "--figure draws the calibration: add --calibration, or leave --figure out"),
        (("--calibration", "--figure", tmp_path / "c.gif"), "expected a file --figure that ends in .png, .svg, .pdf"),
        (("--calibration", "--figure", tmp_path / "no" / "c.png"), "is no folder: make it before writing c.png there"),
        (("--calibration", "--figure", tmp_path / "folder.png"), "expected a file --figure, found the folder"),
    ):
        for folder in (run, tmp_path / "no run"):  # told before the run is opened
            code, out, err = ultr("evaluate", folder, log.path, *options)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("words", [("evaluate", "run", "log", "--calibration"), ("compare", "study", "--out", "out")])
def test_figures_need_matplotlib(
    ultr: Ultr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    code, _, err = ultr(*words, "--figure", "figure.png")
    assert code == 2
    assert "pip install matplotlib" in err
    assert list(tmp_path.iterdir()) == []


# Studies.

STUDY = """
seeds = [0]
diagnose = false
metrics = ["ndcg@5", "mrr@5"]
baseline = "naive"
reference = "grades"
valid_share = 0.3
[data]
collection = "collection"
train = "train"
vali = "vali"
test = "test"
[[log]]
name = "varied"
user = "pbm"
policy = "linear"
temperature = 1.0
sessions = 400
ranks = 4
[[log]]
name = "fixed"
user = "pbm"
policy = "linear"
temperature = 0.0
sessions = 400
ranks = 4
[defaults]
relevance = "linear"
epochs = 1
[[method]]
model = "logger"
[[method]]
model = "random"
[[method]]
model = "naive"
[[method]]
model = "ips-listwise"
[[method]]
name = "grades"
model = "full-information"
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a study of which all runs are made, and their results; one method fails on the second log."""
    folder = tmp_path_factory.mktemp("study")
    write_small_collection(folder / "collection")
    (folder / "study.toml").write_text(STUDY)
    study = read_study(folder / "study.toml")
    run_study(study, folder / "out")
    return folder, collect_results(study, folder / "out")


def one_panel(results: dict[str, Any], lines: tuple[str, ...] = ()) -> tuple[Figure, Any]:
    figure = plots.comparison(results, lines)
    return figure, figure.axes[0]


def only(results: dict[str, Any], log: int) -> dict[str, Any]:
    return results | {"logs": [copy.deepcopy(results["logs"][log])]}


def row_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in results["logs"][0]["methods"] if row["name"] == name)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


@pytest.mark.slow
def test_methods_stand_by_their_mean_with_their_intervals(studied: Any) -> None:
    results = only(studied[1], 0)
    figure, axes = one_panel(results, ("logger", "grades"))
    best_first = sorted(results["logs"][0]["methods"], key=lambda row: -row["metrics"]["ndcg@5"]["value"])
    assert len(best_first) == 5
    assert [label.get_text() for label in axes.get_yticklabels()] == [row["name"] for row in best_first]
    found = [row["metrics"]["ndcg@5"] for row in best_first]
    assert [line.get_xydata().tolist() for line in marked(axes)] == [[[f["value"], i]] for i, f in enumerate(found)]
    expected = [[[low, i], [high, i]] for i, (low, high) in enumerate(f["interval"] for f in found)]
    assert bars(axes).tolist() == expected
    bottom, top = axes.get_ylim()
    assert bottom > 4
    assert top < 0  # the best on top
    assert axes.get_title(loc="left") == "varied"
    assert axes.get_xlabel() == ""
    assert figure.get_supxlabel().startswith("ndcg@5: mean over queries with its 95 % interval\n(tests are paired")
    lines = [line for line in axes.lines if line not in marked(axes)]
    assert [line.get_xdata()[0] for line in lines] == [
        row_of(results, name)["metrics"]["ndcg@5"]["value"] for name in ("logger", "grades")
    ]
    assert legend(figure)[-3:] == ["naive, the baseline", "logger", "grades"]


@pytest.mark.slow
def test_marks_say_what_the_tests_say(studied: Any) -> None:
    results = only(studied[1], 0)
    for name, p in (("logger", 0.0499), ("random", 0.05), ("grades", None), ("ips-listwise", 1e-9)):
        row_of(results, name)["difference"]["ndcg@5"]["holm_t"] = p
        row_of(results, name)["difference"]["mrr@5"]["holm_t"] = 0.0  # of another metric: of no concern
    figure, axes = one_panel(results)
    names = [label.get_text() for label in axes.get_yticklabels()]
    looks = {
        name: (line.get_marker(), to_hex(line.get_color()), to_hex(line.get_markerfacecolor()))
        for name, line in zip(names, marked(axes), strict=True)
    }
    blue, orange, grey = "#0072b2", "#d55e00", "#888888"
    assert looks == {
        "logger": ("o", blue, blue),
        "ips-listwise": ("o", blue, blue),
        "random": ("o", blue, "#ffffff"),
        "naive": ("s", orange, orange),
        "grades": ("d", grey, grey),
    }
    assert legend(figure) == [
        "differs from naive (p < 5 %, paired t test, Holm)", "no such difference", "naive, the baseline", "not tested"
    ]  # fmt: skip


@pytest.mark.slow
def test_failed_methods_are_named_below(studied: Any) -> None:
    results = only(studied[1], 1)
    assert "unidentified" in row_of(results, "ips-listwise")["errors"][0]
    _, axes = one_panel(results)
    assert "ips-listwise" not in [label.get_text() for label in axes.get_yticklabels()]
    assert len(marked(axes)) == 4
    assert axes.get_xlabel() == "without a value: ips-listwise"


@pytest.mark.slow
def test_missing_seeds_are_said_where_they_differ(studied: Any) -> None:
    results = only(studied[1], 0) | {"seeds": [0, 1]}
    for row in results["logs"][0]["methods"]:
        row["seeds"] = [1] if row["name"] == "random" else [0, 1]
    _, axes = one_panel(results)
    assert axes.get_title(loc="left") == "varied"
    labels = {label.get_text() for label in axes.get_yticklabels()}
    assert labels == {"logger", "naive", "ips-listwise", "grades", "random (1 of 2 seeds)"}
    for row in results["logs"][0]["methods"]:
        row["seeds"] = [0]
    _, axes = one_panel(results)
    assert axes.get_title(loc="left") == "varied (1 of 2 seeds)"
    assert "random" in {label.get_text() for label in axes.get_yticklabels()}


@pytest.mark.slow
def test_without_a_baseline_or_any_value(studied: Any, tmp_path: Path) -> None:
    results = only(studied[1], 0) | {"baseline": None}
    for row in results["logs"][0]["methods"]:
        row.pop("difference", None)
    row_of(results, "random")["metrics"]["ndcg@5"]["interval"] = [None, None]  # as of one query
    figure, axes = one_panel(results)
    assert {line.get_marker() for line in marked(axes)} == {"d"}
    assert len(bars(axes)) == 4
    assert legend(figure) == []
    assert "\n" not in figure.get_supxlabel()
    for row in results["logs"][0]["methods"]:
        row.pop("metrics")
    figure, axes = one_panel(results, ("logger",))
    assert [text.get_text() for text in axes.texts] == ["no method has a ndcg@5"]
    assert marked(axes) == []
    plots.save_figure(plots.comparison(results, ("logger",)), tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(("logs", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (18, 3, 6)])
def test_panels_share_a_scale_and_grow_with_their_number(studied: Any, logs: int, columns: int, rows: int) -> None:
    base = studied[1]
    results = base | {"logs": [base["logs"][i % 2] | {"name": f"log {i}"} for i in range(logs)]}
    figure = plots.comparison(results)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [f"log {i}" for i in range(logs)]
    assert present(shown[0].get_gridspec()).get_geometry() == (rows, columns)
    assert {axes.get_xlim() for axes in shown} == {shown[0].get_xlim()}
    wide, high = figure.get_size_inches()
    assert wide >= 2.9 * columns
    assert high >= rows * 5 * 0.185
    many = copy.deepcopy(results)
    for log in many["logs"]:
        log["methods"] = [row | {"name": f"{row['name']} {i}"} for i in range(6) for row in log["methods"]]
    more = plots.comparison(many).get_size_inches()[1] - high
    assert more >= rows * 20 * 0.185


@pytest.mark.slow
def test_compare_draws_what_it_made(ultr: Ultr, studied: Any) -> None:
    folder, _ = studied
    file = folder / "out" / "study.svg"
    code, _, err = ultr("compare", folder / "study.toml", "--out", folder / "out", "--figure", file)
    assert code == 0, err
    assert "0 runs made" in err
    text = file.read_text()
    for said in ("varied", "fixed", "without a value: ips-listwise", "naive, the baseline", ">logger<", ">grades<"):
        assert said in text, said
    # The figure stands among the study's files without being in the way of the next call.
    assert ultr("compare", folder / "study.toml", "--out", folder / "out")[0] == 0


@pytest.mark.slow
def test_bad_use_of_compare_ends_before_any_work(ultr: Ultr, studied: Any, tmp_path: Path) -> None:
    folder, _ = studied
    out = tmp_path / "new"
    for file, said in (("c.gif", "ends in .png, .svg, .pdf"), ("no/c.png", "is no folder: make it before writing")):
        code, _, err = ultr("compare", folder / "study.toml", "--out", out, "--figure", tmp_path / file)
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
    assert list(tmp_path.iterdir()) == []
    plots.check_figure(out / "c.png", made=out)  # the command makes that folder
    with pytest.raises(ConfigError, match="is no folder"):
        plots.check_figure(out / "c.png")


def test_a_study_without_graded_lists_has_nothing_to_draw(ultr: Ultr, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        f'seeds = [0]\n[[log]]\nname = "real"\npath = "{trained[1].path}"\n[[method]]\nmodel = "pbm"\n'
    )
    code, _, err = ultr("compare", tmp_path / "study.toml", "--out", tmp_path / "o", "--figure", tmp_path / "c.png")
    assert code == 2
    assert "the study has no 'test' lists: leave --figure out" in err
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]

"""What the commands say about frequent mistakes: the option to change, in terms of the command line."""

from __future__ import annotations

import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Ultr
from raw_logs import HEADER, ROWS, left, prepare_log, write
from test_views import in_file, views_of_users

from ultr import cli, stopping
from ultr.cli.keeping import says_what_is_kept
from ultr.data.input_schema import InputSchema
from ultr.errors import ConfigError, DataError
from ultr.evaluation.metrics import parse_metric
from ultr.ingest import prepare
from ultr.models import PBM
from ultr.towers import Constant, RankTable
from ultr.training import save

MANY = "".join(f"s{s},q{s % 3},d{r},{r},{(s + r) % 2}\n" for s in range(40) for r in (1, 2, 3))

# options of `ultr prepare log.csv` -> what the error says
OPTIONS = {
    "column of another format": (("--action", "kind"), "--action has no meaning with the format 'table'"),
    "number of features": (("--features", 5), "--feature COLUMN"),
    "scale without grades": (("--max-grade", 3), "--max-grade (in Python: max_grade) has no effect"),
    "memory in words": (("--memory-limit", "lots"), "such as 4GB or 500MiB, found 'lots'"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_named_as_it_was_given(tmp_path: Path, ultr: Ultr, name: str) -> None:
    options, message = OPTIONS[name]
    code, _, err = ultr("prepare", write(tmp_path / "log.csv", ROWS), "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert "Parser" not in err
    assert left(tmp_path) == ["log.csv"]


def test_a_grade_above_the_scale_names_the_option(tmp_path: Path, ultr: Ultr) -> None:
    raw = write(tmp_path / "log.csv", "s,q,a,1,1,3\n", HEADER + ",label")
    code, _, err = ultr("prepare", raw, "--out", tmp_path / "out", "--max-grade", 2)
    assert code == 2
    assert "expected grades of at most 2, the highest of the scale, found 3 of document 'a' of query 'q'" in err
    assert "--max-grade (in Python: max_grade)" in err


@pytest.mark.parametrize("kind", ["xz", "zip"])
@pytest.mark.parametrize("format", ["table", "yandex"])
def test_a_compression_that_is_not_read_is_named(tmp_path: Path, kind: str, format: str) -> None:
    path = tmp_path / f"log.csv.{kind}"
    if kind == "xz":
        path.write_bytes(lzma.compress(f"{HEADER}\n{ROWS}".encode()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("log.csv", f"{HEADER}\n{ROWS}")
    with pytest.raises(DataError, match=f"gzip, bzip2, zstd or lz4, found a file compressed with {kind}") as caught:
        prepare(path, tmp_path / "out", format=format)
    assert ("unzip" if kind == "zip" else "xz -d") in str(caught.value)
    with pytest.raises(DataError, match=f"compressed with {kind}"):
        prepare(write(tmp_path / "log.csv", ROWS), tmp_path / "out", labels=path)


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("1\t0\tQ\tq\t0\ta\tb\n1\t3\tC\ta\n", "yandex"),
        ("1\t0\tQ\tq\t0\ta\ta\n1\t3\tC\ta\n", "yandex"),
        ("2 qid:1 1:.5 2:3 # d1\n", "letor"),
        ("0 qid:1 1:.5 2:3\n", "letor"),
        ("q1 0 d3 2\n", "qrels"),
        ('{"action_name": "impression", "query_id": "Q"}\n', "ubi"),
    ],
)
def test_a_file_of_another_format_is_recognised(tmp_path: Path, text: str, format: str) -> None:
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(DataError, match=f"Add --format {format} ") as caught:
        prepare(tmp_path / "log.txt", tmp_path / "out")
    assert len(str(caught.value)) < 300


def test_a_table_that_lacks_a_column_is_still_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a column 'click'") as caught:
        prepare(write(tmp_path / "log.csv", "s,q,a,1\n", "session,query,document,rank"), tmp_path / "out")
    assert "--format" not in str(caught.value)


def test_all_values_of_a_field_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    rows = "s,q,a,one,0\ns,q,b,2,0\nt,q,a,0,0\nt,q,b,one,0\nu,q,a,,0\n"
    with pytest.raises(
        DataError, match=r"found 'one' \(4 rows have such a value there, such as 'one', '0'\)"
    ) as caught:
        prepare(write(tmp_path / "log.csv", rows), tmp_path / "out")
    assert caught.value.row == 2
    with pytest.raises(DataError) as caught:
        prepare(
            write(tmp_path / "log.csv", rows.replace("one", "1", 1).replace("one", "2").replace(",,", ",1,")),
            tmp_path / "o",
        )
    assert "rows have such" not in str(caught.value)


def test_all_missing_columns_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(write(tmp_path / "log.csv", "s,q,a,1,0\n", "visit,q,document,place,click"), tmp_path / "out")
    text = str(caught.value)
    assert "expected the columns 'session', 'query', 'rank', found the columns" in text
    assert "Name them with --session COLUMN and --query COLUMN and --rank COLUMN" in text
    grades = write(tmp_path / "grades.csv", "q,1\n", "query,price")
    with pytest.raises(DataError, match="expected 'query iteration document grade'"):
        prepare(grades, tmp_path / "out", format="qrels")
    with pytest.raises(DataError, match=r"a column for the query, one of .*, and a column for the document, one of"):
        prepare(
            tmp_path / "log.csv",
            tmp_path / "out",
            columns={"session": "visit", "query": "q", "rank": "place"},
            labels=pq_table(tmp_path / "grades.parquet", price=[1], label=[1]),
        )


def pq_table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("train", "RAW", "--out", "OUT"), "ultr prepare RAW --out log"),
        (("diagnose", "RAW"), "ultr prepare RAW --out log"),
        (("propensity", "RAW"), "ultr prepare RAW --out log"),
    ],
)
def test_a_raw_file_is_to_be_prepared_first(tmp_path: Path, ultr: Ultr, arguments: Any, command: str) -> None:
    raw = write(tmp_path / "log.csv", ROWS)
    places = {"RAW": raw, "OUT": tmp_path / "out"}
    code, _, err = ultr(*(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert "found a file. Prepare it first: `" + command.replace("RAW", str(raw)) in err


LETOR = "2 qid:1 1:0.5 2:0.1 # docid = a\n1 qid:1 1:0.2\n"
GRADES = "query,document,label\nshoes,a,2\nshoes,b,0\n"


@pytest.mark.parametrize(
    ("text", "arguments", "hint"),
    [
        (GRADES, ("evaluate", "RUN", "RAW"), "Prepare it first: `ultr prepare RAW --format qrels --out collection`"),
        (GRADES.replace(",", "\t"), ("simulate", "RAW", "--out", "OUT"), "--format qrels --out collection`"),
        (
            GRADES.replace("label", "label,price").replace(",2", ",2,7"),
            ("evaluate", "RUN", "RAW"),
            "price are not kept",
        ),
        (GRADES, ("train", "RAW", "--out", "OUT"), "It looks like grades, of which clicks can only be simulated"),
        (LETOR, ("simulate", "RAW", "--out", "OUT"), "Prepare it first: `ultr prepare RAW --format letor --out coll"),
        ("1 0 a 2\n1 0 b 1\n", ("simulate", "RAW", "--out", "OUT"), "`ultr prepare RAW --format qrels --out coll"),
        (f"{HEADER}\n{ROWS}", ("simulate", "RAW", "--out", "OUT"), "It does not look like graded lists"),
        (LETOR, ("diagnose", "LOG", "--candidates", "RAW"), "`ultr prepare RAW --format letor --out collection`"),
        (GRADES, ("prepare", "RAW", "--out", "OUT"), "--format qrels makes a collection of it, and --labels FILE"),
    ],
)
def test_hints_go_by_the_first_line_of_a_file(tmp_path: Path, ultr: Ultr, text: str, arguments: Any, hint: str) -> None:
    raw, log = tmp_path / "raw.txt", tmp_path / "log"
    raw.write_text(text)
    places = {"RAW": raw, "OUT": tmp_path / "out", "LOG": log, "RUN": tmp_path / "run"}
    if "LOG" in arguments:
        prepare(write(tmp_path / "log.csv", ROWS), log)
    if "RUN" in arguments:
        save(PBM(relevance=Constant(0.0), examination=RankTable(3)), tmp_path / "run" / "model")
    code, _, err = ultr(*(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert hint.replace("RAW", str(raw)) in err


def test_swapped_arguments_of_evaluate(tmp_path: Path, ultr: Ultr) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    prepare(write(tmp_path / "log.csv", ROWS), log)
    (run / "model").mkdir(parents=True)
    code, _, err = ultr("evaluate", log, run)
    assert code == 2
    assert f"found them swapped: give `ultr evaluate {run} {log}`" in err
    code, _, err = ultr("evaluate", log, log)
    assert code == 2
    assert "found prepared data. Train one with `ultr train" in err


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("ndgc@10", "ndcg@10"), ("ndgc", "ndcg"), ("NDCG@5", "ndcg@5"), ("perplxity/rank-3", "perplexity/rank-3")],
)
def test_a_suggested_metric_keeps_the_cutoff(name: str, suggested: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"(did you mean '{suggested}'?)")):
        parse_metric(name)


def test_no_features_are_called_none() -> None:
    with pytest.raises(DataError, match=r"reads the features \(price\), found none; missing: \(price\)"):
        InputSchema(("price",)).match(InputSchema(), required={"features"}, name="data", file=None)


def test_lists_are_called_lists(tmp_path: Path, ultr: Ultr) -> None:
    raw = write(tmp_path / "log.csv", "s,q,a,1,0\ns,p,a,1,1\nt,q,a,1,0\n")
    code, out, _ = ultr("prepare", raw, "--out", tmp_path / "out")
    assert code == 0
    assert {"lists: 3", "sessions: 2"} < {line.strip() for line in out.splitlines()}
    made = ultr("prepare", raw, "--out", tmp_path / "again", "--json").json
    assert (made["sessions"], made["lists"], made["distinct_sessions"]) == (3, 3, 2)


def test_the_counts_of_views_say_what_they_count(tmp_path: Path, ultr: Ultr) -> None:
    page = "".join(f"s{i},q,{d},{r},0,{t}\n" for i in range(9) for t in (1, 500) for r, d in ((1, "a"), (2, "b")))
    raw = write(tmp_path / "log.csv", page, f"{HEADER},time")
    code, out, _ = ultr("prepare", raw, "--out", tmp_path / "out")
    assert code == 0
    lines = {line.strip() for line in out.splitlines()}
    assert "views: queries of a session with several lists: 9" in lines
    assert "views: queries of a session whose repeated ranks time explains, as views or copies: 9" in lines


@pytest.mark.parametrize("timed", [False, True])
def test_a_time_that_was_read_is_not_asked_for(tmp_path: Path, timed: bool) -> None:
    table = views_of_users(200, again=1.0).drop_columns(["view", "time"])
    table = table.take(np.random.default_rng(0).permutation(len(table)))
    if timed:
        table = table.append_column("time", pa.array(np.full(len(table), 7.0)))
    with pytest.raises(DataError, match="--view COLUMN") as caught:
        prepare(in_file(tmp_path, table), tmp_path / "out")
    assert ("--time" in str(caught.value)) != timed
    assert ("times that are the same within a view" in str(caught.value)) == timed


@pytest.mark.parametrize(("document", "found"), [("other", "stand at a rank"), (None, "dropped as copies")])
def test_few_dropped_rows_are_told(tmp_path: Path, document: str | None, found: str) -> None:
    table = views_of_users(500, again=0.0).drop_columns(["view", "time"])
    row = table.slice(2, 1)
    if document is not None:
        row = row.set_column(2, "document", pa.array([document]))
    log = prepare_log(in_file(tmp_path, pa.concat_tables([table, row])), tmp_path / "out")
    [warning] = log.metadata["report"]["warnings"]
    assert warning.startswith("1 ")
    assert found in warning


def test_the_sentences_about_pages_are_short(tmp_path: Path) -> None:
    log = prepare_log(write(tmp_path / "log.csv", "s,q,a,1,1\ns,q,b,2,0\ns,q,c,1,1\ns,q,d,2,0\n"), tmp_path / "log")
    [warning] = log.metadata["report"]["warnings"]
    assert "1 of 2 lists" in warning
    assert max(len(sentence.split()) for sentence in warning.split(". ")) <= 25


def test_a_finished_run_says_that_nothing_was_trained(tmp_path: Path, ultr: Ultr) -> None:
    prepare(write(tmp_path / "log.csv", MANY), tmp_path / "log")
    train = ("train", tmp_path / "log", "--out", tmp_path / "run", "--valid-fraction", 0, "--epochs")
    assert "nothing was trained" not in ultr(*train, 2).err
    code, _, err = ultr(*train, 2, "--resume")
    assert code == 0
    assert "nothing was trained: the run in" in err
    assert "had ended after 2 epochs" in err
    longer = ultr(*train, 3, "--resume", "--json")
    assert "nothing was trained" not in longer.err
    assert [epoch["epoch"] for epoch in longer.json["history"]] == [1, 2, 3]


# parts of a run -> what an interrupted training says
KEPT = {
    (): "Nothing of this training was kept",
    ("state",): "Continue with --resume",
    ("state", "model"): "--resume writes them",
    ("model",): "may be missing",
}


@pytest.mark.parametrize("parts", KEPT)
def test_an_interrupted_training_says_what_is_kept(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        (tmp_path / part).mkdir()
        (tmp_path / part / "meta.json").touch()
    with pytest.raises(KeyboardInterrupt) as stop, says_what_is_kept(tmp_path):
        raise KeyboardInterrupt
    [note] = stop.value.__notes__
    assert note.endswith(KEPT[parts])
    told = KeyboardInterrupt()
    told.add_note("told")
    with pytest.raises(KeyboardInterrupt), says_what_is_kept(tmp_path):
        raise told
    assert told.__notes__ == ["told"]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_interrupted_command_says_what_is_kept(
    tmp_path: Path, ultr: Ultr, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise stopping.Stopped(2)

    command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    monkeypatch.setattr(command, "invoke", stopped)
    needed = {"demo": (), "compare": ("x", "--out", "y"), "evaluate": ("x", "y"), "diagnose": ("x",)}
    code, _, err = ultr(
        name, *needed.get(name, ("x",)), *(["--out", "y"] if name in ("prepare", "simulate", "train") else [])
    )
    assert code == 130
    assert re.fullmatch(r"ultr: error: interrupted\. (Nothing was written|The runs that had ended).*", err.strip())

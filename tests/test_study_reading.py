"""Studies in TOML: clear answers to mistakes, paths, options."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import STUDY, study_text

from ultr.errors import ConfigError
from ultr.study import METHODS, read_study
from ultr.study.reading import log_options
from ultr.study.runs import run_digest, study_runs
from ultr.study.settings import takes_setting

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [0, 1]", "seed = [0, 1]", "the top level: unknown key 'seed' (did you mean 'seeds'?)"),
        ("seeds = [0, 1]", "seeds = [0.5]", "'seeds' should be of kind list of int, found [0.5]"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "expected different seeds"),
        ('vali = "vali"', 'valid = "vali"', "[data]: unknown key 'valid' (did you mean 'vali'?)"),
        ('vali = "vali"', "", "learns from grades: expected 'train' and 'vali'"),
        ("temperature = 1.0", "temprature = 1.0", "[[log]] 1: unknown key 'temprature' (did you mean 'temperature'?)"),
        ("temperature = 1.0", 'temperature = "hot"', "'temperature' should be of kind float, found 'hot'"),
        ('user = "pbm"', 'user = "pmb"', "[[log]] 1: unknown user 'pmb'"),
        ('policy = "linear"', 'policy = "linaer"', "unknown policy 'linaer' (did you mean 'linear'?)"),
        ('name = "some log"', 'path = "log"\nname = "some log"', "belongs to simulated logs; this one has a path"),
        ("epochs = 2", "epocs = 2", "[defaults]: unknown key 'epocs' (did you mean 'epochs'?)"),
        ('model = "naive"', 'model = "naiv"', "unknown model 'naiv' (did you mean 'naive'?)"),
        ('model = "naive"', 'model = "naive"\nclip = 3.0', "[[method]] 3 (naive): unknown key 'clip'"),
        ("l2 = [0.0", "epoch = [0.0", "grid: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("l2 = [0.0, 1000.0]", "l2 = []", "'l2' should have at least one value"),
        ('"true", "cond', '"treu", "cond', "unknown propensity 'treu' (did you mean 'true'?)"),
        ('baseline = "naive"', 'baseline = "naiv"', "baseline 'naiv' is no method (did you mean 'naive'?)"),
        ('name = "ips"', 'name = "pbm"', "two methods are called 'pbm'"),
        ("valid_share = 0.3", "valid_share = 0.0", "expected valid_share above 0"),
        ("[[log]]", "[log]", "expected at least one [[log]] table"),
        ("[data]", "[data", "not TOML"),
        ('"mrr@10"', '"ndgc@10"', "found 'ndgc@10' (did you mean 'ndcg@10'?)"),
        (
            '"mrr@10"',
            '"perplexity"',
            "expected ranking metrics (ndcg@k, dcg@k, mrr@k, map@k, err@k), found 'perplexity'",
        ),
        ('"mrr@10"', '"ndcg@10"', "the metric 'ndcg@10' is given twice"),
        ("temperature = 1.0", 'drift = "fast"', "'drift' should be of kind float, found 'fast'"),
        ("temperature = 1.0", "zipf = -1", "[[log]] 1: expected 'zipf' of at least 0, found -1"),
        ("temperature = 1.0", "temperature = -1", "[[log]] 1: expected finite temperature >= 0"),
        ("temperature = 1.0", 'examination = "inv"', "[[log]] 1: unknown examination 'inv'"),
        ("temperature = 1.0", "shares = [0.5, 0.5]", "shares are of users joined by '+'"),
        ("temperature = 1.0", "times = true", "a study simulates no 'times': simulate the log by itself"),
        ("sessions = 1500", "sessions = 0", "expected 'sessions' of at least 1, found 0"),
        ("ranks = 4", "ranks = 5.7", "'ranks' should be of kind int, found 5.7"),
        ("clip = 20.0", "clip = -3", "expected 'clip' of at least 0; 0: no limit, found -3.0"),
        ("l2 = [0.0, 1000.0]", "epochs = [0, 3]", "expected 'epochs' of at least 1, found 0"),
        (
            'model = "pbm"',
            'model = "pbm+naive"',
            "a mixture is made of click models, and 'naive' in 'pbm+naive' is none",
        ),
        ('model = "pbm"', 'model = "pbm+logger"', "'logger' in 'pbm+logger' is none"),
        ('reference = "full-information"', 'reference = "pbm"', "expected a reference that learns from grades"),
        ('name = "some log"', 'name = ".."', "the log name '..' cannot name a folder"),
        ('name = "ips"', 'name = "-"', "the method name '-' cannot name a folder"),
        ('name = "ips"', 'name = "PBM"', "the methods 'pbm' and 'PBM' would be kept in the same folder"),
        ("[defaults]", '[[log]]\nname = "some_log"\n[defaults]', "the logs 'some log' and 'some_log' would be kept"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study_text((old, new)))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


TRUST = (
    "'propensity' as 'all-pairs' has no effect with '{}', which needs trust parameters as well: expected true or a "
    ".json file"
)


@pytest.mark.parametrize("model", ["affine-ips", "intervention-aware", "direct-method", "doubly-robust"])
@pytest.mark.parametrize(
    ("given", "place"),
    [
        ('propensity = "all-pairs"', ""),
        ('grid = {propensity = ["true", "all-pairs"]}', ", grid"),
    ],
)
def test_an_estimator_that_knows_no_trust_is_refused_where_trust_is_needed(
    tmp_path: Path, model: str, given: str, place: str
) -> None:
    trust = "" if model in ("affine-ips", "intervention-aware") else "trust = true\n"
    path = tmp_path / "study.toml"
    row = f'model = "naive"\n[[method]]\nname = "mine"\nmodel = "{model}"\n{trust}'
    path.write_text(study_text(('model = "naive"', row + given)))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert str(error.value).startswith(f"{path}, [[method]] 4 (mine){place}: {TRUST.format(model)}")
    assert "Leave it out, and a trust model is fitted to the training sessions" in str(error.value)
    # What says something is taken, and so is what stands for all methods.
    for fine in (given.replace("all-pairs", "true"), given.replace("all-pairs", "curve.json")):
        path.write_text(study_text(('model = "naive"', row + fine)))
        read_study(path)
    shared = study_text(('model = "naive"', row), ("epochs = 2", 'epochs = 2\npropensity = "all-pairs"'))
    path.write_text(shared)
    read_study(path)
    if trust:
        path.write_text(study_text(('model = "naive"', row.replace(trust, "") + given)))
        read_study(path)


def test_paths_start_from_the_folder_of_the_file(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    study = read_study(study_folder / "study.toml")
    assert study.data.collection == study_folder / "collection"
    text = study_text(
        ('propensity = ["true"', 'propensity = ["curve.json"'),
        ("clip = 20.0", 'clip = 20.0\npropensity = "curve.json"'),
    )
    (study_folder / "other.toml").write_text(text)
    ips = read_study(study_folder / "other.toml").methods[4]
    assert ips.propensity == str(study_folder / "curve.json")
    assert ips.grid["propensity"] == (str(study_folder / "curve.json"), "conditional-likelihood")


def test_a_file_of_the_grid_decides_what_a_run_holds(study_folder: Path, tmp_path: Path) -> None:
    collection = f'"{study_folder / "collection"}"'
    (tmp_path / "study.toml").write_text(study_text(('["true"', '["curve.json"'), ('"collection"', collection)))
    study = read_study(tmp_path / "study.toml")
    run = next(r for r in study_runs(study) if r.method.name == "ips")
    marks = []
    for content in ("[1]", "[2]"):
        (tmp_path / "curve.json").write_text(content)
        marks.append(run_digest(study, run))
    assert marks[0] != marks[1]


def test_shares_of_users_are_an_option_of_a_log(study_folder: Path) -> None:
    path = study_folder / "changed.toml"
    path.write_text(study_text(('user = "pbm"', 'user = "pbm+dbn"\nshares = [0.7, 0.3]')))
    study = read_study(path)
    assert study.logs[0].options["shares"] == (0.7, 0.3)


def test_every_method_has_one_row_and_every_option_of_a_simulated_log_is_known() -> None:
    assert {name for name, spec in METHODS.items() if spec.trained_on_log} < set(METHODS)
    assert {"temperature", "epsilon", "share", "sessions", "ranks", "eta", "zipf"} <= set(log_options())
    assert not {"seed", "out", "collection", "model"} & set(log_options())
    assert takes_setting(METHODS["ips-listwise"], "propensity")
    assert not takes_setting(METHODS["naive"], "propensity")
    assert not takes_setting(METHODS["lightgbm"], "epochs")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seeds = [0]\n# M\xff\n", "row 2: expected UTF-8 text, found other bytes. Save the file as UTF-8"),
        (STUDY.encode("utf-16"), "row 1: expected UTF-8 text"),
        (b"seeds = " + b"[" * 5000, "too many of them"),
        (b"seeds = \x00", "not TOML"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "study.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_study(tmp_path / "study.toml")
    assert str(tmp_path / "study.toml") in str(caught.value)


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_bytes(b"\xef\xbb\xbf" + STUDY.encode())
    assert read_study(tmp_path / "study.toml").seeds == (0, 1)

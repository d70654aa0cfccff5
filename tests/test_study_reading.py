"""Studies in TOML: clear answers to mistakes, paths, options."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import STUDY, study_text

from ultr.errors import ConfigError
from ultr.study import METHODS, read_study
from ultr.study.effects import takes_setting
from ultr.study.reading import log_options
from ultr.study.runs import run_digest, study_runs

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


# A [[method]] table -> what is said of it, after file and table.
IN_VAIN = {
    'model = "gctr"\nrelevance = "table"': "'relevance' has no effect with model 'gctr', which has no tower over docum",
    'model = "rctr"\nhidden = [8]': "'hidden' has no effect with model 'rctr', which has no tower over documents",
    'model = "rctr"\ngrid = {transform = ["log1p"]}': ", grid: 'transform' has no effect with model 'rctr'",
    'model = "pbm"\nrows = 50': "'rows' has no effect with relevance 'linear', only with hashed, quotient-remainder, r",
    'model = "pbm"\nrelevance = "auto"\nrows = 50': "'rows' has no effect with relevance 'auto', only with hashed, q",
    'model = "pbm"\nhidden = [8]': "'hidden' has no effect with relevance 'linear', only with mlp, dcn: leave it out",
    'model = "pbm"\ngrid = {hidden = [[8]], relevance = ["linear", "table"]}': (
        ", grid: 'hidden' has no effect with relevance 'linear' or 'table', only with mlp, dcn"
    ),
    'model = "pbm"\nrelevance = "table"\ntransform = "log1p"': "'transform' has no effect with relevance 'table', only",
    'model = "naive"\ntable_rate = 3.0': "'table_rate' has no effect with relevance 'linear', only with tables (table",
    'model = "pbm"\nl2 = 1.0\ngrid = {l2 = [0.0, 2.0]}': "'l2' has no effect beside the grid's values of it",
    'model = "pbm"\ngrid = {l2 = [1.0, 2, 1]}': ", grid: 'l2' has 1.0 twice: give each value once",
    'model = "xgboost"\nleast_in_leaf = 5': "unknown key 'least_in_leaf'",
    'model = "xgboost-labels"\nmost_rows = 5': "unknown key 'most_rows'",
    'model = "lightgbm-labels"\nmost_rows = 5': "unknown key 'most_rows'",
    'model = "pbm"\nrelevance = "mpl"': "unknown relevance 'mpl' (did you mean 'mlp'?); known: auto, table",
    'model = "pbm"\ngrid = {relevance = ["mpl"]}': ", grid: unknown relevance 'mpl'",
    'model = "pbm"\ntransform = "log"': "unknown transform 'log'",
    'model = "affine-ips"\nform = "pairwise"': "unknown form 'pairwise'",
    'model = "prs"\nmetric = "ndcg"': "unknown metric 'ndcg' (did you mean 'dcg'?); known: dcg, rank",
    'model = "upe"\nmomentum = 0': "expected 'momentum' above 0, found 0",
    'model = "pairdebias"\nmomentum = 1.5': "expected 'momentum' of at most 1, found 1.5",
    'model = "additive-dropout"\nrate = 1.0': "expected 'rate' below 1, found 1.0",
    'model = "additive-reversal"\nstrength = -1.0': "expected 'strength' of at least 0, found -1.0",
    'model = "xgboost-unbiased"\nbias_norm = -1.0': "expected 'bias_norm' of at least 0, found -1.0",
    'model = "full-information"\nrelevance = "table"': "expected 'relevance' as a network (linear, mlp, dcn), found 't",
}


@pytest.mark.parametrize("table", IN_VAIN)
def test_a_setting_in_vain_or_without_meaning_is_named(tmp_path: Path, table: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study_text(('model = "logger"', f'name = "mine"\n{table}')))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    said = IN_VAIN[table]
    assert str(error.value).startswith(f"{path}, [[method]] 1 (mine){said if said.startswith(',') else ': ' + said}")


@pytest.mark.parametrize(
    "table",
    [
        'model = "pbm"\nrelevance = "hashed"\nrows = 50',
        'model = "pbm"\nrelevance = "auto"\nhidden = [8]\ntransform = "log1p"\ntable_rate = 3.0',
        'model = "pbm"\ngrid = {hidden = [[8], [9]], relevance = ["linear", "mlp"], table_rate = [1.0, 2.0]}',
        'model = "naive"\nrelevance = "table"\ntable_rate = 3.0',
        'model = "upe"\nrelevance = "table"\ntransform = "log1p"\nmomentum = 1.0',
        'model = "additive-dropout"\nrate = 0.0',
        'model = "lightgbm"\nleast_in_leaf = 5\nmost_rows = 100',
    ],
)
def test_a_setting_with_an_effect_is_taken(tmp_path: Path, table: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study_text(('model = "logger"', f'name = "mine"\n{table}')))
    assert read_study(path).methods[0].name == "mine"


def test_defaults_stand_for_the_methods_that_they_have_an_effect_on(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study_text(("epochs = 2", "epochs = 2\nrows = 40\nhidden = [8]")))
    assert [method.model for method in read_study(path).methods][:3] == ["logger", "random", "naive"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("noise = 1.0", "'noise' has no effect on the policy 'linear', only on noisy: leave it out"),
        ("strength = 1.0", "'strength' has no effect on the policy 'linear', only on strength: leave it out"),
    ],
)
def test_an_option_of_another_policy_is_in_vain_whatever_its_value(tmp_path: Path, given: str, said: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study_text(("temperature = 1.0", given)))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert str(error.value) == f"{path}, [[log]] 1: {said}"


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
    for source in ("true", "curve.json")[given.startswith("grid") :]:  # the grid has "true" already
        fine = given.replace("all-pairs", source)
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
    grid = 'grid = {propensity = ["true", "conditional-likelihood"]}'
    for given in (grid.replace("true", "curve.json"), 'propensity = "curve.json"'):
        (study_folder / "other.toml").write_text(study_text((grid, given)))
        ips = read_study(study_folder / "other.toml").methods[4]
        assert str(study_folder / "curve.json") == (ips.grid["propensity"][0] if ips.grid else ips.propensity)


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

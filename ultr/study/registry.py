"""Every method by name: one row each, from which commands, their help, their checks and the README's table derive."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping

from ultr.errors import ConfigError
from ultr.study.options import Option
from ultr.study.specs import Assumption, Examination, MethodSpec
from ultr.text import did_you_mean

CLICK_MODELS = "Click models"
NAIVE = "Naive rankers"
WEIGHTED = "Weighted rankers"
JOINT = "Rankers and examination learnt jointly"
GRADES = "Learning from grades"
TREES = "Boosted trees"
YARDSTICKS = "Without training"

# Family -> what all of its methods have in common, for the README.
FAMILIES: dict[str, str] = {
    CLICK_MODELS: "exact conditional, marginal and session log-probabilities and samples",
    NAIVE: "clicks taken for relevance",
    WEIGHTED: "by propensities that are given or estimated from the log",
    JOINT: "two-towers and dual learning",
    GRADES: "the upper end of a comparison",
    TREES: "LightGBM and XGBoost, in `ultr compare`",
    YARDSTICKS: "the ends of a comparison",
}

# What methods assume of clicks, as checks of `ultr.propensity.goodness_of_fit`.
_BY_RANK: tuple[Assumption, ...] = ("last-click", "click-above", "trust", "noise")  # examination by rank alone
_NOT_ABOVE: tuple[Assumption, ...] = ("last-click", "click-above")  # clicks depend on no clicks above
_LAST_CLICK: tuple[Assumption, ...] = ("cascade", "trust", "noise")  # examination by rank and the last click above

EM = ("em", "lbfgs")
COUNTING = (*EM, "counting")

_CLIP = Option("clip", float, 0.0, "largest weight; 0: no limit", minimum=0, zero="no limit")
_MEAN_WEIGHT_1 = Option("self_normalised", bool, False, "divide the weights by their mean over a batch")
_WEIGHTS = (_CLIP, _MEAN_WEIGHT_1)
_LISTWISE = Option(
    "form", str, "listwise", "form of the loss: listwise or pointwise", choices=("listwise", "pointwise")
)
# Where lists are cut and a document is shown only in some sessions, only the pointwise form is right.
_POINTWISE = dataclasses.replace(_LISTWISE, default="pointwise")
_TRUST = Option("trust", bool, False, "fit the regression under trust bias")
_RATIO_CLIP = Option("clip", float, 100.0, "largest ratio of two propensities", minimum=1)

_FRAILTY = Option("frailty", bool, False, "a random effect per list on relevance, integrated out")
_SATISFACTION = Option(
    "satisfaction", str, "auto",
    "tower of satisfaction: monotone (it rises with relevance), free (a tower of its own); auto: free for tables",
    choices=("auto", "monotone", "free"),
)  # fmt: skip

_MOMENTUM = Option(
    "momentum", float, 0.1, "share of a batch in the running means", minimum=0, exclusive=True, maximum=1
)  # fmt: skip

_EXPOSURE = (
    Option("metric", str, "clicks", "weights of ranks: clicks (expected clicks) or dcg", choices=("clicks", "dcg")),
    Option("samples", int, 100, "rankings drawn per query and step; even", minimum=4),
)
_DELTA = Option(
    "delta", float, 0.1, "the smaller, the closer to the logging policy", minimum=0, exclusive=True, maximum=1
)

_TREES = (
    Option("rounds", int, 300, "trees at most; held-out clicks or grades choose how many", minimum=1),
    Option("learning_rate", float, 0.1, "shrinkage of each tree", minimum=0, exclusive=True),
    Option("leaves", int, 31, "leaves per tree", minimum=2),
    Option("threads", int, 1, "threads; 0: all", minimum=0),
)
_LEAST = Option("least_in_leaf", int, 20, "documents in a leaf, at least", minimum=0)  # XGBoost has no such bound
_MOST_ROWS = Option(
    "most_rows", int, 2_000_000, "displayed documents in memory, drawn by the seed from longer logs", minimum=1
)
_LIGHTGBM = (*_TREES, _LEAST)

_DOCUMENT = {"relevance": "document"}
_TWO_TOWERS = {"relevance": "document", "examination": "rank"}
_ADDITIVE = {"examination": "rank_from_first", "relevance": "document"}


def _click_model(
    name: str,
    made: str,
    towers: Mapping[str, str],
    summary: str,
    paper: str,
    solvers: tuple[str, ...] = (),
    assumes: tuple[Assumption, ...] = (),
    options: tuple[Option, ...] = (),
    examination: Examination = "none",
) -> MethodSpec:
    makes = f"ultr.models.{made}"
    options = (*options, _FRAILTY)
    return MethodSpec(
        name,
        CLICK_MODELS,
        summary,
        paper,
        makes,
        towers,
        assumes=assumes,
        examination=examination,
        options=options,
        solvers=solvers,
    )


_ROWS: tuple[MethodSpec, ...] = (
    _click_model("gctr", "GCTR", {"tower": "constant"}, "one click probability for all", "", COUNTING),
    _click_model("rctr", "RCTR", {"tower": "rank"}, "a click probability per rank", "", COUNTING),
    _click_model("dctr", "DCTR", {"tower": "document"}, "a click probability per document", "", COUNTING),
    _click_model("rdctr", "RDCTR", {"tower": "rank_document"}, "one per rank and document", "", COUNTING),
    _click_model(
        "pbm", "PBM", _TWO_TOWERS, "position-based model: examination by rank times relevance",
        "Richardson 2007; Craswell 2008", EM,
        examination="modelled", assumes=_BY_RANK,
    ),
    _click_model(
        "trust", "TrustPBM",
        {**_TWO_TOWERS, "trust_relevant": "rank", "trust_irrelevant": "rank_at_low_probability"},
        "PBM with trust bias: irrelevant documents are clicked too, the more the higher they are ranked",
        "Agarwal 2019",
        examination="modelled", assumes=_NOT_ABOVE,
    ),
    _click_model(
        "additive", "AdditivePBM", _ADDITIVE, "additive two-tower: logits of rank and document", "Guo 2019; Yan 2022",
        examination="modelled", assumes=_NOT_ABOVE,
    ),
    _click_model(
        "ubm", "UBM", {"relevance": "document", "examination": "last_click"},
        "user browsing model: examination by rank and the last click above",
        "Dupret 2008", EM,
        examination="modelled", assumes=_LAST_CLICK,
    ),
    _click_model("cascade", "CascadeModel", _DOCUMENT, "the first click ends the session", "Craswell 2008", COUNTING),
    _click_model(
        "dcm", "DCM", {"relevance": "document", "continuation": "rank"},
        "dependent click model: going on after a click depends on the rank",
        "Guo 2009", COUNTING,
    ),
    _click_model(
        "sdbn", "SDBN", {"relevance": "document", "satisfaction": "satisfaction"},
        "simplified DBN: users go on until satisfied",
        "Chapelle and Zhang 2009", COUNTING,
        options=(_SATISFACTION,),
    ),
    _click_model(
        "dbn", "DBN",
        {"relevance": "document", "satisfaction": "satisfaction", "continuation": "constant_high"},
        "dynamic Bayesian network: users may also give up before they are satisfied", "Chapelle and Zhang 2009", EM,
        options=(_SATISFACTION,),
    ),
    _click_model(
        "ccm", "CCM",
        {
            "relevance": "document",
            "after_skip": "constant_high",
            "after_irrelevant_click": "constant",
            "after_relevant_click": "constant",
        },
        "click chain model: going on depends on a skip or on the relevance of the click", "Guo 2009", EM,
    ),
    MethodSpec(
        "naive", NAIVE, "pointwise: cross-entropy of clicks", makes="ultr.baselines.NaivePointwise", towers=_DOCUMENT
    ),
    MethodSpec(
        "naive-listwise", NAIVE, "listwise: softmax cross-entropy of the clicks",
        makes="ultr.baselines.NaiveListwise", towers=_DOCUMENT,
    ),
    MethodSpec(
        "naive-lambdarank", NAIVE, "LambdaRank: pairs weighted by their change of nDCG", "Burges 2006",
        "ultr.baselines.NaiveLambdaRank", _DOCUMENT,
    ),
    MethodSpec(
        "shrunk-ctr", NAIVE, "click rate by document, shrunk towards that of its ranks; ties in the logged order",
        "Robbins 1956; Casella 1985", "ultr.baselines.ShrunkCTR", solvers=("counting",), builder="counted",
    ),
    MethodSpec(
        "ips-pointwise", WEIGHTED, "inverse propensity scoring, pointwise", "Bekker 2019; Saito 2020",
        "ultr.baselines.IPS", _DOCUMENT, ("propensity",), {"form": "pointwise"}, options=_WEIGHTS,
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "ips-listwise", WEIGHTED, "inverse propensity scoring, listwise", "Joachims 2017; Agarwal 2019",
        "ultr.baselines.IPS", _DOCUMENT, ("propensity",), {"form": "listwise"}, options=_WEIGHTS,
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "ips-pairwise", WEIGHTED, "inverse propensity scoring, pairwise", "Joachims 2017; Agarwal 2019",
        "ultr.baselines.IPS", _DOCUMENT, ("propensity",), {"form": "pairwise"}, options=_WEIGHTS,
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "affine-ips", WEIGHTED, "corrects trust bias as well: click = alpha relevance + beta", "Vardasbi 2020",
        "ultr.baselines.AffineIPS", _DOCUMENT, ("affine",), options=(*_WEIGHTS, _LISTWISE),
        examination="given", assumes=_NOT_ABOVE,
    ),
    MethodSpec(
        "policy-aware", WEIGHTED, "weights by how often the policy has a document examined",
        "Oosterhuis and de Rijke 2020", "ultr.baselines.PolicyAware", _DOCUMENT, ("displays", "propensity"),
        options=(*_WEIGHTS, _POINTWISE),
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "intervention-aware", WEIGHTED, "policy-aware with trust bias", "Oosterhuis and de Rijke 2021",
        "ultr.baselines.InterventionAware", _DOCUMENT, ("displays", "affine"), options=(*_WEIGHTS, _POINTWISE),
        examination="given", assumes=_NOT_ABOVE,
    ),
    MethodSpec(
        "direct-method", WEIGHTED, "learns from a click model's estimates of relevance", "Oosterhuis 2023",
        "ultr.baselines.DirectMethod", _DOCUMENT, ("propensity",), options=(_LISTWISE, _TRUST), builder="regression",
        examination="given", assumes=_BY_RANK,
    ),
    # Without a clip the regression cancels: over a log, a document's corrections sum to minus what it adds.
    MethodSpec(
        "doubly-robust", WEIGHTED, "a click model's estimates, corrected by weighted clicks", "Oosterhuis 2023",
        "ultr.baselines.DoublyRobust", _DOCUMENT, ("propensity", "displays"),
        options=(dataclasses.replace(_CLIP, default=10.0), _MEAN_WEIGHT_1, _POINTWISE, _TRUST),
        builder="regression",
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "exposure-crm", WEIGHTED, "safe: IPS over exposure, less a bound on its error off the logging policy",
        "Gupta 2023", "ultr.baselines.PolicyGradient", _DOCUMENT, ("propensity",), {"objective": "exposure-crm"},
        options=(_DELTA, *_EXPOSURE), builder="policy-gradient",
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "safe-doubly-robust", WEIGHTED, "safe: doubly robust over exposure, less a bound on its error",
        "Gupta 2024", "ultr.baselines.PolicyGradient", _DOCUMENT, ("propensity",), {"objective": "safe-doubly-robust"},
        options=(_DELTA, *_EXPOSURE, _TRUST), builder="policy-gradient",
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "prpo", WEIGHTED, "safe: proximal ranking policy optimisation, near the exposure under the logging policy",
        "Gupta 2024", "ultr.baselines.PolicyGradient", _DOCUMENT, ("propensity",), {"objective": "prpo"},
        options=(
            Option("delta", float, 0.0, "exposure counts from delta to 1/delta times the logged one", minimum=0,
                   zero="100 / sessions, at most 1", maximum=1),
            Option("per_query", bool, False, "100 / sessions of the query itself"),
            *_EXPOSURE, _TRUST,
        ),
        builder="policy-gradient",
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "prs", WEIGHTED, "propensity ratio scoring: pairs of clicked and unclicked documents", "Wang 2021",
        "ultr.baselines.PRS", _DOCUMENT, ("propensity",),
        options=(_CLIP, Option("metric", str, "dcg", "weights of pairs: dcg (change of DCG) or rank (all alike)",
                        choices=("dcg", "rank"))),
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "dla", JOINT, "dual learning: ranker and propensities weight each other", "Ai 2018", "ultr.baselines.DLA",
        _TWO_TOWERS, options=(_RATIO_CLIP,),
        examination="learnt", assumes=_BY_RANK,
    ),
    MethodSpec(
        "regression-em", JOINT, "EM whose M-step regresses on features", "Wang 2018", "ultr.baselines.RegressionEM",
        _TWO_TOWERS, options=(Option("every", int, 100, "training steps between two E-steps", minimum=1),),
        examination="learnt", assumes=_BY_RANK,
    ),
    MethodSpec(
        "pairdebias", JOINT, "pairs divided by bias ratios that it estimates", "Hu 2019", "ultr.baselines.PairDebias",
        _DOCUMENT, ("ranks",),
        options=(
            Option("regularisation", float, 1.0, "p of the paper; 0: the ratios themselves, 1: about their roots",
                   minimum=0),
            dataclasses.replace(_MOMENTUM, default=0.05),
        ),
        examination="learnt", assumes=_BY_RANK,
    ),
    MethodSpec(
        "upe", JOINT, "dual learning freed of the confounding by the logging policy", "Luo 2024", "ultr.baselines.UPE",
        _DOCUMENT, ("logging_policy", "ranks"),
        options=(_RATIO_CLIP, _MOMENTUM),
        examination="learnt", assumes=_BY_RANK,
    ),
    MethodSpec(
        "additive-listwise", JOINT, "additive two-tower, listwise", "Yan 2022", "ultr.baselines.AdditiveListwise",
        _TWO_TOWERS,
        examination="learnt", assumes=_NOT_ABOVE,
    ),
    MethodSpec(
        "pbm-conditional", JOINT, "PBM, by which documents of a list were clicked, given how many were", "",
        "ultr.baselines.ConditionalPBM", _TWO_TOWERS,
        examination="learnt", assumes=_BY_RANK,
    ),
    MethodSpec(
        "additive-conditional", JOINT, "additive two-tower, by which documents of a list were clicked, given how many",
        "Cox 1970", "ultr.baselines.ConditionalAdditive", _TWO_TOWERS,
        examination="learnt", assumes=_NOT_ABOVE,
    ),
    MethodSpec(
        "additive-dropout", JOINT, "additive two-tower with dropout of the bias tower", "Zhang 2023",
        "ultr.models.AdditivePBM", _ADDITIVE,
        options=(Option("rate", float, 0.5, "share of biases that are dropped", minimum=0, maximum=1, below=True),),
        builder="dropout",
        examination="learnt", assumes=_NOT_ABOVE,
    ),
    MethodSpec(
        "additive-reversal", JOINT, "additive two-tower with gradient reversal", "Zhang 2023",
        "ultr.baselines.AdversarialTwoTower", _TWO_TOWERS,
        options=(Option("strength", float, 1.0, "strength of the reversal; 0: none", minimum=0),),
        examination="learnt", assumes=_NOT_ABOVE,
    ),
    MethodSpec(
        "additive-weighted", JOINT, "additive two-tower, impressions weighted by their displays", "Hager 2025",
        "ultr.baselines.PositionWeighted", _ADDITIVE, ("displays",), options=(_CLIP,), builder="position-weighted",
        examination="learnt", assumes=_NOT_ABOVE,
    ),
    MethodSpec(
        "additive-frozen", JOINT, "additive two-tower with given propensities", "", "ultr.models.AdditivePBM",
        _DOCUMENT, ("propensity",), builder="frozen",
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "pbm-frozen", JOINT, "PBM with given propensities", "", "ultr.models.PBM", _DOCUMENT, ("propensity",),
        solvers=EM, builder="frozen",
        examination="given", assumes=_BY_RANK,
    ),
    MethodSpec(
        "full-information", GRADES, "softmax cross-entropy of the grades' gains",
        makes="ultr.baselines.FullInformation", towers=_DOCUMENT, learns_from="grades",
    ),
    MethodSpec(
        "lightgbm", TREES, "LambdaMART of LightGBM on clicks", "Burges 2010", options=(*_LIGHTGBM, _MOST_ROWS),
        package="lightgbm",
    ),
    MethodSpec(
        "lightgbm-position", TREES, "LightGBM with a bias per position",
        options=(
            *_LIGHTGBM, _MOST_ROWS,
            Option("position_regularisation", float, 0.0, "strength of the prior on biases", minimum=0),
        ),
        examination="learnt", package="lightgbm",
    ),
    MethodSpec(
        "lightgbm-labels", TREES, "LightGBM on grades", learns_from="grades", options=_LIGHTGBM, package="lightgbm"
    ),
    MethodSpec(
        "xgboost", TREES, "LambdaMART of XGBoost on clicks", "Burges 2010", options=(*_TREES, _MOST_ROWS),
        package="xgboost",
    ),
    MethodSpec(
        "xgboost-unbiased", TREES, "XGBoost with pairwise debiasing", "Hu 2019",
        options=(*_TREES, _MOST_ROWS, Option("bias_norm", float, 2.0, "regularisation of the bias ratios", minimum=0)),
        examination="learnt", package="xgboost",
    ),
    MethodSpec("xgboost-labels", TREES, "XGBoost on grades", learns_from="grades", options=_TREES, package="xgboost"),
    MethodSpec("logger", YARDSTICKS, "the logging policy's ranker, of a simulated log", learns_from="nothing"),
    MethodSpec("random", YARDSTICKS, "rankings in random order", learns_from="nothing"),
)  # fmt: skip

METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in _ROWS}


# Stands for the methods below, of which held-out clicks choose one (`ultr.study.automatic`).
AUTO = MethodSpec(
    "auto", CLICK_MODELS, "chosen among methods by unbiased ranking gains on held-out queries", towers=_DOCUMENT
)
AUTO_MODELS = ("pbm", "ubm", "dbn", "additive-listwise", "ips-listwise")


def method_spec(name: str) -> MethodSpec:
    """Finds a method by name; click models joined by `+`, such as `pbm+dbn`, are a mixture of them.

    Raises:
      ConfigError: an unknown name, or a mixture of something else than click models.
    """
    if name == AUTO.name:
        return AUTO
    if name in METHODS:
        return METHODS[name]
    parts = name.split("+")
    for part in parts:
        if part not in METHODS:
            raise ConfigError(f"unknown model '{part}'{did_you_mean(part, METHODS)}; known: {', '.join(METHODS)}")
        if not METHODS[part].is_click_model:
            known = ", ".join(spec.name for spec in METHODS.values() if spec.is_click_model)
            raise ConfigError(f"a mixture is made of click models, and '{part}' in '{name}' is none; known: {known}")
    specs = [METHODS[part] for part in parts]
    return MethodSpec(
        name,
        CLICK_MODELS,
        f"mixture of {', '.join(parts)}: each session follows one of them",
        makes="ultr.models.Mixture",
        towers={f"{spec.name}.{slot}": tower for spec in specs for slot, tower in spec.towers.items()},
        needs=tuple(dict.fromkeys(need for spec in specs for need in spec.needs)),
        assumes=next((spec.assumes for spec in specs if spec.needs), ()),  # what its given propensities assume
        examination="given" if any(spec.needs for spec in specs) else _mixed_examination(specs),
    )


def _mixed_examination(specs: Iterable[MethodSpec]) -> Examination:
    """Returns what a mixture of click models needs to know of examination."""
    return "modelled" if any(spec.examination != "none" for spec in specs) else "none"


def methods_by_family(
    specs: Iterable[MethodSpec], *, options: Container[str] | None = None
) -> dict[str, list[tuple[str, str]]]:
    """Lists methods under their families as pairs of name and description, for help texts.

    Args:
      options: names of the options that are mentioned with their defaults; None: all.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for spec in specs:
        paper = f" ({spec.paper})" if spec.paper else ""
        own = [f"{o.name} [{o.default}]" for o in spec.options if options is None or o.name in options]
        about = f"{spec.summary}{paper}" + (f"; {', '.join(own)}" if own else "")
        found.setdefault(spec.family, []).append((spec.name, about))
    return found


def options_help(specs: Iterable[MethodSpec]) -> list[tuple[str, str]]:
    """Lists the options of methods as pairs of name and description, each name once."""
    found: dict[str, list[str]] = {}
    for option in (option for spec in specs for option in spec.options):
        descriptions = found.setdefault(option.name, [])
        if option.help not in descriptions:
            descriptions.append(option.help)
    return [(name, ", or ".join(descriptions)) for name, descriptions in found.items()]


def methods_table() -> str:
    """Writes the methods as Markdown rows of the README's table: one row per family."""
    rows = []
    for family, about in FAMILIES.items():
        names = []
        for spec in METHODS.values():
            if spec.family == family:
                made = spec.makes.rpartition(".")[2] if family == CLICK_MODELS else ""
                facts = "; ".join(filter(None, (made, spec.paper)))
                names.append(f"`{spec.name}`" + (f" ({facts})" if facts else ""))
        if family == CLICK_MODELS:
            names.append("mixtures such as `pbm+dbn` (Mixture)")
        rows.append(f"| {family.lower()} | {', '.join(names)}: {about} |")
    return "\n".join(rows)

"""Which settings have an effect on a method: by its row of the registry and by the relevance towers it may get."""

from __future__ import annotations

from collections.abc import Iterable

from ultr.study.specs import COMPRESSED_TABLES, NETWORK_TOWERS, NETWORKS, TABLES, MethodSpec

# The settings of a `StudyMethod` that only methods trained by `ultr.fit` have.
TRAINING_SETTINGS = (
    "relevance", "hidden", "transform", "rows", "epochs", "patience", "batch_size", "learning_rate", "table_rate", "l2",
    "l2_unit",
)  # fmt: skip
_AUTO = ("table", "mlp")  # what the relevance "auto" becomes, by the features of the log


def takes_setting(spec: MethodSpec, name: str) -> bool:
    """Tells whether a method has a setting of `StudyMethod`."""
    if name == "propensity":
        return spec.takes_propensities
    if name in ("safe", "logger_score"):
        return spec.trained_on_log
    return name not in TRAINING_SETTINGS or bool(spec.towers)


def without_document_tower(spec: MethodSpec) -> tuple[str, ...]:
    """Lists the settings that have no effect on a method since it has no tower over documents; none where it has."""
    if spec.reads_documents:
        return ()
    scaled = "logging_policy" in spec.needs
    return ("relevance", "rows", "hidden") if scaled else ("relevance", "rows", "hidden", "transform")


def without_effect(spec: MethodSpec, relevance: Iterable[str]) -> dict[str, str]:
    """Lists the settings that have no effect on a method with any of some relevance towers.

    Args:
      spec: the method.
      relevance: names in `RELEVANCE_TOWERS` that it may get; "auto" may become a table or an MLP.

    Returns:
      Setting -> with which relevance towers it has an effect, such as "only with mlp, dcn".
    """
    found = {part for name in relevance for part in (_AUTO if name == "auto" else (name,))}
    widths = [name for name, (_, settings) in NETWORK_TOWERS.items() if "hidden" in settings]
    needed = {
        "rows": (COMPRESSED_TABLES, f"only with {', '.join(COMPRESSED_TABLES)}"),
        "hidden": (widths, f"only with {', '.join(widths)}"),
    }
    if "logging_policy" not in spec.needs:
        needed["transform"] = (NETWORKS, f"only with networks over features ({', '.join(NETWORKS)})")
    if set(spec.towers.values()) == {"document"}:
        needed["table_rate"] = (TABLES, f"only with tables ({', '.join(TABLES)})")
    return {name: why for name, (towers, why) in needed.items() if not found & set(towers)}

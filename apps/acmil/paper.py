"""Figures that others report, to stand beside ours; each with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReportedScore", "reported_scores"]


@dataclass(frozen=True, kw_only=True)
class ReportedScore:
    """One published figure. Encoders and divisions differ, so that it is a yardstick and not a rival."""

    method: str
    encoder: str
    metric: str
    value: str
    source: str


_TRANSMIL = "Shao et al., NeurIPS 2021, abstract"
_ABMIL_UNI = "model card kaczmarj/metastasis-abmil-128um-uni, five seeds, 129 test slides"
_ABMIL_CTRANSPATH = "earlier cards of the same author"

_SCORES = {
    "camelyon16": (
        ReportedScore(method="TransMIL", encoder="ResNet-50 (ImageNet)", metric="AUC", value="0.931", source=_TRANSMIL),
        ReportedScore(method="ABMIL", encoder="CTransPath", metric="AUC", value="0.91", source=_ABMIL_CTRANSPATH),
        ReportedScore(method="ABMIL", encoder="CTransPath", metric="F1", value="0.81 to 0.86", source=_ABMIL_CTRANSPATH),
        ReportedScore(method="ABMIL", encoder="UNI", metric="balanced accuracy", value="0.965 to 1.000", source=_ABMIL_UNI),
        ReportedScore(method="ABMIL", encoder="UNI", metric="F1", value="0.950 to 1.000", source=_ABMIL_UNI),
    ),
    "tcga-nsclc": (ReportedScore(method="TransMIL", encoder="ResNet-50 (ImageNet)", metric="AUC", value="0.960", source=_TRANSMIL),),
    "tcga-rcc": (ReportedScore(method="TransMIL", encoder="ResNet-50 (ImageNet)", metric="AUC", value="0.988", source=_TRANSMIL),),
}


def reported_scores(data: str) -> tuple[ReportedScore, ...]:
    """What others report for a data set by the name of its folder, such as camelyon16; nothing for one that is not known.

    The tables of the ACMIL paper itself could not be read when this was written, and are not quoted from memory.
    """
    key = data.lower().replace("_", "-")
    return next((scores for name, scores in _SCORES.items() if name in key), ())

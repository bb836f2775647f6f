"""What the paper reports: Fan et al., MICCAI 2020, tables 1 and 2, with the figures of the authors' repository."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PaperScores", "published_scores"]


@dataclass(frozen=True)
class PaperScores:
    """A line of the paper's table, and the mean Dice that it prints for two baselines."""

    mean_dice: float
    mean_iou: float
    weighted_f: float
    s_measure: float
    max_e: float
    mean_absolute_error: float
    unet_mean_dice: float
    unetpp_mean_dice: float


_TABLE = {
    "kvasir": PaperScores(0.898, 0.840, 0.885, 0.915, 0.948, 0.030, 0.818, 0.821),
    "cvcclinicdb": PaperScores(0.899, 0.849, 0.896, 0.936, 0.979, 0.009, 0.823, 0.794),
    "cvccolondb": PaperScores(0.709, 0.640, 0.696, 0.819, 0.869, 0.045, 0.512, 0.483),
    "etislaribpolypdb": PaperScores(0.630, 0.460, 0.600, 0.779, 0.841, 0.031, 0.398, 0.401),
    "cvc300": PaperScores(0.871, 0.797, 0.843, 0.925, 0.972, 0.010, 0.710, 0.707),
}
_ALIASES = {"kvasirseg": "kvasir", "cvc612": "cvcclinicdb", "colondb": "cvccolondb", "etis": "etislaribpolypdb", "cvct": "cvc300"}


def published_scores(test_set: str) -> PaperScores | None:
    """The paper's figures for a test set by the name of its folder, such as ETIS-LaribPolypDB; None for a set that it does not have.

    The paper's mean IoU on ETIS (0.460) does not fit its mean Dice (0.630); it is given as printed.
    """
    key = "".join(character for character in test_set.lower() if character.isalnum())
    return _TABLE.get(_ALIASES.get(key, key))

"""What cannot be fitted is said before anything is: which voxels, which samples, which grid, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import UserError

__all__ = ["check_features", "check_grid", "check_pairs", "check_responses", "unusable"]

_SHOWN = 5
_AFFINE_MM = 1e-3


def check_pairs(features: int, responses: int, *, names: tuple[str, str] = ("features", "responses")) -> None:
    """One row of features for each row of responses.

    Raises:
        UserError: if there are not.
    """
    if features != responses:
        raise UserError(
            f"{names[0]}: {features} rows, but {names[1]}: {responses} rows. There must be one row for each stimulus (or volume) in both, "
            "in the same order."
        )


def check_features(features: ArrayLike, *, name: str = "features") -> None:
    """A finite table of features.

    Raises:
        UserError: if ``features`` is not [n, p] with at least two rows and one column, or holds NaN or infinity.
    """
    found = np.asarray(features)
    if found.ndim != 2 or found.shape[0] < 2 or found.shape[1] < 1:
        raise UserError(f"{name}: a table [stimuli, features] is needed; found an array of shape {found.shape}.")
    bad = np.flatnonzero(~np.isfinite(found).all(axis=0))
    if len(bad):
        raise UserError(f"{name}: {_some('feature', bad)} not finite (NaN or infinity). Leave them out, or mend the stimuli behind them.")


def check_responses(responses: ArrayLike, *, name: str = "responses") -> None:
    """Responses that can all be fitted.

    Raises:
        UserError: if ``responses`` is not [n, v], or some voxels hold NaN or infinity, or are constant; names them.
    """
    found = np.asarray(responses)
    if found.ndim != 2 or not found.size:
        raise UserError(f"{name}: a table [stimuli, voxels] is needed; found an array of shape {found.shape}.")
    reasons = unusable(found)
    for reason in dict.fromkeys(reasons.values()):
        bad = np.asarray([voxel for voxel, why in reasons.items() if why == reason])
        raise UserError(f"{name}: {_some('voxel', bad)} {reason}. Mask them out (shared.encoding.checks.unusable finds them).")


def unusable(responses: ArrayLike) -> dict[int, str]:
    """Voxels of [n, v] that cannot be fitted, and why: not finite, or constant."""
    found = np.asarray(responses)
    finite = np.isfinite(found).all(axis=0)
    reasons = dict.fromkeys(np.flatnonzero(~finite).tolist(), "not finite (NaN or infinity)")
    constant = finite & (found == found[:1]).all(axis=0)
    return reasons | dict.fromkeys(np.flatnonzero(constant).tolist(), "constant")


def check_grid(
    shape: Sequence[int],
    affine: ArrayLike,
    mask_shape: Sequence[int],
    mask_affine: ArrayLike,
    *,
    names: tuple[str, str] = ("image", "mask"),
) -> None:
    """An image and a mask on the same voxels: equal shape, and affines [4, 4] equal to a thousandth of a millimetre.

    Raises:
        UserError: if they are not; says by how much.
    """
    remedy = f"Resample the mask to the image (nilearn.image.resample_to_img, interpolation='nearest'), or take the mask of {names[0]}."
    if tuple(shape[:3]) != tuple(mask_shape[:3]):
        raise UserError(f"{names[1]}: a grid of {_times(mask_shape)} voxels, but {names[0]}: {_times(shape)}. {remedy}")
    difference = np.abs(np.asarray(affine, dtype=np.float64) - np.asarray(mask_affine, dtype=np.float64))
    if difference.max() > _AFFINE_MM:
        row, column = np.unravel_index(difference.argmax(), difference.shape)
        what = "origins" if column == 3 else "voxel axes"
        raise UserError(
            f"{names[1]}: its affine does not match that of {names[0]}: the {what} differ by up to {difference[row, column]:.3g} mm, so "
            f"the same index is another place in the brain. {remedy}"
        )


def _some(kind: str, indices: NDArray[np.intp]) -> str:
    shown = ", ".join(map(str, indices[:_SHOWN].tolist())) + (", ..." if len(indices) > _SHOWN else "")
    return f"{kind} {shown} is" if len(indices) == 1 else f"{len(indices)} {kind}s ({shown}) are"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape[:3])

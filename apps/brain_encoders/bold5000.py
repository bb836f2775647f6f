"""BOLD5000 (Chang et al., Scientific Data 2019): regions of four subjects who saw some 5,000 pictures of COCO, ImageNet and Scene.

Responses are those that "Visio-Linguistic Brain Encoding" (Oota et al., COLING 2022) takes: the mean of the published matrices of
volumes 1 to 5 and of volumes 3 and 4 together, region by region.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.brain_encoders.space import TableSpace
from apps.brain_encoders.study import Study
from shared.errors import UserError

__all__ = ["is_bold5000", "read_bold5000"]

VOLUMES = ("TR1", "TR2", "TR3", "TR34", "TR4", "TR5")
TEST_SHARE = 10
"""One different picture in so many is for testing; the data come without a split."""


def is_bold5000(root: Path) -> bool:
    """Whether the folder holds the regions' matrices."""
    return any(root.rglob("*_ROIs_TR*.mat"))


def read_bold5000(root: Path, *, subject: str = "") -> Study:
    """Reads one subject.

    Args:
        root: holds, anywhere below it, CSI1_ROIs_TR1.mat and so on, CSI01_stim_lists.txt, and the presented pictures.
        subject: such as CSI1; not needed if there is only one.

    Raises:
        UserError: if files are missing, or numbers do not fit.
    """
    subjects = sorted({path.name.split("_ROIs_")[0] for path in root.rglob("*_ROIs_TR*.mat")})
    subject = subject or (subjects[0] if len(subjects) == 1 else "")
    if subject not in subjects:
        raise UserError(f"{root}: --data.subject {subject!r} is not there. Choose one of {', '.join(subjects)}.")
    matrices = [path for volume in VOLUMES for path in sorted(root.rglob(f"{subject}_ROIs_{volume}.mat"))[:1]]
    if not matrices:
        raise UserError(f"{root}: there is no {subject}_ROIs_TR1.mat to TR5.mat. Unpack BOLD5000's ROIs again.")
    total: dict[str, NDArray[np.float64]] = {}
    for path in matrices:
        for name, values in read_matrices(path).items():
            if name in total and total[name].shape != values.shape:
                raise UserError(f"{path}: {name} is {values.shape}, but {total[name].shape} in the other volumes. Unpack it again.")
            total[name] = total.get(name, 0) + values / len(matrices)
    lists = sorted(root.rglob(f"{subject[:3]}*{subject[3:]}_stim_lists.txt"))
    if not lists:
        raise UserError(f"{root}: there is no list of stimuli such as CSI01_stim_lists.txt.")
    shown = [line.strip() for line in lists[0].read_text().splitlines() if line.strip()]
    rows = len(next(iter(total.values())))
    if len(shown) != rows:
        raise UserError(
            f"{lists[0]}: names {len(shown):,} presentations, but the responses have {rows:,} rows. Take both from one release."
        )
    files = {path.name: path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif")}
    originals = [re.sub(r"^rep_", "", name) for name in shown]  # as repetitions are marked
    missing = sorted({name for name in originals if name not in files})
    if missing:
        raise UserError(
            f"{root}: {len(missing):,} of the pictures shown are missing, the first: {missing[0]}. Unpack the stimuli below it."
        )
    images = list(dict.fromkeys(originals))
    index = {name: position for position, name in enumerate(images)}
    units = tuple(f"{name} {number}" for name, values in total.items() for number in range(values.shape[1]))
    columns = np.concatenate([[name] * values.shape[1] for name, values in total.items()])
    return Study(
        root=root,
        name=f"bold5000 {subject}",
        images=[files[name] for name in images],
        captions=[""] * len(images),
        test=np.arange(len(images)) % TEST_SHARE == TEST_SHARE - 1,
        trials=np.array([index[name] for name in originals]),
        responses=np.concatenate(list(total.values()), axis=1).astype(np.float32),
        space=TableSpace(units=units),
        regions={name: columns == name for name in total},
    )


def read_matrices(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every two-dimensional matrix of a MATLAB file, by name.

    Raises:
        UserError: if it is none, or holds no matrix.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path)
    except (OSError, ValueError, NotImplementedError, MatReadError) as error:
        raise UserError(
            f"{path}: cannot be read as a MATLAB file ({error}). Copy it again; of version 7.3, save it as version 7."
        ) from error
    found = {
        name: value.astype(np.float64)
        for name, value in content.items()
        if not name.startswith("__") and isinstance(value, np.ndarray) and value.ndim == 2 and np.issubdtype(value.dtype, np.number)
    }
    if not found:
        raise UserError(f"{path}: holds no matrix of numbers.")
    return found

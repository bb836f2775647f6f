"""Pereira et al., "Toward a universal decoder of linguistic meaning from brain activation", Nature Communications 2018.

180 concepts, each shown with pictures (and, in other files, in sentences): one response for each concept, of voxels in language,
visual, default-mode and task-positive regions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.brain_encoders.space import TableSpace
from apps.brain_encoders.study import Study
from shared.errors import UserError

__all__ = ["is_pereira", "read_pereira"]

EXAMPLES = "examples_180concepts_pictures.mat"
TEST_SHARE = 10
_PICTURES = (".jpg", ".jpeg", ".png")


def is_pereira(root: Path, subject: str = "") -> bool:
    """Whether the folder, or the subject's in it, holds the responses to the pictures."""
    return (root / subject / EXAMPLES).is_file() or any(root.glob(f"*/{EXAMPLES}"))


def read_pereira(root: Path, *, subject: str = "") -> Study:
    """Reads one subject's responses to pictures; every picture of a concept gets the concept's response.

    Args:
        root: holds the subjects' folders (P01, M02, ...), and below it the pictures, whose names begin with their concept.
        subject: such as P01; not needed if there is only one, or if ``root`` is its folder.

    Raises:
        UserError: if files are missing, or numbers do not fit.
    """
    own = sorted(path.parent for path in [*root.glob(EXAMPLES), *root.glob(f"*/{EXAMPLES}")])
    chosen = [path for path in own if path.name == subject or (not subject and len(own) == 1)]
    if not chosen:
        raise UserError(f"{root}: --data.subject {subject!r} is not there. Choose one of {', '.join(path.name for path in own)}.")
    folder = chosen[0]
    content = _load(folder / EXAMPLES)
    responses = np.asarray(content["examples"], dtype=np.float32)
    concepts = [_word(name).lower() for name in np.ravel(content["keyConcept"])]
    if len(concepts) != len(responses):
        raise UserError(f"{folder / EXAMPLES}: {len(concepts)} concepts, but {len(responses)} rows of responses. Copy it again.")
    pictures: dict[str, list[Path]] = {name: [] for name in concepts}
    for path in sorted(each for each in root.rglob("*") if each.suffix.lower() in _PICTURES):
        name = path.stem.lower().split("_")[0]
        if name in pictures:
            pictures[name].append(path)
    missing = [name for name, files in pictures.items() if not files]
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of {len(concepts)} concepts have no picture, the first: {missing[0]}. Unpack the pictures too."
        )
    images = [path for name in concepts for path in pictures[name]]
    concept = np.array([index for index, name in enumerate(concepts) for _ in pictures[name]])
    return Study(
        root=root,
        name=f"pereira {folder.name}",
        images=images,
        captions=[concepts[index] for index in concept],
        test=concept % TEST_SHARE == TEST_SHARE - 1,
        trials=np.arange(len(images)),
        responses=responses[concept],
        space=TableSpace(units=tuple(f"voxel {number}" for number in range(responses.shape[1]))),
        regions=_regions(content.get("meta"), responses.shape[1]),
    )


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, struct_as_record=False)
    except (OSError, ValueError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{path}: cannot be read as a MATLAB file ({error}). Copy it again.") from error
    lacking = [name for name in ("examples", "keyConcept") if name not in content]
    if lacking:
        raise UserError(f"{path}: has no {lacking[0]!r}; is it {EXAMPLES} of the published data?")
    return content


def _regions(meta: Any, units: int) -> dict[str, NDArray[np.bool_]]:
    """Atlas and region -> bool [V], from the published meta.atlases, meta.rois and meta.roiColumns, whose columns count from 1."""
    regions: dict[str, NDArray[np.bool_]] = {}
    if meta is None:
        return regions
    about = np.ravel(meta)[0]
    cells = (np.ravel(getattr(about, name, [])) for name in ("atlases", "rois", "roiColumns"))
    for atlas, names, columns in zip(*cells, strict=False):
        for name, members in zip(np.ravel(names), np.ravel(columns), strict=False):
            mask = np.zeros(units, dtype=bool)
            mask[np.ravel(members).astype(int) - 1] = True
            if mask.any():
                regions[f"{_word(atlas)} {_word(name)}"] = mask
    return regions


def _word(cell: Any) -> str:
    """The text of a MATLAB cell, however deep it lies."""
    return str(np.ravel(cell)[0] if isinstance(cell, str) or np.ravel(cell).dtype != object else _word(np.ravel(cell)[0])).strip()

"""Public data sets, as far as their layouts are known: folders made on the spot, because none may be redistributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from apps.brain_encoders.algonauts import ROI_NAMES, published_membership
from apps.brain_encoders.data import read_study
from apps.brain_encoders.study import checked
from shared.errors import UserError
from shared.imaging import write_png

RNG = np.random.default_rng(0)


def picture(path: Path) -> None:
    write_png(path, RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def algonauts(tmp_path: Path) -> Path:
    """A subject with 12 training and 4 test images, 30 left and 25 right vertices."""
    root = tmp_path / "subj01"
    for part, count in (("training", 12), ("test", 4)):
        name = {"training": "train", "test": "test"}[part]
        for index in reversed(range(count)):
            picture(root / f"{part}_split/{part}_images/{name}-{index + 1:04d}_nsd-{index * 7:05d}.png")
        (root / f"{part}_split/{part}_fmri").mkdir()
    (root / "roi_masks").mkdir()
    (root / "test_split/noise_ceiling").mkdir()
    for side, count in (("lh", 30), ("rh", 25)):
        np.save(root / f"training_split/training_fmri/{side}_training_fmri.npy", RNG.standard_normal((12, count)).astype(np.float32))
        np.save(root / f"test_split/test_fmri/{side}_test_fmri.npy", RNG.standard_normal((4, count)).astype(np.float32))
        np.save(root / f"test_split/noise_ceiling/{side}_noise_ceiling.npy", RNG.uniform(20, 80, count))
        inside = np.zeros(163842, dtype=int)
        inside[RNG.choice(163842, count, replace=False)] = 1
        np.save(root / f"roi_masks/{side}.all-vertices_fsaverage_space.npy", inside)
        for family, names in ROI_NAMES.items():
            np.save(root / f"roi_masks/{side}.{family}_challenge_space.npy", RNG.integers(0, len(names) + 1, count))
    return root


def test_a_subject_of_algonauts(algonauts: Path) -> None:
    study = checked(read_study(algonauts))
    assert study.name == "algonauts-2023 subj01"
    assert [path.name[:10] for path in study.images[:2]] == ["train-0001", "train-0002"]
    assert (len(study.part(test=False)), len(study.part(test=True))) == (12, 4)
    assert study.space.hemispheres == (30, 25)
    assert 0.2 <= study.ceiling.min() <= study.ceiling.max() <= 0.8, "percent became shares"
    right = np.load(algonauts / "training_split/training_fmri/rh_training_fmri.npy")
    assert np.array_equal(study.responses[:12, 30:], right)
    labels = np.load(algonauts / "roi_masks/lh.floc-faces_challenge_space.npy")
    assert np.array_equal(study.regions["FFA-1"][:30], labels == 2)


def test_the_queries_of_the_published_program(algonauts: Path) -> None:
    """25 in each hemisphere, in its order, those of regions that a subject lacks too; the last is for vertices in no region."""
    rows = published_membership(algonauts)
    assert rows.shape == (50, 55)
    assert not rows[:25, 30:].any()
    assert np.array_equal(rows[24, :30] == 1, rows[:24, :30].sum(axis=0) == 0)


def test_rows_and_images_that_do_not_match_are_refused(algonauts: Path) -> None:
    next((algonauts / "training_split/training_images").iterdir()).unlink()
    with pytest.raises(UserError, match="11 images, but 12 rows of responses"):
        read_study(algonauts)


def test_a_subject_of_bold5000(tmp_path: Path) -> None:
    shown = ["a.jpg", "b.jpg", "a.jpg", "c.jpg"]
    for name in ("a", "b", "c"):
        picture(tmp_path / f"Presented/{name}.jpg")
    mean = np.zeros((4, 5))
    for volume in ("TR1", "TR2", "TR3", "TR34", "TR4", "TR5"):
        left, right = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 2))
        savemat(tmp_path / f"CSI1_ROIs_{volume}.mat", {"LHPPA": left, "RHPPA": right})
        mean += np.concatenate([left, right], axis=1) / 6
    (tmp_path / "CSI01_stim_lists.txt").write_text("\n".join(shown) + "\n")
    study = checked(read_study(tmp_path, subject="CSI1"))
    assert [path.stem for path in study.images] == ["a", "b", "c"]
    assert study.trials.tolist() == [0, 1, 0, 2]
    assert np.allclose(study.responses, mean, atol=1e-6)
    assert study.regions["RHPPA"].tolist() == [False, False, False, True, True]
    with pytest.raises(UserError, match="Choose one of CSI1"):
        read_study(tmp_path, subject="CSI9")
    (tmp_path / "CSI01_stim_lists.txt").write_text("a.jpg\n")
    with pytest.raises(UserError, match="names 1 presentations, but the responses have 4 rows"):
        read_study(tmp_path)


def test_a_subject_of_pereira(tmp_path: Path) -> None:
    concepts = ["apple", "bird", "car"]
    (tmp_path / "P01").mkdir()
    columns = np.empty(2, dtype=object)
    columns[:] = [np.array([1, 2]), np.array([4])]
    content = {"examples": RNG.standard_normal((3, 4)), "keyConcept": np.array(concepts, dtype=object)}
    atlas = {"atlases": np.array(["language"], dtype=object), "rois": np.empty(1, dtype=object), "roiColumns": np.empty(1, dtype=object)}
    atlas["rois"][0], atlas["roiColumns"][0] = np.array(["LH", "RH"], dtype=object), columns
    savemat(tmp_path / "P01/examples_180concepts_pictures.mat", {**content, "meta": atlas})
    for name in concepts:
        for number in (1, 2):
            picture(tmp_path / f"pictures/{name}_{number}.jpg")
    study = read_study(tmp_path, subject="P01")
    assert study.captions == ["apple", "apple", "bird", "bird", "car", "car"]
    assert np.array_equal(study.responses[2], study.responses[3])
    assert study.regions["language LH"].tolist() == [True, True, False, False]
    assert study.regions["language RH"].tolist() == [False, False, False, True]

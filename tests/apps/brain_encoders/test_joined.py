"""Several feature spaces on the same folds: nothing leaks, parts add up, and maps say which space is preferred."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.brain_encoders.joined import FoldAnswers, answer_folds
from apps.brain_encoders.maps import NONE, preference_figure, write_map_page, write_preference_page
from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace
from shared.encoding.splits import Split, grouped_splits
from shared.metrics.encoding import r2

ALPHAS = tuple(10.0**power for power in range(-2, 5))
GROUPS = np.repeat(np.arange(30), 3)


def planted() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Thirty pictures shown three times; unit 0 answers to the first space, unit 1 to the second, unit 2 to both, unit 3 to neither."""
    random = np.random.default_rng(0)
    features = {name: random.normal(size=(30, width))[GROUPS] * 5 + 3 for name, width in (("a", 4), ("b", 6))}
    first, second = (features[name] @ random.normal(size=features[name].shape[1]) for name in "ab")
    signal = np.stack([first / first.std(), second / second.std(), first / first.std() + second / second.std(), 0 * first], axis=1)
    return features, signal + 0.5 * random.normal(size=signal.shape) + 2


def answered(features: dict[str, np.ndarray], responses: np.ndarray) -> tuple[FoldAnswers, list[Split]]:
    folds = grouped_splits(GROUPS.tolist(), 5)
    together = [("a", "b")]
    return answer_folds(features, responses, folds, groups=GROUPS, alphas=ALPHAS, together=together, stacked=True, banded_search=8), folds


def test_each_unit_finds_its_space() -> None:
    answers, _ = answered(*planted())
    _, responses = planted()
    assert answers.weights.min() >= 0
    np.testing.assert_allclose(answers.weights.sum(axis=0), 1)
    assert answers.weights[0, 0] > 0.9
    assert answers.weights[1, 1] > 0.9
    assert answers.shares[:, :2].argmax(axis=0).tolist() == [0, 1]
    joined = {name: r2(responses, answer) for name, answer in answers.joined().items()}
    assert list(joined) == ["concatenated", "stacked", "banded"]
    best = np.maximum(r2(responses, answers.alone["a"]), r2(responses, answers.alone["b"]))
    assert all(scores[2] > best[2] + 0.2 for name, scores in joined.items() if name != "stacked"), "what both explain needs both"
    assert (joined["stacked"] > best - 0.1).all(), "a mixture is hardly worse than the better of both"


def test_shares_of_the_banded_model_add_up_to_its_r2_about_the_means_of_the_fitted_samples() -> None:
    features, responses = planted()
    answers, folds = answered(features, responses)
    centred = np.concatenate([responses[test] - responses[train].mean(axis=0) for train, test in folds])
    error = np.concatenate([responses[test] - answers.banded[test] for _, test in folds])
    expected = 1 - (error**2).sum(axis=0) / (centred**2).sum(axis=0)
    np.testing.assert_allclose(answers.shares.sum(axis=0), expected, rtol=0, atol=1e-4)  # it is fitted in single precision


def test_what_a_fold_leaves_out_changes_nothing_of_its_predictions() -> None:
    features, responses = planted()
    answers, folds = answered(features, responses)
    test = folds[2][1]
    changed = responses.copy()
    changed[test] = 100 * np.random.default_rng(1).normal(size=changed[test].shape)
    others, _ = answered(features, changed)
    for name, answer in {**answers.alone, **answers.joined()}.items():
        assert np.array_equal(answer[test], {**others.alone, **others.joined()}[name][test]), name


def test_preferences_are_drawn_where_there_is_a_place_and_counted_where_there_is_none(tmp_path: Path) -> None:
    preferred = np.array([0, 1, NONE, 1])
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[1:3, 1:3, 3] = True
    volume = VolumeSpace(mask=mask, affine=np.diag([4.0, 4, 4, 1]))
    surface = SurfaceSpace(mesh="fsaverage5", left=np.array([7, 9]), right=np.array([0, 10241]))
    table = TableSpace(units=("V1", "V2", "V3", "V4"))
    for space, panels in ((volume, 1), (surface, 1), (table, 1)):
        assert len(preference_figure(preferred, ("text", "light"), space).axes) == panels
    for space in (volume, surface):
        page = write_preference_page(tmp_path / "map.html", preferred, ("text", "a < b"), space)
        assert "preferred space" in page.read_text()
        assert "a &lt; b" in page.read_text()
    assert write_preference_page(tmp_path / "none.html", preferred, ("text", "light"), table) is None
    # The viewer has fsaverage's meshes alone: another's first vertices are other places.
    other = SurfaceSpace(mesh="fsLR32k", left=np.array([7, 9]), right=np.array([0, 10241]))
    assert write_map_page(tmp_path / "none.html", preferred.astype(float), other, title="") is None
    assert not (tmp_path / "none.html").exists()

"""Figures of slides agree with scikit-learn's, and their intervals are over patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from apps.acmil.metrics import slide_intervals, slide_scores
from apps.acmil.paper import reported_scores


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_figure_is_scikit_learns(classes: int) -> None:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 80)
    probabilities = random.dirichlet(np.ones(classes), 80).round(2)  # rounded: ties count half
    scores, answers = slide_scores(probabilities, labels), probabilities.argmax(1)
    areas = [roc_auc_score(labels == number, probabilities[:, number]) for number in range(classes)]
    assert scores.auc == pytest.approx(np.mean(areas))
    assert scores.f1_macro == pytest.approx(f1_score(labels, answers, average="macro"))
    assert scores.f1_micro == scores.accuracy == pytest.approx(f1_score(labels, answers, average="micro"))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, answers))


def test_slides_of_one_class_have_no_area_but_an_accuracy() -> None:
    scores = slide_scores([[0.9, 0.1], [0.2, 0.8]], [0, 0])
    assert scores.auc is None
    assert scores.accuracy == scores.balanced_accuracy == 0.5
    assert "auc" not in slide_intervals([[0.9, 0.1], [0.2, 0.8]], [0, 0], patients=["a", "b"], resamples=20, seed=0)


def test_slides_of_few_patients_have_wider_intervals_than_as_many_patients() -> None:
    random = np.random.default_rng(0)
    right = np.repeat(random.random(12) < 0.7, 5)  # five slides of a patient are all right or all wrong
    labels = np.repeat(np.arange(12) % 2, 5)
    probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
    grouped, alone = (
        slide_intervals(probabilities, labels, patients=patients, resamples=99, seed=0)["accuracy"]
        for patients in (np.repeat(np.arange(12), 5).tolist(), list(range(60)))
    )
    assert grouped.estimate == alone.estimate
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_without_resamples_there_are_no_bounds_and_without_slides_an_error() -> None:
    assert slide_intervals([[1.0, 0.0]], [0], patients=["a"], resamples=0, seed=0)["accuracy"].low is None
    with pytest.raises(ValueError, match="at least one slide"):
        slide_scores(np.zeros((0, 2)), [])


def test_reported_figures_are_found_by_the_folders_name_and_say_where_they_come_from() -> None:
    assert all(score.source for score in reported_scores("Camelyon16"))
    assert reported_scores("TCGA_NSCLC")[0].value == "0.960"
    assert reported_scores("my slides") == ()

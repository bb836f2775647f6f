"""Figures about volumes draw what they were given, also where it is little."""

import math

import numpy as np
import pytest

from shared.metrics.cohort import recall_by_volume
from shared.metrics.intervals import Interval
from shared.reports.style import to_png
from shared.reports.volume_figures import bland_altman, memory_curves, recall_by_size, scores_per_class


def interval(estimate, half=0.05):
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half, confidence=0.95)


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in [*axis.texts, axis.title, axis.xaxis.label, *axis.get_xticklabels()]] + [
        axis.get_title(loc="left") for axis in figure.axes
    ]


def test_each_class_has_a_point_and_its_interval():
    lone = Interval(estimate=0.5, low=None, high=None, confidence=0.95)
    figure = scores_per_class({"AGUNet": {"WT": interval(0.9), "ET": interval(math.nan)}, "U-Net $": {"WT": interval(0.85), "TC": lone}})
    assert {"0.900", "0.850", "0.500"} <= set(texts(figure))
    assert figure.axes[0].get_xlim()[1] >= 1
    assert to_png(figure, dpi=40)
    distances = scores_per_class({"AGUNet": {"WT": interval(7.25, 2)}}, label="HD95 (mm)", unit_range=False)
    assert "7.2" in texts(distances)
    with pytest.raises(ValueError, match="no scores"):
        scores_per_class({})


def test_recall_says_how_many_each_range_rests_on():
    bins = recall_by_volume([0.5, 0.6, 2, 5, 50], [False, True, True, True, True], resamples=100)
    figure = recall_by_size({"AGUNet": bins, "DAUNet": bins})
    assert texts(figure).count("1/2") == 2
    assert {"under 1", "1 to 3", "30 or more"} <= set(texts(figure))
    assert to_png(figure, dpi=40)
    assert to_png(recall_by_size({"": bins}), dpi=40)
    with pytest.raises(ValueError, match="at least one range"):
        recall_by_size({"a": bins, "b": bins[:2]})


def test_agreement_of_volumes_has_its_bias_and_limits():
    # Differences 1 and 3: mean 2, standard deviation sqrt 2, limits 2 +- 2.77.
    figure = bland_altman([11, 23, np.nan], [10, 20, 5])
    assert {"mean difference +2.00 ml", "+4.77 ml", "-0.77 ml"} <= set(texts(figure))
    assert any("1 without both" in text for text in texts(figure))
    assert to_png(figure, dpi=40)
    assert to_png(bland_altman([1], [2]), dpi=40)
    with pytest.raises(ValueError, match="same length"):
        bland_altman([1], [2, 3])
    with pytest.raises(ValueError, match="no case"):
        bland_altman([np.nan], [1])


def test_memory_is_drawn_in_gibibytes_from_zero():
    figure = memory_curves(
        {"reversible": [(1, 2**30), (4, 2**30)], "ordinary": [(1, 2**30), (4, 4 * 2**30)]}, x_label="Blocks per stage", budget_gib=3
    )
    (axis,) = figure.axes
    assert axis.lines[1].get_ydata().tolist() == [1, 4]
    assert axis.get_ylim()[0] == 0
    assert to_png(figure, dpi=40)
    assert to_png(memory_curves({"a": [(16, 2**28), (512, 2**33)]}, x_label="Voxels along a side"), dpi=40)
    with pytest.raises(ValueError, match="no curves"):
        memory_curves({}, x_label="x")

"""Figures: right size, right data, names drawn as they are, no display and no global state."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from PIL import Image

from shared.errors import InputError
from shared.metrics.calibration import reliability
from shared.reports.figures import (
    bars_with_intervals,
    read_metrics,
    reliability_diagram,
    score_against_size,
    score_distribution,
    threshold_curve,
    training_curves,
)
from shared.reports.style import to_png

HOSTILE = r"a$b\frac{$_^ <script>.png"


def reliability_figure():
    generator = np.random.default_rng(0)
    probability = generator.random(2000)
    return reliability_diagram({HOSTILE: reliability(probability, generator.random(2000) < probability)})


FIGURES = {
    "training": lambda: training_curves({"train_loss": [(0, 2.0), (10, 1.0)], "val_loss": [(10, 1.5)], HOSTILE: [(0, 1.0)]}),
    "reliability": reliability_figure,
    "distribution": lambda: score_distribution({HOSTILE: [0.1, 0.9, np.nan], "none": []}),
    "size": lambda: score_against_size([0.0, 0.01, 0.2], [1.0, 0.3, 0.9]),
    "size, no target": lambda: score_against_size([0.0], [1.0]),
    "bars": lambda: bars_with_intervals([HOSTILE, "b"], [0.5, 0.7], low=[0.4, None], high=[0.6, None], groups=[HOSTILE, "y"]),
    "threshold": lambda: threshold_curve([0, 0.5, 1], {HOSTILE: [1, 0.8, 0]}, chosen=0.5),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_every_figure_prints_at_its_size_with_hostile_names_and_missing_values(make):
    figure = make()
    image = Image.open(io.BytesIO(to_png(figure, dpi=50)))
    assert image.format == "PNG"
    assert image.size == tuple(int(inches * 50) for inches in figure.get_size_inches())
    assert np.asarray(image.convert("L")).std() > 5  # not blank
    assert all((axis.get_xlabel() and axis.get_ylabel()) or axis.get_yticklabels() for axis in figure.axes if axis.get_visible())


def test_threads_make_the_same_figures_and_the_process_wide_settings_stay(monkeypatch):
    before = dict(matplotlib.rcParams)
    alone = [to_png(make(), dpi=40) for make in FIGURES.values()]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda make: to_png(make(), dpi=40), FIGURES.values()))
    assert together == alone
    assert dict(matplotlib.rcParams) == before


def test_no_display_and_no_pyplot_are_needed():
    code = "import sys, shared.reports.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PATH": "", "MPLBACKEND": "TkAgg"}, check=False).returncode == 0


def test_training_and_validation_share_a_panel():
    figure = training_curves({"train_loss": [(0, 1.0)], "val_loss": [(0, 2.0)], "val/dice": [(0, 0.5)]})
    shown = {axis.get_ylabel(): [text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes}
    assert shown == {"Loss": ["training", "validation"], "Dice": ["validation"]}


def test_metrics_of_a_run_are_read_with_their_gaps(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train_loss,val_dice,remark\n0,10,1.5,,x\n1,20,1.25,0.5,y\n")
    assert read_metrics(path) == {"train_loss": [(10, 1.5), (20, 1.25)], "val_dice": [(20, 0.5)]}
    assert read_metrics(path, x="epoch")["val_dice"] == [(1, 0.5)]


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,2\n", b"\xff\xfe\x00\x81"])
def test_a_missing_or_wrong_table_of_metrics_is_named(tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv"):
        read_metrics(path)


def test_cases_without_a_target_are_counted_not_hidden():
    figure = score_against_size([0, 0, 0.5], [1, 0, 0.7])
    assert "2 cases" in figure.axes[0].get_title(loc="left")


def test_a_long_file_name_leaves_room_for_the_data(recwarn):
    figure = score_distribution({"a_long_file_name_" * 12 + "7.png": [0.5]})
    to_png(figure, dpi=40)
    assert not recwarn
    assert figure.axes[0].get_yticklabels()[0].get_text() == "a_long_file_name…file_name_7.png\n1 case"


def test_scores_are_shown_on_all_of_zero_to_one():
    axis = bars_with_intervals(["a", "b"], [0.81, 0.82], low=[0.8, 0.8], high=[0.83, 0.84]).axes[0]
    assert axis.get_xlim() == (-0.02, 1.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda: training_curves({}),
        lambda: reliability_diagram({}),
        lambda: score_distribution({}),
        lambda: score_against_size([1], [1, 2]),
        lambda: bars_with_intervals(["a"], [1, 2], low=[1], high=[1]),
        lambda: threshold_curve([0, 1], {"a": [1]}),
    ],
)
def test_nothing_or_unequal_lengths_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|log at least one"):
        call()

"""Pictures in a grid, as notebooks show them."""

import io

import numpy as np
import pytest
from PIL import Image

from shared.reports.pictures import picture_grid
from shared.reports.style import to_png

RED = np.full((60, 80, 3), (200, 30, 30), np.uint8)


def render(figure):
    return np.asarray(Image.open(io.BytesIO(to_png(figure, dpi=60))).convert("RGB")).astype(int)


def test_every_picture_is_shown_and_empty_places_stay_white():
    page = render(picture_grid([(RED, f"frame {number}") for number in range(5)], columns=3))
    red = (np.abs(page - RED[0, 0]).sum(axis=2) < 10).mean()
    assert red == pytest.approx(5 / 6, abs=0.15), "captions and gaps take at most 15 % of the page"


def test_pictures_of_different_sizes_keep_their_aspect():
    figure = picture_grid([(RED, "wide"), (np.zeros((90, 60, 3), np.uint8), "tall\nwith two lines")], columns=2)
    assert [axis.get_aspect() for axis in figure.axes] == [1.0, 1.0]
    assert render(figure).min() < 60, "the dark one is there"


def test_the_legend_and_the_scale_say_what_the_colours_mean():
    figure = picture_grid([(RED, "a $5 polyp_1")], columns=1, legend={"missed": (255, 236, 61)}, scale=("viridis", "probability"))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["missed"]
    assert figure.axes[-1].get_xlabel() == "probability"
    assert (np.abs(render(figure) - (255, 236, 61)).sum(axis=2) < 12).any()


def test_nothing_to_show_is_said():
    with pytest.raises(ValueError, match="0 pictures"):
        picture_grid([])

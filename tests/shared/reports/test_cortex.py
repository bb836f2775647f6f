"""Pictures of the cortex: a value shows where its vertex is."""

from __future__ import annotations

import numpy as np
import pytest

from shared.reports.cortex import cortex_picture, volume_picture


def test_a_positive_value_is_red_where_it_is_and_nowhere_else() -> None:
    from nilearn.datasets import load_fsaverage

    coordinates = np.asarray(load_fsaverage("fsaverage5")["pial"].parts["left"].coordinates)
    values = np.full(10242, np.nan)
    values[coordinates[:, 1] < -70] = 1.0  # the occipital pole
    nothing = np.full(10242, np.nan)
    picture = cortex_picture(values, nothing, views=("lateral",), height=80, limit=1).astype(int)
    red = picture[..., 0] - picture[..., 2] > 60
    assert red[:80].any()
    assert not red[80:].any(), "the right hemisphere is in the lower row"
    columns = np.flatnonzero(red.any(axis=0))
    assert columns.min() > picture.shape[1] * 0.6, "seen from the left, the occipital pole is on the right"


def test_too_few_vertices_are_refused() -> None:
    with pytest.raises(ValueError, match="fsaverage5 has 10242"):
        cortex_picture(np.zeros(5), np.zeros(10242))


def test_a_volume_shows_its_largest_value_in_each_direction() -> None:
    volume = np.full((4, 5, 6), np.nan)
    volume[1, 2, 3] = -2
    picture = volume_picture(volume, height=24, limit=2).astype(int)
    blue = picture[..., 2] - picture[..., 0] > 60
    assert blue.any()

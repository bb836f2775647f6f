"""What a person gets of a slide: an answer, the tiles that decided it, and pictures; the same from the slide as from its bag."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.acmil.bags import Bag, list_bags, read_bag, write_bag
from apps.acmil.inference import ACMILPredictor
from apps.acmil.phantoms import bags_of_slides
from apps.acmil.prediction import concentration, top_tiles
from shared.errors import InputError
from shared.phantoms.slide import slide_phantom, write_pyramid


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.45 x 0.4 mm of tissue; not to be changed."""
    path = tmp_path_factory.mktemp("slides") / "slides" / "one.tiff"
    path.parent.mkdir()
    write_pyramid(path, slide_phantom(11, width=900, height=800).image, mpp=0.5)
    return path


@pytest.fixture(scope="module")
def bag(slide: Path, slide_predictor: ACMILPredictor) -> Path:
    settings = slide_predictor.settings
    assert settings.tiling is not None
    assert settings.encoding is not None
    bags_of_slides(slide.parent, slide.parent.parent / "bags", tiling=settings.tiling, encoder=settings.encoding)
    return slide.parent.parent / "bags" / "one.h5"


def test_a_slide_and_its_bag_give_the_same_answer(slide: Path, bag: Path, slide_predictor: ACMILPredictor) -> None:
    one, other = slide_predictor.predict(slide), slide_predictor.predict(bag)
    assert one.summary() == other.summary()
    assert one.encode("application/geo+json") == other.encode("application/geo+json")
    assert sorted(one.tiles) == sorted(other.tiles), "a bag knows where its slide is"


def test_every_result_is_written_and_can_be_read(slide: Path, slide_predictor: ACMILPredictor, tmp_path: Path) -> None:
    prediction = slide_predictor.predict(slide)
    names = prediction.save(tmp_path, "one")
    assert {
        "prediction",
        "tiles",
        "top",
        "heatmap_attention",
        "heatmap_branch_1",
        "heatmap_branch_3",
        "heatmaps",
        "page",
    } == names.keys() - {"heatmap_branch_2"}
    assert {path.name for path in tmp_path.iterdir()} == set(names.values())
    said = json.loads((tmp_path / names["prediction"]).read_text())
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert said["prediction"] == prediction.predicted == max(said["probabilities"], key=said["probabilities"].get)
    assert len(said["top_tiles"]["attention"]) == 4
    assert Image.open(tmp_path / names["top"]).size == (4 * 132 - 4, 4 * 132 - 4), "four tiles; all branches together, and three"


def test_the_geojson_has_every_tile_where_it_is_with_its_attention(slide: Path, slide_predictor: ACMILPredictor) -> None:
    prediction = slide_predictor.predict(slide)
    tiles = prediction.geojson()
    assert tiles["properties"]["slide_size_px"] == [900, 800]
    measured = np.array([feature["properties"]["measurements"]["attention"] for feature in tiles["features"]])
    assert measured.mean() == pytest.approx(1, rel=1e-3), "in equal shares"
    assert prediction.bag.coordinates is not None
    first = tiles["features"][0]["geometry"]["coordinates"][0]
    assert first[0] == first[4] == prediction.bag.coordinates[0].tolist()
    assert first[2] == (prediction.bag.coordinates[0] + prediction.bag.tile_px_level0).tolist()


def test_the_pictures_of_the_top_tiles_are_those_places_of_the_slide(slide: Path, slide_predictor: ACMILPredictor) -> None:
    prediction = slide_predictor.predict(slide)
    best = int(top_tiles(prediction.merged, 1)[0])
    assert prediction.bag.coordinates is not None
    x, y = prediction.bag.coordinates[best]
    whole = slide_phantom(11, width=900, height=800).image[y : y + 256, x : x + 256].astype(float)
    small = whole.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(prediction.tiles[best] - small).mean() < 4, "in grey levels: JPEG, and another way of shrinking"
    assert prediction.summary()["most_attended_tile_px"] == [x, y]


def test_figure_and_preview_can_be_drawn_for_a_slide_and_for_a_bag_without_one(
    slide: Path, slide_predictor: ACMILPredictor, predictor: ACMILPredictor, labelled: Path
) -> None:
    for prediction in (slide_predictor.predict(slide), predictor.predict(list_bags(labelled / "bags")[1].path)):
        prediction.figure().savefig(io.BytesIO(), format="png")
        assert prediction.preview().startswith(b"\x89PNG")
    assert prediction.tiles == {}


def test_a_bag_without_places_has_an_answer_and_no_pictures(predictor: ACMILPredictor, tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    prediction = predictor.predict(Bag(features=features, coordinates=None, slide="nameless"))
    assert prediction.save(tmp_path, "x").keys() == {"prediction", "tiles"}
    assert prediction.preview().startswith(b"\x89PNG")
    prediction.figure()
    assert [feature["geometry"] for feature in prediction.geojson()["features"]] == [None] * 7


def test_a_bag_of_another_encoder_is_refused_by_name_and_by_width(predictor: ACMILPredictor, labelled: Path, tmp_path: Path) -> None:
    bag = read_bag(list_bags(labelled / "bags")[0])
    write_bag(tmp_path / "named.h5", replace(bag, encoder="another"))
    with pytest.raises(
        InputError, match=r"named\.h5: features of another encoder: 16 wide, of 'another'; this model reads features 16 wide"
    ):
        predictor.predict(tmp_path / "named.h5")
    write_bag(tmp_path / "narrow.h5", replace(bag, features=bag.features[:, :5], encoder=""))
    with pytest.raises(InputError, match=r"narrow\.h5: features of another encoder: 5 wide"):
        predictor.predict(tmp_path / "narrow.h5")


def test_a_model_of_bags_says_that_it_cannot_cut_slides(predictor: ACMILPredictor, slide: Path) -> None:
    with pytest.raises(InputError, match=r"one\.tiff: is a slide, and this model was made from bags of features of 'witnesses'"):
        predictor.predict(slide)


def test_concentration_is_the_share_of_the_highest_tiles() -> None:
    assert concentration(np.array([0.1, 0.5, 0.4], dtype=np.float32), [1, 2, 3, 9]) == pytest.approx([0.5, 0.9, 1, 1])
    assert top_tiles(np.array([0.2, 0.5, 0.2, 0.1], dtype=np.float32), 3).tolist() == [1, 0, 2]

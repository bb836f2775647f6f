"""Bags that CLAM, TRIDENT, STAMP and ACMIL wrote are read as they are; ours are read by those; what is no bag says why."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from apps.acmil.bags import Bag, bag_shape, list_bags, read_bag, read_tiles, write_bag
from shared.errors import InputError, UserError

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(12, 8)).astype(np.float32)
COORDINATES = np.stack([np.arange(12) % 4 * 512, np.arange(12) // 4 * 512], axis=1) + 1024


def our_bag() -> Bag:
    return Bag(features=FEATURES, coordinates=COORDINATES, slide="one", encoder="uni_v1", tile_px_level0=512, mpp=0.25)


def test_a_bag_comes_back_as_it_was_written(tmp_path) -> None:
    write_bag(tmp_path / "one.h5", our_bag(), settings={"any": 1})
    bag = read_bag(tmp_path / "one.h5")
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.coordinates, COORDINATES)
    assert (bag.slide, bag.encoder, bag.tile_px_level0, bag.mpp, bag.notes) == ("one", "uni_v1", 512, 0.25, ())
    assert bag_shape(tmp_path / "one.h5") == (12, 8)


def test_others_find_in_our_bags_what_they_look_for(tmp_path) -> None:
    write_bag(tmp_path / "one.h5", our_bag())
    with h5py.File(tmp_path / "one.h5") as file:
        assert file["features"].dtype == np.float32
        assert file["coords"].dtype == np.int64
        assert file["features"].attrs["encoder"] == "uni_v1"
        about = dict(file["coords"].attrs)
    assert about["patch_size_level0"] == 512
    assert about["level0_magnification"] == 40
    assert {"patch_size", "target_magnification", "overlap", "name", "savetodir"} <= set(about)


def clam(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=FEATURES, chunks=(1, 8), maxshape=(None, 8))
        file.create_dataset("coords", data=COORDINATES.astype(np.int32))


def clam_patches(path: Path) -> None:
    with h5py.File(path, "w") as file:
        table = file.create_dataset("coords", data=COORDINATES)
        table.attrs.update({"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "name": "one", "save_path": "x"})


def trident(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=FEATURES[None]).attrs["encoder"] = "uni_v1"
        table = file.create_dataset("coords", data=COORDINATES)
        table.attrs.update(
            {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20, "overlap": 0}
        )


def stamp(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"unit": "um", "tile_size_um": 128.0, "extractor": "uni"})
        file.create_dataset("feats", data=FEATURES.astype(np.float16))
        file.create_dataset("coords", data=COORDINATES * 0.25)


def test_clam_features_say_nothing_of_their_tiles_so_their_spacing_is_taken_and_named(tmp_path) -> None:
    clam(tmp_path / "one.h5")
    bag = read_bag(tmp_path / "one.h5")
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert bag.tile_px_level0 == 512
    assert "does not say how large" in bag.notes[0]
    assert bag.encoder == ""


def test_clam_coordinates_count_in_pixels_of_their_level(tmp_path) -> None:
    clam_patches(tmp_path / "one.h5")
    assert read_tiles(tmp_path / "one.h5").tile_px_level0 == 512


def test_trident_bags(tmp_path) -> None:
    trident(tmp_path / "one.h5")
    bag = read_bag(tmp_path / "one.h5")
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert (bag.tile_px_level0, bag.encoder) == (512, "uni_v1")


def test_stamp_bags_count_in_micrometres(tmp_path) -> None:
    stamp(tmp_path / "one.h5")
    bag = read_bag(tmp_path / "one.h5")
    np.testing.assert_allclose(bag.features, FEATURES, atol=2e-3)  # half precision
    assert (bag.mpp, bag.tile_px_level0, bag.encoder) == (1.0, 128, "uni")


def test_acmil_keeps_all_slides_in_one_file(tmp_path) -> None:
    with h5py.File(tmp_path / "patch_feats_pretrain_natural_supervised.h5", "w") as file:
        for name in ("b", "a"):
            group = file.create_group(name)
            group.attrs["label"] = 1
            group.create_dataset("feat", data=FEATURES.astype(np.float16))
            group.create_dataset("coords", data=COORDINATES)
    for where in (tmp_path, tmp_path / "patch_feats_pretrain_natural_supervised.h5"):
        files = list_bags(where)
        assert [file.slide for file in files] == ["a", "b"]
        np.testing.assert_allclose(read_bag(files[0]).features, FEATURES, atol=2e-3)


def test_clam_folders_side_by_side_are_one_set(tmp_path) -> None:
    (tmp_path / "h5_files").mkdir()
    (tmp_path / "pt_files").mkdir()
    clam(tmp_path / "h5_files" / "one.h5")
    for name in ("one", "two"):
        torch.save(torch.from_numpy(FEATURES), tmp_path / "pt_files" / f"{name}.pt")
    files = list_bags(tmp_path)
    assert [(file.slide, file.path.suffix) for file in files] == [("one", ".h5"), ("two", ".pt")]
    assert read_bag(files[1]).coordinates is None
    assert bag_shape(files[1]) == (12, 8)


def test_two_bags_of_one_slide_are_refused(tmp_path) -> None:
    for folder in ("uni", "virchow"):
        (tmp_path / folder).mkdir()
        trident(tmp_path / folder / "one.h5")
    with pytest.raises(UserError, match="slide one has two bags"):
        list_bags(tmp_path)


def broken(path: Path, kind: str) -> None:
    if kind == "cut short":
        trident(path)
        path.write_bytes(path.read_bytes()[:900])
        return
    with h5py.File(path, "w") as file:
        if kind == "no features":
            file["coords"] = COORDINATES
        elif kind == "other lengths":
            file["features"], file["coords"] = FEATURES, COORDINATES[:5]
        elif kind == "empty":
            file["features"], file["coords"] = FEATURES[:0], COORDINATES[:0]
        elif kind == "not finite":
            file["features"], file["coords"] = np.where(FEATURES > 2, np.nan, FEATURES) * np.inf, COORDINATES


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut short", "cannot be read as HDF5"),
        ("no features", "has no table of features; found coords"),
        ("other lengths", "12 rows of features and coordinates"),
        ("empty", "at least one tile was expected"),
        ("not finite", "of 12 rows of features are not finite"),
    ],
)
def test_a_broken_bag_says_what_is_wrong(tmp_path, kind: str, reason: str) -> None:
    broken(tmp_path / "one.h5", kind)
    with pytest.raises(InputError, match=reason) as refused:
        read_bag(tmp_path / "one.h5")
    assert str(refused.value).startswith(str(tmp_path / "one.h5"))


def test_a_pickle_is_not_opened(tmp_path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "one.pt")
    with pytest.raises(InputError, match="cannot be read as a tensor"):
        read_bag(tmp_path / "one.pt")

"""Any encoder makes the same bag of the same slide, however it is read; a damaged part costs its tiles and no more."""

from __future__ import annotations

import csv
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from apps.acmil.bags import read_bag, write_tiles
from apps.acmil.config_pipeline import EncoderConfig, FeaturesConfig, TileConfig, TilingConfig
from apps.acmil.encoders import build_foundation_model, foundation_models, load_encoder
from apps.acmil.features import features, slide_to_bag
from apps.acmil.reading import TileStream, runs
from apps.acmil.tiling import tile, tile_slide
from shared.errors import InputError, UserError
from shared.imaging.slides import open_slide
from shared.phantoms.slide import slide_phantom, write_pyramid

TILING = TilingConfig(mpp=1.0, tile_px=96)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.tiff"
    write_pyramid(path, slide_phantom(2, width=1200, height=1000, mpp=0.5).image, mpp=0.5)
    return path


@pytest.fixture(scope="module")
def texture():
    return load_encoder(EncoderConfig())


@pytest.mark.parametrize("tiling", [TILING, TilingConfig(mpp=0.5, tile_px=128), TilingConfig(mpp=0.7, tile_px=100, overlap_px=30)])
def test_tiles_are_those_that_would_be_read_one_by_one(slide_file, tiling: TilingConfig) -> None:
    with open_slide(slide_file) as slide, ThreadPoolExecutor(3) as pool:
        tiles, _ = tile_slide(slide, tiling)
        stream = TileStream(slide, tiles, pool=pool)
        blocks = list(stream)
        np.testing.assert_array_equal(np.concatenate([chosen for chosen, _ in blocks]), np.arange(len(tiles)))
        for chosen, pictures in blocks:
            for index, picture in zip(chosen, pictures, strict=True):
                x, y = tiles.coordinates[index].tolist()
                alone = slide.read_region(x, y, tiling.tile_px, tiling.tile_px, mpp=tiles.tile_mpp)
                # Read with their neighbours they are cut from, tiles differ by the rounding of the filter.
                np.testing.assert_allclose(picture.astype(int), alone, atol=1)


def test_neighbours_are_read_together(slide_file) -> None:
    with open_slide(slide_file) as slide:
        tiles, _ = tile_slide(slide, TILING)
        groups = runs(tiles, downsample=2.0, px=96)
    assert max(map(len, groups)) > 2
    assert sum(map(len, groups)) == len(tiles)


def test_a_bag_does_not_depend_on_how_it_is_computed(slide_file, texture) -> None:
    one = slide_to_bag(slide_file, TILING, texture, batch_size=7, workers=1)
    other = slide_to_bag(slide_file, TILING, texture, batch_size=64, workers=4)
    np.testing.assert_array_equal(one.coordinates, other.coordinates)
    np.testing.assert_allclose(one.features, other.features, atol=1e-5)  # sums in another order
    assert one.encoder == "texture"
    assert one.features.shape[1] == texture.dimension
    assert (one.mpp, one.tile_px_level0) == (0.5, 192)


def small_resnet(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=7).state_dict(), path)
    return path


class Tiny(nn.Module):
    """Three means in a network's clothes."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))


def encoders(folder: Path) -> dict[str, EncoderConfig]:
    torch.manual_seed(0)
    torch.save(get_model("mobilenet_v3_small", weights=None).state_dict(), folder / "mobile.pth")
    torch.jit.script(Tiny()).save(folder / "tiny.pt")
    program = torch.export.export(Tiny(), (torch.rand(2, 3, 96, 96),), dynamic_shapes=({0: torch.export.Dim("tiles")},))
    torch.export.save(program, folder / "tiny.pt2")
    resnet = timm.create_model("resnet18", num_classes=1000)
    torch.save({"model": resnet.state_dict()}, folder / "resnet18.pth")
    return {
        "timm": EncoderConfig(name="timm/resnet10t", weights=small_resnet(folder), input_px=64),
        "torchvision": EncoderConfig(name="torchvision/mobilenet_v3_small", weights=folder / "mobile.pth", input_px=64),
        "TorchScript": EncoderConfig(name="file", weights=folder / "tiny.pt", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        "torch.export": EncoderConfig(name="file", weights=folder / "tiny.pt2", input_px=96),
        "foundation model": EncoderConfig(name="natural_supervised", weights=folder / "resnet18.pth"),
    }


def test_features_of_any_model(tmp_path, slide_file) -> None:
    widths = {"timm": 512, "torchvision": 576, "TorchScript": 3, "torch.export": 3, "foundation model": 512}
    with open_slide(slide_file) as slide:
        tile = slide.read_region(300, 300, 96, 96, mpp=1.0)
    for kind, config in encoders(tmp_path).items():
        encoder = load_encoder(config, device="cpu")
        found = encoder.embed(np.stack([tile, tile[::-1]]))
        assert found.shape == (2, widths[kind]) == (2, encoder.dimension), kind
        assert found.dtype == np.float32
        if kind == "TorchScript":
            np.testing.assert_allclose(found[0], tile.mean((0, 1)) / 255, atol=1e-5)
        if kind != "foundation model":  # its name says which weights; others' names end in theirs
            assert re.fullmatch(r".+@[0-9a-f]{8}", encoder.name)


@pytest.mark.parametrize("name", sorted(foundation_models()))
def test_foundation_models_are_built_as_their_authors_state(name: str) -> None:
    """On the meta device: nothing is allocated."""
    entry = foundation_models()[name]
    assert {"title", "hub", "licence", "gated", "tile_px", "mpp"} <= set(entry)
    with torch.device("meta"):
        network = build_foundation_model(entry)
    width = network.feature_info.channels()[0] if entry["pooling"] == "third_stage" else network.num_features
    assert width * (2 if entry["pooling"] == "token_and_mean" else 1) == entry["dimension"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig(name="uni_v1"), r"huggingface\.co/MahmoodLab/UNI.*gated.*licence.*--encoder\.weights"),
        (EncoderConfig(name="timm/resnet18"), "without weights its features mean nothing"),
        (EncoderConfig(name="torchvision/none", pretrained=True), "torchvision has no model"),
        (EncoderConfig(name="nonesuch"), "there is no 'nonesuch'. Choose texture, file"),
        (EncoderConfig(name="file"), "not given"),
        (EncoderConfig(weights=Path("none.bin")), r"texture: has no weights to be read from none\.bin"),
    ],
)
def test_an_encoder_that_cannot_be_had_says_how_to_get_it(config: EncoderConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder(config)


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="weights of another model"):
        load_encoder(EncoderConfig(name="timm/resnet18", weights=small_resnet(tmp_path)))


def damaged(source: Path, target: Path, *, tiles: list[int]) -> Path:
    with tifffile.TiffFile(source) as file:
        places = [(file.pages[0].dataoffsets[tile], file.pages[0].databytecounts[tile]) for tile in tiles]
    content = bytearray(source.read_bytes())
    for offset, count in places:
        content[offset : offset + count] = bytes(count)
    target.write_bytes(content)
    return target


def test_unreadable_tiles_are_left_out_counted_and_too_many_refused(tmp_path, slide_file, texture) -> None:
    tiling = TilingConfig(mpp=0.5, tile_px=64)
    whole = slide_to_bag(slide_file, tiling, texture)
    hurt = damaged(slide_file, tmp_path / "hurt.tiff", tiles=[7])  # 256 pixels square, in the middle
    bag = slide_to_bag(hurt, TilingConfig(mpp=0.5, tile_px=64, max_unreadable=0.2), texture)
    missing = len(whole) - len(bag)
    assert 1 <= missing <= 25
    assert bag.notes == (f"{missing} of {len(whole)} tiles are unreadable and were left out",)
    kept = (whole.coordinates[:, None] == bag.coordinates[None]).all(2).any(1)
    np.testing.assert_allclose(whole.features[kept], bag.features, atol=1e-4)
    with pytest.raises(InputError, match=rf"hurt\.tiff: {missing} of {len(whole)} tiles are unreadable, more than 1%.*cannot be decoded"):
        slide_to_bag(hurt, TilingConfig(mpp=0.5, tile_px=64, max_unreadable=0.01), texture)


def test_the_verb_makes_bags_lists_failures_and_does_nothing_twice(tmp_path, slide_file, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.tiff").write_bytes(slide_file.read_bytes())
    (folder / "letter.svs").write_text("Dear colleague,")
    config = FeaturesConfig(input=[folder], output=tmp_path / "out", tiling=TILING)
    assert features(config) == 3
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["slide"] for row in rows] == ["a", "b"]
    assert all(row["tiles"] == len(read_bag(tmp_path / "out" / row["files"]["bag"])) for row in rows)
    assert [row["input"] for row in csv.DictReader((tmp_path / "out" / "failures.csv").open())] == [str(folder / "letter.svs")]
    (tmp_path / "out" / "b.h5").unlink()  # as if it had been killed before b
    made = (tmp_path / "out" / "a.h5").stat().st_mtime_ns
    assert features(config) == 3
    assert (tmp_path / "out" / "a.h5").stat().st_mtime_ns == made
    assert (tmp_path / "out" / "b.h5").exists()
    with pytest.raises(UserError, match="other settings"):
        features(FeaturesConfig(input=[folder], output=tmp_path / "out", tiling=TilingConfig(mpp=0.5)))
    assert "texture" in capsys.readouterr().out


def test_tiles_of_an_earlier_run_are_taken_as_they_are(tmp_path, slide_file) -> None:
    with open_slide(slide_file) as slide:
        tiles, _ = tile_slide(slide, TilingConfig(mpp=1.0, tile_px=96, overlap_px=48))
    write_tiles(tmp_path / "tiles" / "slide.h5", tiles)
    config = FeaturesConfig(input=[slide_file], output=tmp_path / "out", tiles=tmp_path / "tiles")
    assert features(config) == 0
    np.testing.assert_array_equal(read_bag(tmp_path / "out" / "slide.h5").coordinates, tiles.coordinates)
    folder = tmp_path / "slides" / "below"
    folder.mkdir(parents=True)
    for name in ("slide.tiff", "slide.tif"):  # in a sub-folder, and of one name but for the ending
        (folder / name).write_bytes(slide_file.read_bytes())
    assert tile(TileConfig(input=[tmp_path / "slides"], output=tmp_path / "ours", tiling=TILING)) == 0
    assert features(FeaturesConfig(input=[tmp_path / "slides"], output=tmp_path / "both", tiles=tmp_path / "ours")) == 0
    assert len(list((tmp_path / "both" / "below").glob("*.h5"))) == 2
    empty = FeaturesConfig(input=[slide_file], output=tmp_path / "none", tiles=tmp_path)
    assert features(empty) == 3
    assert "there are no coordinates of it" in (tmp_path / "none" / "failures.csv").read_text()

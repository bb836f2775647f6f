"""Features: any layer of any network by name, computed once, and projections that know the training images alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.brain_encoders.backbones import GaborPyramid, build_backbone
from apps.brain_encoders.config import BackboneConfig
from apps.brain_encoders.features import FeatureStore, backbone_of, fit_projection
from apps.brain_encoders.preprocessing import to_input
from apps.brain_encoders.study import Study
from shared.errors import UserError
from tests.apps.brain_encoders.conftest import GABOR

VIT = BackboneConfig(
    name="vit_base_patch14_dinov2",
    layer="blocks.1.attn.qkv",
    size=60,
    options=("embed_dim=32", "depth=2", "num_heads=2"),
)


def test_images_are_padded_to_whole_patches_as_published() -> None:
    """425 becomes 434 with zeros at the bottom and the right, after normalisation."""
    image = np.full((425, 425, 3), 255, dtype=np.uint8)
    given = to_input(image, size=425, multiple=14)
    assert given.shape == (3, 434, 434)
    assert not given[:, 425:].any()
    assert not given[:, :, 425:].any()
    assert float(given[0, 0, 0]) == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)


def test_queries_are_a_third_of_the_layer_without_the_class_token() -> None:
    whole, query = (backbone_of(replace(VIT, part=part)) for part in ("whole", "query"))
    image = torch.randn(1, 3, 70, 70)
    with torch.inference_mode():
        features = query(image)
        assert features.shape == (1, 32, 5, 5)
        assert torch.equal(features, whole(image)[:, :32])


def test_a_layer_of_a_convolutional_network_and_a_transformers_model() -> None:
    resnet = build_backbone("timm", name="test_resnet", layer="layer4")
    vit = build_backbone(
        "transformers",
        name="any",
        layer="layernorm",
        options={
            "model_type": "vit",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 32,
        },
    )
    with torch.inference_mode():
        assert resnet(torch.randn(1, 3, 64, 64)).shape[2:] == (2, 2)
        assert vit(torch.randn(1, 3, 32, 32)).shape == (1, 32, 2, 2)


def test_an_unknown_layer_or_network_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"no module 'blocks.7'. Some that it has: .*blocks.1"):
        backbone_of(replace(VIT, layer="blocks.7"))
    with pytest.raises(UserError, match="'no_such_net' cannot be made"):
        build_backbone("timm", name="no_such_net", layer="x")


def test_the_store_computes_each_image_once_and_forgets_nothing_when_it_is_killed(study: Study, tmp_path: Path) -> None:
    images = study.images[:5]
    store = FeatureStore(GaborPyramid(), GABOR, folder=tmp_path, device="cpu")
    store.extract(images[:2])
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(kept) == 2
    store.extract(images)
    assert len(list(tmp_path.rglob("*.npy"))) == 5
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    fresh = FeatureStore(GaborPyramid(), GABOR, folder=None, device="cpu")
    assert torch.equal(store.read(images[4]), fresh.read(images[4]))


def test_a_damaged_file_of_the_store_is_named_with_what_to_do(study: Study, tmp_path: Path) -> None:
    store = FeatureStore(GaborPyramid(), GABOR, folder=tmp_path, device="cpu")
    store.extract(study.images[:1])
    (kept,) = tmp_path.rglob("*.npy")
    kept.write_bytes(kept.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"{kept.name}: cannot be read as stored features .*Delete it"):
        store.read(study.images[0])
    kept.unlink()
    assert store.read(study.images[0]).isfinite().all()


def test_another_backbone_has_another_place_in_the_store(tmp_path: Path) -> None:
    stores = [FeatureStore(GaborPyramid(cell=cell), GABOR, folder=tmp_path, device="cpu") for cell in (8, 8)]
    assert stores[0].folder == stores[1].folder
    bigger = FeatureStore(GaborPyramid(), replace(GABOR, size=96), folder=tmp_path, device="cpu")
    first, second = (backbone_of(replace(VIT, part="query")) for _ in range(2))
    with torch.no_grad():
        next(second.parameters()).add_(1)
    vits = {FeatureStore(network, VIT, folder=tmp_path, device="cpu").folder for network in (first, second)}
    assert len({stores[0].folder, bigger.folder, *vits}) == 4


@pytest.mark.parametrize("kind", ["pca", "random", "none"])
def test_a_projection_is_fitted_on_training_images_and_applied_to_any(kind: str) -> None:
    rng = np.random.default_rng(0)
    train, other = rng.standard_normal((30, 12)) * 5 + 3, rng.standard_normal((7, 12))
    projection = fit_projection(train, kind=kind, components=6)
    assert projection(train).std(axis=0, ddof=1) == pytest.approx(np.ones(projection(train).shape[1]), abs=0.05)
    again = fit_projection(train, kind=kind, components=6)
    assert np.array_equal(projection(other), again(other))


def test_a_random_projection_is_sparse_and_keeps_distances_up_to_one_scale() -> None:
    """Li, Hastie and Church (KDD 2006): one entry in sqrt(p) is not 0, and those are +v or -v; squared distances then spread by
    sqrt(2 / components) (here 0.1) around their mean, and features of unequal scale are standardised by the training images first."""
    rng = np.random.default_rng(0)
    train, other = rng.standard_normal((60, 900)) * np.logspace(-1, 1, 900) + 3, rng.standard_normal((20, 900))
    projection = fit_projection(train, kind="random", components=200)
    assert projection.centre == pytest.approx(train.mean(axis=0), rel=1e-4)
    assert projection.scale == pytest.approx(train.std(axis=0), rel=1e-4)
    sizes = abs(projection.components)
    assert np.mean(sizes > 0) == pytest.approx(1 / 30, rel=0.1)
    for row in sizes[:5]:
        assert row[row > 0] == pytest.approx(np.full((row > 0).sum(), row.max()))
    new = other * projection.scale + projection.centre
    before, after = ((each[:10] - each[10:]).astype(np.float64) for each in (other, projection(new)))
    ratio = (after**2).sum(axis=1) / (before**2).sum(axis=1)
    assert ratio.std() / ratio.mean() < 0.25


def test_gabor_energies_follow_orientation_and_ignore_uniform_light() -> None:
    stripes = torch.from_numpy(np.sin(np.arange(64) * 2 * np.pi / 8)).float().expand(1, 3, 64, 64)
    pyramid = GaborPyramid()
    with torch.inference_mode():
        vertical, horizontal, flat = (pyramid(image)[0, 4:8, 4, 4] for image in (stripes, stripes.mT, torch.ones(1, 3, 64, 64)))
    assert int(vertical.argmax()) == 0
    assert int(horizontal.argmax()) == 2
    assert flat.max() < vertical.max()
    assert float(flat.max() - flat.min()) == pytest.approx(0, abs=1e-4)

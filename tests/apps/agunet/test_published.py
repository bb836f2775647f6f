"""A released Keras file becomes our network: the answers are the published ones, and what is no such file is refused in one line."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from apps.agunet.model import AGUNet, DAUNet, PublishedChannelAttention
from apps.agunet.published import read_published
from shared.errors import UserError
from tests.parity.adapters.agunet import give_projections, keras_layers
from tests.parity.fixture import Fixture, read_fixture
from tests.parity.recipe import draw_inputs, draw_state

FIXTURES = Path(__file__).parents[2] / "parity" / "fixtures"

Layers = dict[str, dict[str, np.ndarray]]


def fixture(name: str) -> tuple[Fixture, Layers]:
    found = read_fixture(FIXTURES / f"{name}.json")
    return found, keras_layers(draw_state(found.state, found.seed))


def renumbered(layers: Layers, first: int) -> Layers:
    """As if the session had built other networks before: Keras goes on counting."""
    later = {}
    for name, weights in layers.items():
        kind, _, number = name.rpartition("_")
        kind, number = (kind, int(number)) if number.isdigit() else (name, 0)
        later[f"{kind}_{number + first}"] = weights
    return later


def write(path: Path, layers: Layers, *, whole_model: bool = True, within: str = "") -> Path:
    """Keras' file of a model, or of its weights alone; with layers that hold no weights, in no particular order."""
    names = [*layers, "input_1", "activation_3", "max_pooling3d"]
    random.Random(0).shuffle(names)
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.2.4-tf"
        if whole_model:
            file.attrs["model_config"] = b'{"class_name": "Model"}'
            file.create_group("optimizer_weights/training/Adam")["conv3d/kernel/m:0"] = np.zeros(3)
        root = file.create_group("model_weights") if whole_model else file
        root.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            group = root.create_group(f"{within}{name}")
            group.attrs["weight_names"] = [f"{name}/{kind}:0".encode() for kind in layers.get(name, {})]
            for kind, array in layers.get(name, {}).items():
                group[f"{name}/{kind}:0"] = array
    return path


def check_probability(network: AGUNet | DAUNet, found: Fixture) -> None:
    """Within the fixture's own tolerance."""
    image = torch.from_numpy(draw_inputs(found.inputs, found.seed)["image"])
    with torch.inference_mode():
        outputs = network.side_outputs(image)
    for expected in found.expected:
        name, _, level = expected.name.partition("_")
        if name == "probability":
            answer = outputs[int(level)].softmax(dim=1)[:, 1:2].numpy()
            assert answer.shape == expected.shape
            answer = answer[tuple(slice(None, None, step) for step in expected.stride or (1,) * 5)]
            assert np.abs(answer - expected.values).max() <= expected.tolerance * expected.spread


@pytest.mark.parametrize("name", ["agunet-full", "agunet-plain"])
@pytest.mark.parametrize("first", [0, 41])
def test_a_released_agunet_answers_as_published(name: str, first: int, tmp_path: Path) -> None:
    found, layers = fixture(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        published = read_published(write(tmp_path / "model.h5", renumbered(layers, first)))
    config = found.config
    assert published.network == "agunet"
    assert published.notes == ()
    assert published.settings == {
        "in_channels": 1,
        "classes": 2,
        "channels": tuple(config["convolutions"]),
        "multi_scale_input": config["input_pyramid"],
        "deep_supervision": config["deep_supervision"],
    }
    check_probability(published.build(), found)


@pytest.mark.parametrize("name", ["daunet-guided", "daunet-plain"])
def test_a_released_dagunet_comes_without_position_attention_and_says_so(name: str, tmp_path: Path) -> None:
    found, layers = fixture(name)
    path = write(tmp_path / "model.hdf5", renumbered(layers, 7))
    with pytest.warns(UserWarning, match=r"model.hdf5: .* not in the file.*0\.7.*not those"):
        published = read_published(path)
    assert published.network == "daunet"
    assert len(published.notes) == 1
    assert published.settings["guidance"] == found.config["attention_guiding"]
    assert published.settings["channel_attention"] is PublishedChannelAttention

    network = published.build()
    x = torch.randn(1, found.config["convolutions"][-1], 2, 3, 4)
    assert torch.equal(network.attention.position(x), x)
    with pytest.warns(UserWarning, match="position attention"):
        again = read_published(path)
    assert all(torch.equal(published.state[key], again.state[key]) for key in published.state)

    give_projections(network, draw_state(found.state, found.seed))
    check_probability(network, found)


@pytest.mark.parametrize("layout", [{"whole_model": False}, {"within": "model_1/"}], ids=["weights alone", "model within a model"])
def test_other_ways_in_which_keras_saves_are_read_too(layout: dict, tmp_path: Path) -> None:
    found, layers = fixture("agunet-plain")
    check_probability(read_published(write(tmp_path / "weights.h5", layers, **layout)).build(), found)


def without(layers: Layers, name: str) -> Layers:
    return {key: weights for key, weights in layers.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda layers: without(layers, "conv3d_14"), "is neither an AGUNet nor a DAGUNet (27 convolutions"),
        (lambda layers: without(layers, "batch_normalization_3"), "25 normalisations"),
        (lambda layers: without(layers, "conv3d_transpose_1"), "2 transposed convolutions"),
        (lambda layers: layers | {"dense": {"kernel": np.zeros((3, 3)), "bias": np.zeros(3)}}, "'dense' with bias, kernel"),
        (lambda layers: layers | {"conv3d_3": {"kernel": np.zeros((3, 3, 3, 8, 8))}}, "'conv3d_3' with kernel, which is no part"),
        (lambda layers: layers | {"conv3d_3": layers["conv3d_4"]}, "is neither an AGUNet nor"),
        (lambda layers: layers | {"conv3d": {"kernel": np.zeros((3, 3)), "bias": np.zeros(8)}}, "is neither an AGUNet nor"),
        (lambda layers: layers | {"conv3d": {"kernel": np.zeros((3, 3, 3, 1, 0)), "bias": np.zeros(0)}}, "is neither an AGUNet nor"),
        (lambda layers: layers | {"cam": {"gamma": np.zeros(1)}}, "0 PAM and 1 CAM"),
        (lambda layers: layers | {"conv3d": {"kernel": np.array("x", dtype="S1"), "bias": np.zeros(8)}}, "expected numbers"),
        (lambda layers: layers | {"conv3d": layers["conv3d"] | {"bias": np.full(8, np.nan, np.float32)}}, "not finite"),
        (lambda layers: {}, "holds no weights of Keras layers"),
        (lambda layers: {"conv3d": layers["conv3d"]}, "is neither an AGUNet nor a DAGUNet (1 convolution, 0 transposed"),
    ],
)
def test_another_network_is_refused_in_one_line_that_names_the_file(change: Callable[[Layers], Layers], says: str, tmp_path: Path) -> None:
    _, layers = fixture("agunet-full")
    path = write(tmp_path / "model.h5", change(layers))
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no HDF5"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: torch.save({"weight": torch.zeros(1)}, path),
        lambda path: path.unlink(),
    ],
    ids=["empty", "text", "cut off", "torch's", "missing"],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    path = write(tmp_path / "model.h5", fixture("agunet-plain")[1])
    spoil(path)
    with pytest.raises(UserError, match=f"^{path}: ") as caught:
        read_published(path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_elsewhere_are_not_fetched(tmp_path: Path) -> None:
    """A file may name other files; those of this machine are none of its business."""
    _, layers = fixture("agunet-plain")
    other = write(tmp_path / "other.h5", layers, whole_model=False)
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink(other, "/")
    with pytest.raises(UserError, match="no weights"):
        read_published(tmp_path / "model.h5")

    path = write(tmp_path / "model2.h5", layers)
    (tmp_path / "secret").write_bytes(bytes(32))
    with h5py.File(path, "a") as file:
        del file["model_weights/conv3d/conv3d/bias:0"]
        file["model_weights/conv3d/conv3d"].create_dataset("bias:0", (8,), np.float32, external=[(str(tmp_path / "secret"), 0, 32)])
    with pytest.raises(UserError, match="'conv3d' with kernel"):
        read_published(path)


def test_a_file_that_claims_to_be_enormous_is_refused_unread(tmp_path: Path) -> None:
    _, layers = fixture("agunet-plain")
    path = write(tmp_path / "model.h5", without(layers, "conv3d"))
    with h5py.File(path, "a") as file:
        group = file.create_group("model_weights/conv3d/conv3d")
        group.create_dataset("kernel:0", (3, 3, 3, 2**20, 2**10), np.float32, chunks=(1, 1, 1, 1, 2**10))
        group.create_dataset("bias:0", (2**10,), np.float32)
    with pytest.raises(UserError, match=r"claims 28,[0-9,]+ weights"):
        read_published(path)

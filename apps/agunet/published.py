"""The authors' released weights, Keras HDF5 files, in our names."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.agunet.config import AGUNetConvertConfig, ModelConfig, PublishedConfig
from apps.agunet.inference import AGUNetPredictor
from apps.agunet.model import AGUNet, DAUNet, PublishedChannelAttention
from apps.agunet.prepost import Preparation, read_preparation
from shared.bundle import provenance
from shared.config import plain
from shared.errors import UserError
from shared.layers.folding import fold_bias
from shared.segmentation.config import PreprocessingConfig, TaskConfig, WindowConfig
from shared.segmentation.predictor import SegmentationSettings

if TYPE_CHECKING:
    import h5py

__all__ = ["Published", "convert", "from_published", "read_published"]

Layers = Mapping[str, Mapping[str, NDArray[Any]]]
"""Arrays by the names of their layer and weight, as Keras lays them out: ``layers["conv3d_3"]["kernel"]``."""

_KINDS = {"conv3d": ("kernel", "bias"), "conv3d_transpose": ("kernel", "bias"), "pam": ("gamma",), "cam": ("gamma",)} | dict.fromkeys(
    ("batch_normalization", "batch_normalization_v1"), ("gamma", "beta", "moving_mean", "moving_variance")
)
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_TO_TORCH = (4, 3, 0, 1, 2)
"""Of kernels: Keras' (x, y, z, in, out), or (x, y, z, out, in) if transposed, to torch's order."""
_ADVICE = "This reads model.h5 (or .hd5, .hdf5, .hdf) of the folders AGUNet and DAGUNet."
_LARGEST = 128 * 2**20
"""Elements of all weights together; the published networks have 31 million at most."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A released network in our terms."""

    network: Literal["agunet", "daunet"]
    settings: dict[str, Any]
    """Arguments of the network's constructor, as far as the file decides them."""
    state: dict[str, Tensor]
    """State dict of the network made with these settings."""
    notes: tuple[str, ...] = ()
    """What whoever uses these weights must be told."""

    def build(self) -> AGUNet | DAUNet:
        """The network with these weights, ready to predict."""
        network = _NETWORKS[self.network](**self.settings)
        network.load_state_dict(self.state)
        return network.eval()


_NETWORKS: dict[str, type[AGUNet] | type[DAUNet]] = {"agunet": AGUNet, "daunet": DAUNet}


def read_published(path: Path | str) -> Published:
    """Reads a released model.h5. Nothing in it is executed; its size is judged by what it says of itself before anything is read.

    Raises:
        UserError: if the file is missing, damaged, or of another network.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Download the weights first; the app's README says where.")
    try:
        with h5py.File(path) as file:
            datasets = _datasets(file)
            _check_claims(datasets, path)
            layers = {layer: {weight: dataset[()] for weight, dataset in weights.items()} for layer, weights in datasets.items()}
    except UserError:
        raise
    except Exception as error:  # h5py raises many types on a damaged file
        raise UserError(f"{path}: cannot be read as HDF5 ({' '.join(str(error).split())}). {_ADVICE} Download it again.") from error
    return from_published(layers, source=path)


def convert(config: AGUNetConvertConfig) -> None:
    """Writes a bundle with the released weights and the preparation that belongs to them."""
    published = read_published(config.published)
    beside = config.published.parent / "pre_processing.ini"
    path = config.preparation or (beside if beside.is_file() else None)
    preparation = Preparation() if path is None else read_preparation(path)
    if len(preparation.size) != 3:
        raise UserError(f"{path}: is of a slab model (new_axial_size has two numbers); the released AGUNet and DAGUNet see whole volumes.")
    settings = published.settings
    if settings["in_channels"] != 1:
        raise UserError(f"{config.published}: takes {settings['in_channels']} channels, and the released networks take one.")
    dual = published.network == "daunet"
    network = ModelConfig(
        name=published.network,
        published_channel_attention=dual,
        **{name: value for name, value in settings.items() if name not in ("in_channels", "classes", "channel_attention")},
    )
    x, y, z = preparation.size
    own = PublishedConfig(
        size=(x, y, z),
        spacing_mm=preparation.spacing_mm,
        percentiles=preparation.percentiles,
        normalisation=preparation.normalisation,
        crop=preparation.crop,
        antialias=preparation.antialias,
    )
    names = ["tumour"] if settings["classes"] == 2 else [f"class {number}" for number in range(1, settings["classes"])]
    thresholds = preparation.thresholds
    segmentation = SegmentationSettings(
        task=TaskConfig(labels={name: [number] for number, name in enumerate(names, start=1)}),
        preprocessing=PreprocessingConfig(),
        window=WindowConfig(size=own.size, overlap=0.0),
        threshold=thresholds[1] if len(thresholds) == settings["classes"] else thresholds[0],
    )
    said = () if path is not None else ("No pre_processing.ini was given: the published configuration is assumed (1 mm, whole range).",)
    facts = provenance(
        converted_from=config.published.name,
        weights_licence="BSD-2-Clause (authors' repository)",
        notes=[note.replace(f"{config.published}: ", "") for note in (*published.notes, *said)],
    )
    model = {"network": plain(network), "published": plain(own)}
    AGUNetPredictor(published.build(), model=model, settings=segmentation, facts=facts).save_bundle(config.output)
    for note in facts["notes"]:
        print(note)
    print(f"{config.output}: written. Try: apps.agunet infer --model {config.output} --input t1c.nii.gz --output results")


def from_published(layers: Layers, *, source: Path | str) -> Published:
    """A released network's layers in our terms.

    Layers are told apart by the order of their numbers within each kind, because the numbers themselves depend on the session that built
    the network. Position attention of DAGUNet cannot be had: Keras never saved its three convolutions (they were made anew at each
    start), so it is switched off, with a warning.

    Args:
        layers: arrays by layer and weight, as Keras names and lays them out.
        source: what messages call them.

    Raises:
        UserError: if they are not those of AGUNet or DAUNet.
    """
    found = _sorted(layers, source)
    dual = bool(found["pam"] or found["cam"])
    if dual and (len(found["pam"]), len(found["cam"])) != (1, 1):
        raise UserError(f"{source}: holds {len(found['pam'])} PAM and {len(found['cam'])} CAM layers, expected one of each. {_ADVICE}")
    for settings in _candidates(found, dual):
        with torch.device("meta"):
            network: Any = DAUNet(**settings) if dual else AGUNet(**settings)
        order = _daunet_order(network) if dual else _agunet_order(network)
        if _fits(network, order, found):
            break
    else:
        raise UserError(f"{source}: is neither an AGUNet nor a DAGUNet ({_description(found)}). {_ADVICE}")
    state = dict(_converted(order, found))
    for name in order.conv:
        if f"{name}.bias" not in network.state_dict():
            state = fold_bias(state, conv=name, norm=f"{name.removesuffix('.conv')}.norm")
    if dual:
        state["attention.channel.gamma"] = _tensor(found["cam"][0]["gamma"]).reshape(1)
    if broken := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise UserError(f"{source}: holds weights that are not finite (the first: {broken} in our names). Download it again.")
    for name in order.norm:
        state[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    if not dual:
        return Published(network="agunet", settings=settings, state=state)
    scale = _tensor(found["pam"][0]["gamma"]).item()
    state |= _silent_position_attention(settings["channels"][-1])
    warning = (
        f"{source}: the three convolutions of position attention are not in the file, because Keras neither trained nor saved them. "
        f"Position attention is switched off (its gamma, {scale:.4g} in the file, is set to 0), so answers are reproducible, but not those "
        "of the authors' program, which drew new ones at every start."
    )
    warnings.warn(warning, stacklevel=2)
    return Published(network="daunet", settings=settings, state=state, notes=(warning,))


@dataclass
class _Order:
    """Our names of what Keras created, in the order of its creation."""

    conv: list[str] = field(default_factory=list)
    transposed: list[str] = field(default_factory=list)
    norm: list[str] = field(default_factory=list)

    def normalised(self, *names: str) -> None:
        """Convolutions that are each followed by a normalisation."""
        self.conv += [f"{name}.conv" for name in names]
        self.norm += [f"{name}.norm" for name in names]

    def block(self, name: str) -> None:
        self.normalised(f"{name}.first", f"{name}.second")

    def encoder(self, network: Any) -> None:
        for name, level in network.encoder.named_children():
            if level.look is not None:
                self.conv.append(f"encoder.{name}.look")
            self.block(f"encoder.{name}.block")
        self.block("bottom")


def _agunet_order(network: Any) -> _Order:
    order = _Order()
    order.encoder(network)
    for level in _deepest_first(network.decoder):
        order.transposed.append(f"decoder.{level}.up.conv")
        order.norm.append(f"decoder.{level}.norm")
        order.normalised(*(f"decoder.{level}.gate.{part}" for part in ("gate", "skip", "score")))
        order.block(f"decoder.{level}.block")
    order.conv += [f"heads.{level}" for level in _deepest_first(network.heads)]
    return order


def _daunet_order(network: Any) -> _Order:
    order = _Order()
    order.encoder(network)
    for half in ("position", "channel"):
        order.conv += [f"attention.{half}_branch.0.conv", f"attention.{half}_branch.3"]
        order.norm.append(f"attention.{half}_branch.0.norm")
    order.normalised("attention.fuse")
    for level in _deepest_first(network.decoder):
        order.transposed.append(f"decoder.{level}.up.conv")
        if network.decoder[level].guide is not None:
            order.transposed.append(f"decoder.{level}.guide.conv")
        order.norm.append(f"decoder.{level}.norm")
        order.block(f"decoder.{level}.block")
    order.conv += [f"heads.{level}" for level in _deepest_first(network.heads)]
    return order


def _deepest_first(modules: nn.ModuleList) -> range:
    return range(len(modules) - 1, -1, -1)


_Found = dict[str, list[Mapping[str, NDArray[Any]]]]


def _datasets(file: h5py.File) -> dict[str, dict[str, h5py.Dataset]]:
    """Datasets by layer and weight, of a saved model or of saved weights. What a file only points to, in other files, is not looked at."""
    import h5py

    datasets: dict[str, dict[str, h5py.Dataset]] = {}

    def visit(name: str, item: Any) -> None:
        root, *_ = parts = name.split("/")
        if isinstance(item, h5py.Dataset) and len(parts) > 1 and root != "optimizer_weights" and not (item.external or item.is_virtual):
            datasets.setdefault(parts[-2], {})[parts[-1].partition(":")[0]] = item

    file.visititems(visit)
    return datasets


def _check_claims(datasets: Mapping[str, Mapping[str, h5py.Dataset]], path: Path) -> None:
    """Before anything is read."""
    for layer, weights in datasets.items():
        for weight, dataset in weights.items():
            if dataset.dtype.kind != "f":
                raise UserError(f"{path}: {weight} of layer {layer!r} holds {dataset.dtype}, expected numbers. {_ADVICE}")
    elements = sum(math.prod(dataset.shape) for weights in datasets.values() for dataset in weights.values())
    if elements > _LARGEST:
        raise UserError(f"{path}: claims {elements:,} weights, where the released networks have 31 million. {_ADVICE}")


def _sorted(layers: Layers, source: Path | str) -> _Found:
    """Layers by kind, those of each kind by number."""
    numbered: dict[str, dict[int, Mapping[str, NDArray[Any]]]] = {kind: {} for kind in _KINDS}
    for name, weights in layers.items():
        match = re.fullmatch(rf"({'|'.join(_KINDS)})(?:_(\d+))?", name)
        if match is None or set(weights) != set(_KINDS[match[1]]):
            raise UserError(
                f"{source}: holds a layer {name!r} with {', '.join(sorted(weights))}, which is no part of AGUNet or DAGUNet. {_ADVICE}"
            )
        numbered[match[1]][int(match[2] or 0)] = weights
    found = {kind: [of_kind[number] for number in sorted(of_kind)] for kind, of_kind in numbered.items()}
    found["batch_normalization"] += found.pop("batch_normalization_v1")
    if not found["conv3d"]:
        raise UserError(f"{source}: holds no weights of Keras layers, so it is not a released network. {_ADVICE}")
    return found


def _candidates(found: _Found, dual: bool) -> Iterator[dict[str, Any]]:
    """What the numbers of layers may mean; shapes decide afterwards."""
    kernels = [tuple(layer["kernel"].shape) for layer in found["conv3d"]]
    if any(len(shape) != 5 for shape in kernels):
        return
    for multi_scale_input, guidance in product((True, False), (True, False) if dual else (False,)):
        levels, rest = divmod(len(found["conv3d_transpose"]), 2 if guidance else 1)
        firsts = [0, *(2 + (level - 1) * (3 if multi_scale_input else 2) for level in range(1, levels + 1))]
        if rest or not levels or firsts[-1] >= len(kernels):
            continue
        for deep_supervision in (True, False):
            settings = {
                "in_channels": kernels[0][3],
                "classes": kernels[-1][4],
                "channels": tuple(kernels[first][4] for first in firsts),
                "multi_scale_input": multi_scale_input,
                "deep_supervision": deep_supervision,
            }
            if dual:
                settings |= {"guidance": guidance, "channel_attention": PublishedChannelAttention}
            if (
                settings["classes"] > 1
                and min(*settings["channels"], settings["in_channels"]) > 0
                and (not dual or settings["channels"][-1] >= 8)
            ):
                yield settings


def _fits(network: nn.Module, order: _Order, found: _Found) -> bool:
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if any(layer["gamma"].size != 1 for kind in ("pam", "cam") for layer in found[kind]):
        return False
    for names, layers in zip((order.conv, order.transposed), (found["conv3d"], found["conv3d_transpose"]), strict=True):
        if len(names) != len(layers):
            return False
        for name, layer in zip(names, layers, strict=True):
            kernel = tuple(layer["kernel"].shape)
            if len(kernel) != 5 or tuple(kernel[axis] for axis in _TO_TORCH) != shapes[f"{name}.weight"]:
                return False
            if tuple(layer["bias"].shape) != (kernel[3 if names is order.transposed else 4],):
                return False
    norms = found["batch_normalization"]
    return len(order.norm) == len(norms) and all(
        tuple(layer[theirs].shape) == shapes[f"{name}.{ours}"]
        for name, layer in zip(order.norm, norms, strict=True)
        for theirs, ours in _NORM.items()
    )


def _converted(order: _Order, found: _Found) -> Iterator[tuple[str, Tensor]]:
    for names, layers in ((order.conv, found["conv3d"]), (order.transposed, found["conv3d_transpose"])):
        for name, layer in zip(names, layers, strict=True):
            yield f"{name}.weight", _tensor(layer["kernel"]).permute(_TO_TORCH).contiguous()
            yield f"{name}.bias", _tensor(layer["bias"])
    for name, layer in zip(order.norm, found["batch_normalization"], strict=True):
        for theirs, ours in _NORM.items():
            yield f"{name}.{ours}", _tensor(layer[theirs])


def _silent_position_attention(channels: int) -> dict[str, Tensor]:
    """Keras' first weights from a fixed seed, for whoever trains on, and a gamma of 0."""
    generator = torch.Generator().manual_seed(0)
    state = {"attention.position.gamma": torch.zeros(1)}
    for name, width in (("query", channels // 8), ("key", channels // 8), ("value", channels)):
        weight = torch.empty(width, channels, 1, 1, 1)
        state[f"attention.position.{name}.weight"] = nn.init.xavier_uniform_(weight, generator=generator)
    return state


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _description(found: _Found) -> str:
    counts = (("convolution", "conv3d"), ("transposed convolution", "conv3d_transpose"), ("normalisation", "batch_normalization"))
    return ", ".join(f"{len(found[kind])} {word}{'' if len(found[kind]) == 1 else 's'}" for word, kind in counts)

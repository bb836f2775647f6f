"""The backbone's features of many images, computed once: a content-addressed store on disk, and projections fitted on training images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from apps.brain_encoders.backbones import build_backbone, published_dino
from apps.brain_encoders.config import BackboneConfig
from apps.brain_encoders.preprocessing import padded_side, to_input
from shared.arrays import load_npy
from shared.bundle import load_weights, read_checkpoint
from shared.config import plain
from shared.devices import resolve_device
from shared.errors import UserError
from shared.files import atomic_path
from shared.imaging import read_image

__all__ = ["FeatureStore", "Projection", "backbone_of", "fit_projection", "read_input"]


def backbone_of(config: BackboneConfig, *, weights: bool = True) -> nn.Module:
    """The frozen backbone that the settings describe, in eval mode.

    Args:
        weights: with the weights that the settings ask for; False leaves random ones, to be loaded from a bundle.

    Raises:
        UserError: if it cannot be made, or its weights do not fit.
    """
    options: dict[str, Any] = {}
    for entry in config.options:
        name, separator, value = entry.partition("=")
        if not separator:
            raise UserError(f"backbone.options: {entry!r} must be name=value, such as depth=3.")
        options[name] = yaml.safe_load(value)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    with torch.random.fork_rng():  # else a backbone whose weights are loaded would change the weights of what is trained on it
        torch.manual_seed(0)
        backbone = build_backbone(
            config.source,
            name=config.name,
            layer=config.layer,
            part=config.part,
            norm=config.norm,
            size=padded_side(config.size, config.multiple),
            pretrained=config.pretrained and weights and config.weights is None,
            options=options,
        )
    if config.weights is not None and weights:
        state = read_checkpoint(config.weights)
        network: Any = getattr(backbone, "network", backbone)
        if "dinov2" in config.name and "pos_embed" in state:
            state = published_dino(state, grid=tuple(network.patch_embed.grid_size))
        load_weights(network, state, source=config.weights)
    return backbone.requires_grad_(False)


def read_input(path: Path, config: BackboneConfig) -> Tensor:
    """[3, S, S]; raises InputError if the file is no image."""
    return to_input(read_image(path), size=config.size, multiple=config.multiple)


class FeatureStore:
    """Features by the content of image and backbone, one file each: what another run has computed is not computed again.

    Args:
        backbone: the network.
        config: its settings.
        folder: of the store; None keeps nothing on disk.
        device: as on the command line.
    """

    def __init__(self, backbone: nn.Module, config: BackboneConfig, *, folder: Path | None, device: str = "auto") -> None:
        self.device = resolve_device(device)
        self.backbone, self.config = backbone.to(self.device), config
        self.folder = None if folder is None else folder / backbone_key(backbone, config)
        self._paths: dict[Path, Path] = {}

    def extract(self, images: Sequence[Path], *, batch_size: int = 16) -> None:
        """Computes what is not there yet, so that a killed extraction goes on where it was.

        Raises:
            InputError: if one of the files is no image.
            UserError: if the store cannot be written.
        """
        if self.folder is None:
            return
        missing = self.missing(images)
        batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        for batch in track(batches, "features", transient=True, disable=not batches):
            found = self.compute(torch.stack([read_input(path, self.config) for path in batch]))
            for path, features in zip(batch, found.numpy(), strict=True):
                with atomic_path(self._place(path)) as temporary, open(temporary, "wb") as file:
                    np.save(file, features)

    def missing(self, images: Sequence[Path]) -> list[Path]:
        """Those whose features are not on disk; all, where nothing is kept."""
        return [path for path in images if self.folder is None or not self._place(path).is_file()]

    @torch.inference_mode()
    def compute(self, batch: Tensor) -> Tensor:
        """[B, C, h, w] of inputs [B, 3, S, S], on the CPU."""
        return self.backbone(batch.to(self.device)).float().cpu()

    def read(self, path: Path) -> Tensor:
        """[C, h, w] of one image, from the store if it is there; raises InputError if its file there is damaged."""
        if self.folder is None or not self._place(path).is_file():
            return self.compute(read_input(path, self.config)[None])[0]
        return torch.from_numpy(load_npy(self._place(path), what="stored features", advice="Delete it: it is then computed anew."))

    def batches(self, images: Sequence[Path], *, batch_size: int = 64) -> Iterator[Tensor]:
        """[B, C, h, w], in order."""
        for start in range(0, len(images), batch_size):
            yield torch.stack([self.read(path) for path in images[start : start + batch_size]])

    def _place(self, path: Path) -> Path:
        assert self.folder is not None
        if path not in self._paths:
            try:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror or error}). Copy it again.") from error
            self._paths[path] = self.folder / content[:2] / f"{content}.npy"
        return self._paths[path]


def backbone_key(backbone: nn.Module, config: BackboneConfig) -> str:
    """A name for a backbone by its settings and its weights."""
    digest = hashlib.sha256(json.dumps(plain(replace(config, weights=None, pretrained=False)), sort_keys=True).encode())
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What makes regressors of vectors: (x - centre) / scale, then components."""

    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    components: NDArray[np.float32] | None
    """[components, inputs]; None: no projection."""

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """[N, inputs] to [N, components]."""
        standard = (vectors - self.centre) / self.scale
        return (standard if self.components is None else standard @ self.components.T).astype(np.float32)


def fit_projection(vectors: NDArray[np.floating], *, kind: str, components: int, seed: int = 0) -> Projection:
    """Standardises by training vectors [N, inputs] and projects, so that each component has about unit variance.

    Args:
        kind: "none"; "pca", whitened; or "random", sparse (Li, Hastie, Church, "Very sparse random projections", KDD 2006).
        components: of the projection; at most N - 1 and ``inputs`` are had by PCA.
    """
    centre = vectors.mean(axis=0)
    spread = vectors.std(axis=0)
    scale = np.where(spread > 1e-6 * max(float(spread.max()), 1e-12), spread, 1)
    standard = (vectors - centre) / scale
    matrix: NDArray | None = None
    if kind == "pca":
        from sklearn.decomposition import PCA

        count = min(components, len(vectors) - 1, vectors.shape[1])
        fitted = PCA(n_components=count, random_state=seed).fit(standard)
        matrix = fitted.components_ / np.sqrt(np.maximum(fitted.explained_variance_, 1e-8))[:, None]
    elif kind == "random":
        from sklearn.random_projection import SparseRandomProjection

        fitted = SparseRandomProjection(n_components=components, dense_output=True, random_state=seed).fit(standard)
        dense = np.asarray(fitted.components_.todense())
        matrix = dense / np.maximum((standard @ dense.T).std(axis=0), 1e-8)[:, None]
    return Projection(
        centre=centre.astype(np.float32),
        scale=scale.astype(np.float32),
        components=None if matrix is None else matrix.astype(np.float32),
    )

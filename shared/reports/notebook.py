"""A segmented volume in a notebook: to page through where Jupyter runs, and as a picture wherever else the notebook is read.

    show(volume, labels, {1: "meningioma"})

The viewer is NiiVue, whose program comes with the package ipyniivue: nothing is fetched. GitHub, printed notebooks and Jupyter without
that package show the picture.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from shared.imaging.volumes import Volume, encode_labels
from shared.reports.planes import check_labels, grey_window, view
from shared.reports.slices import Pixels, label_colors, preview

__all__ = ["VolumeView", "show"]

_FILL_OPACITY = 0.4
"""NiiVue fills labels, and what lies beneath should still be seen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeView:
    """What ``show`` returns; the last line of a cell displays it."""

    picture: Pixels
    """uint8 [H, W, 3]."""
    widget: Any | None
    """The NiiVue widget, to be changed further; None if ipyniivue is not installed."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        """Both at once: a front end takes the richest it can show."""
        buffer = io.BytesIO()
        Image.fromarray(self.picture).save(buffer, format="PNG")
        bundle: dict[str, Any] = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "A volume with its segmentation"}
        if self.widget is not None:
            shown = self.widget._repr_mimebundle_()
            bundle |= {kind: content for kind, content in _data(shown).items() if kind not in bundle}
        return bundle


def show(volume: Volume, labels: ArrayLike, names: Mapping[int, str], *, channel: int = 0, height: int = 480) -> VolumeView:
    """A volume with its segmentation: three planes and a 3-D view that follow the pointer.

    A notebook that is saved with the state of its widgets holds the volume itself: clear it before it is published.

    Args:
        volume: [X, Y, Z] or [C, X, Y, Z].
        labels: whole numbers [X, Y, Z] on the same voxels.
        names: of the label values.
        channel: which one is shown.
        height: of the widget, in pixels.

    Raises:
        ValueError: if the labels do not fit the volume, or there is no such channel.
    """
    values = check_labels(volume, labels)
    picture = preview(volume, values, names, channel=channel)
    installed = importlib.util.find_spec("ipyniivue") is not None
    return VolumeView(picture=picture, widget=_niivue(volume, values, names, channel, height) if installed else None)


def _niivue(volume: Volume, labels: NDArray[Any], names: Mapping[int, str], channel: int, height: int) -> Any:
    import ipyniivue

    image = np.asarray(volume.values.reshape(-1, *volume.shape)[channel], dtype=np.float32)
    low, high = grey_window(image)
    colors = label_colors(names)
    widget = ipyniivue.NiiVue(
        height=height,
        is_radiological_convention=True,
        sagittal_nose_left=True,
        multiplanar_show_render=ipyniivue.ShowRender.ALWAYS,
        back_color=(0.0, 0.0, 0.0, 1.0),
        crosshair_color=(0.6, 0.65, 0.7, 0.7),
    )
    overlay = ipyniivue.Volume(
        name="labels.nii", data=encode_labels(labels, like=replace(volume, source=None), suffix=".nii"), opacity=_FILL_OPACITY
    )
    widget.load_volumes(
        [
            ipyniivue.Volume(
                name="image.nii",
                data=_nifti(np.nan_to_num(image, nan=low, posinf=high, neginf=low), volume),
                colormap="gray",
                cal_min=low,
                cal_max=max(high, low + 1e-6),
                colorbar_visible=False,
            ),
            overlay,
        ]
    )
    values = [0, *sorted(colors)]
    channels = list(zip(*[(0, 0, 0), *(colors[value] for value in values[1:])], strict=True))
    overlay.set_colormap_label(
        {
            "R": list(channels[0]),
            "G": list(channels[1]),
            "B": list(channels[2]),
            "A": [0, *[255] * len(colors)],
            "I": values,
            "labels": ["", *(names[value] for value in values[1:])],
        }
    )
    widget.scene.crosshair_pos = _middle(volume, labels, channel)
    return widget


def _middle(volume: Volume, labels: NDArray[Any], channel: int) -> list[float]:
    """Where the slices of the picture cross, as parts of the volume in RAS order."""
    shown = view(volume, labels, channel=channel, cropped=False)
    slices = shown.best_slices()
    return [(slices[plane] + 0.5) / shown.count(plane) for plane in ("sagittal", "coronal", "axial")]


def _nifti(values: NDArray[np.float32], volume: Volume) -> bytes:
    """In 16 bits, which is half of what it would be and more than a screen shows."""
    import nibabel

    image = nibabel.Nifti1Image(values, volume.affine)
    image.set_data_dtype(np.int16)
    return bytes(image.to_bytes())


def _data(bundle: Any) -> dict[str, Any]:
    """Of what a widget's ``_repr_mimebundle_`` gives: the data alone, or the data and its metadata."""
    return dict(bundle[0] if isinstance(bundle, tuple) else bundle or {})

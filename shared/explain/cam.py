"""Class activation maps: where in the image the evidence for an answer lies, from one layer's activations and their gradients.

Selvaraju et al., "Grad-CAM", ICCV 2017; Chattopadhay et al., "Grad-CAM++", WACV 2018; Fu et al., "Axiom-based Grad-CAM", BMVC 2020;
Draelos and Carin, "HiResCAM", 2020; Jiang et al., "LayerCAM", TIP 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.layers import resize

__all__ = ["Method", "class_activation_map"]

Method = Literal["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "elementwise"]


def class_activation_map(
    model: nn.Module, x: Tensor, *, layer: str, target: int | Callable[[Any], Tensor], method: Method = "gradcam"
) -> Tensor:
    """Where the evidence for ``target`` lies.

    Args:
        model: any network with a layer whose output is a feature map.
        x: its input, [B, C, *spatial]; one to three spatial axes.
        layer: the name of that layer; the last one before pooling is the usual choice.
        target: a class, or a function from the model's output to the numbers [B] to explain.
        method: "gradcam" averages gradients over positions; "hirescam" does not, and is exact where only a linear layer follows;
            "elementwise" and "layercam" count positive evidence alone.

    Returns:
        [B, *spatial] of the input, from 0 to 1 for each sample; 0 everywhere if nothing speaks for the target.

    Raises:
        ValueError: if there is no such layer (names those there are), or its output is no feature map.
    """
    layers = dict(model.named_modules())
    if layer not in layers:
        raise ValueError(f"no layer is called {layer!r}; there are: {', '.join(filter(None, layers))}")
    found: list[Tensor] = []
    handle = layers[layer].register_forward_hook(lambda module, arguments, output: found.append(output))
    try:
        with torch.enable_grad():
            output = model(x.detach().requires_grad_())
            score = target(output) if callable(target) else output[:, target]
            if not found or found[-1].ndim != x.ndim:
                raise ValueError(
                    f"{layer!r} gives {tuple(found[-1].shape) if found else 'nothing'}, which is no feature map of {tuple(x.shape)}"
                )
            activations = found[-1]
            (gradients,) = torch.autograd.grad(score.sum(), activations)
    finally:
        handle.remove()
    with torch.no_grad():
        cam = _stretch(_METHODS[method](activations.detach(), gradients).clamp(min=0))
        return _stretch(resize(cam.unsqueeze(1), x.shape[2:])[:, 0])


def _stretch(cam: Tensor) -> Tensor:
    """To 0 to 1, each sample by itself."""
    flat = cam.flatten(1)
    low = flat.amin(1).reshape(-1, *(1 for _ in cam.shape[1:]))
    shifted = cam - low
    return shifted / (1e-7 + shifted.flatten(1).amax(1).reshape(low.shape))


def _axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    return (gradients.mean(_axes(gradients), keepdim=True) * activations).sum(1)


def _gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Equation 19, with the exponential of the score left out as it cancels."""
    square, cube = gradients**2, gradients**3
    alpha = square / (2 * square + activations.sum(_axes(activations), keepdim=True) * cube + 1e-6)
    alpha = torch.where(gradients != 0, alpha, 0.0)
    weights = (gradients.clamp(min=0) * alpha).sum(_axes(gradients), keepdim=True)
    return (weights * activations).sum(1)


def _xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    axes = _axes(activations)
    weights = (gradients * activations).sum(axes, keepdim=True) / (activations.sum(axes, keepdim=True) + 1e-7)
    return (weights * activations).sum(1)


_METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "xgradcam": _xgradcam,
    "hirescam": lambda activations, gradients: (gradients * activations).sum(1),
    "layercam": lambda activations, gradients: (gradients.clamp(min=0) * activations).sum(1),
    "elementwise": lambda activations, gradients: (gradients * activations).clamp(min=0).sum(1),
}

"""What moves: optical flow of a clip, its summary as features, and the error of a predicted flow.

Yeung, Luo et al., "Neural representations of dynamic visual stimuli", CVPR 2025: flow as a code for motion, video models as encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from apps.brain_encoders.hub import from_hub
from apps.brain_encoders.language import hidden_states
from apps.brain_encoders.preprocessing import to_input
from shared.bundle import load_weights, read_checkpoint
from shared.errors import UserError

__all__ = ["end_point_error", "motion_features", "optical_flow", "video_vectors"]

Clip = NDArray[np.uint8]

_RAFT_LEAST = 128
"""Pixels that its pyramid needs in each direction; smaller frames are continued at their edges."""


def optical_flow(clip: Clip, *, method: Literal["farneback", "raft"] = "farneback", weights: Path | None = None) -> NDArray[np.float32]:
    """[T - 1, H, W, 2]: how many pixels each place moves to the right and down until the next frame.

    Args:
        clip: frames [T, H, W, 3], RGB.
        method: "farneback" (Farnebäck, SCIA 2003), which needs no weights; or "raft" (Teed and Deng, ECCV 2020; torchvision's small form).
        weights: of raft, a state dict of ``torchvision.models.optical_flow.raft_small``.

    Raises:
        UserError: if there are fewer than two frames, or raft has no weights.
    """
    if len(clip) < 2:
        raise UserError(f"{len(clip)} frame: motion is between two frames at least.")
    if method == "raft":
        return _raft(clip, weights)
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    settings = {"pyr_scale": 0.5, "levels": 4, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
    return np.stack([cv2.calcOpticalFlowFarneback(one, other, None, **settings) for one, other in pairwise(grey)])


def motion_features(flow: NDArray[np.floating], *, grid: int = 4, directions: int = 8) -> NDArray[np.float32]:
    """[T - 1, grid * grid * (directions + 1)]: for each cell of a grid the speed towards each direction, and the mean speed.

    A movement counts for the two directions beside it, in proportion, so that features change smoothly as it turns.

    Args:
        flow: [T - 1, H, W, 2], as from ``optical_flow``.
    """
    speed = np.linalg.norm(flow, axis=-1)
    turn = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) * directions % directions
    share = [speed * np.clip(1 - np.minimum(abs(turn - index), directions - abs(turn - index)), 0, None) for index in range(directions)]
    channels = np.stack([*share, speed], axis=1)
    rows = np.array_split(np.arange(channels.shape[2]), grid)
    columns = np.array_split(np.arange(channels.shape[3]), grid)
    cells = [channels[:, :, row][..., column].mean(axis=(2, 3)) for row in rows for column in columns]
    return np.concatenate(cells, axis=1).astype(np.float32)


def end_point_error(truth: NDArray[np.floating], flow: NDArray[np.floating], mask: NDArray[np.bool_] | None = None) -> float:
    """The mean distance in pixels between two flows [..., H, W, 2], over all places or those of the mask [..., H, W].

    Raises:
        ValueError: if the mask is empty.
    """
    distance = np.linalg.norm(np.asarray(truth, dtype=np.float64) - flow, axis=-1)
    if mask is None:
        return float(distance.mean())
    if not mask.any():
        raise ValueError("the mask holds no place, so there is no error to speak of")
    return float(distance[mask].mean())


@torch.inference_mode()
def video_vectors(clips: Sequence[Clip], *, name: str, layer: str = "", pretrained: bool = True) -> NDArray[np.float32]:
    """[N, C]: of each clip, by a video model of transformers such as MCG-NJU/videomae-base; the mean over its tokens.

    Args:
        clips: frames [T, H, W, 3] each; as many frames as the model takes are picked at equal steps.
        name: of the model on the hub, or a folder that ``save_pretrained`` wrote.
        layer: a module by name, such as encoder.layer.9; empty: the last hidden states.
        pretrained: False takes random weights, of the configuration alone.
    """
    from transformers import AutoConfig, AutoModel

    (configuration,) = from_hub(name, AutoConfig, what="video model")
    (model,) = from_hub(name, AutoModel, what="video model") if pretrained else (AutoModel.from_config(configuration),)
    model.eval()
    found = []
    for clip in clips:
        picked = np.linspace(0, len(clip) - 1, configuration.num_frames).round().astype(int)
        frames = torch.stack([to_input(clip[index], size=configuration.image_size) for index in picked])
        hidden, _ = hidden_states(model, {"pixel_values": frames[None]}, layer)
        found.append(hidden[0].mean(0))
    return torch.stack(found).float().numpy()


def _raft(clip: Clip, weights: Path | None) -> NDArray[np.float32]:
    from torchvision.models.optical_flow import raft_small

    if weights is None:
        raise UserError("raft needs weights: give the file of torchvision's raft_small, or take farneback.")
    network = raft_small().eval()
    load_weights(network, read_checkpoint(weights), source=weights)
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    height, width = frames.shape[2:]
    right, below = (max(_RAFT_LEAST - length, -length % 8) for length in (width, height))
    padded = torch.nn.functional.pad(frames, (0, right, 0, below), mode="replicate")
    with torch.inference_mode():
        flows = [network(one[None], other[None])[-1][0] for one, other in pairwise(padded)]
    return torch.stack(flows)[:, :, :height, :width].permute(0, 2, 3, 1).numpy()

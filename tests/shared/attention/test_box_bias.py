"""Cross-attention from boxes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from shared.attention import create, record


def built(**settings: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return create("box_cross", **({"channels": 16, "heads": 2, "inner_channels": 12} | settings)).double()


def sample(rank: int = 2, n: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    draw = [torch.randn(2, 3, 16), torch.randn(2, n, 16), torch.cat([0.2 + 0.4 * torch.rand(2, 3, rank), 0.3 * torch.rand(2, 3, rank)], -1)]
    return tuple(x.double() for x in draw)


@pytest.mark.parametrize("offsets", ["log", "linear"])
def test_a_box_that_moves_takes_its_bias_along(offsets: str) -> None:
    block, (_, _, boxes) = built(offsets=offsets), sample()
    moved = boxes + torch.tensor([2 / 6, 1 / 5, 0, 0], dtype=torch.float64)
    here, there = (block.box_bias(each, (5, 6)).unflatten(-1, (5, 6)) for each in (boxes, moved))
    torch.testing.assert_close(here[..., :-1, :-2], there[..., 1:, 2:])


def test_the_bias_is_the_formula_pixel_by_pixel() -> None:
    block, (_, _, boxes) = built(), sample()
    bias = block.box_bias(boxes, (5, 6))
    for query, row, column in itertools.product(range(3), (0, 4), (0, 5)):
        x, y, width, height = boxes[1, query].tolist()
        expected = torch.zeros(2, dtype=torch.float64)
        for axis, (low, high, centre, extent) in enumerate(
            ((x - width / 2, x + width / 2, column + 0.5, 6), (y - height / 2, y + height / 2, row + 0.5, 5))
        ):
            distance = 16 * torch.tensor([low * extent - centre, high * extent - centre], dtype=torch.float64)
            code = distance.sign() * torch.log2(1 + distance.abs()) / 3
            expected = expected + block.bias[axis](block.hidden[axis](code).relu())
        torch.testing.assert_close(bias[1, :, query, row * 6 + column], expected)


def test_a_volume_of_one_slice_is_an_image() -> None:
    volume, image = built(rank=3), built(rank=2)
    image.load_state_dict({name: value for name, value in volume.state_dict().items() if not name.startswith(("hidden.2", "bias.2"))})
    x, context, boxes = sample(rank=3)
    flat = boxes[..., [0, 1, 3, 4]]
    # Along the axis of one slice every pixel has the same bias, which a softmax does not see.
    torch.testing.assert_close(volume(x, context, boxes, grid=(1, 5, 6)), image(x, context, flat, grid=(5, 6)), rtol=1e-12, atol=1e-12)


def test_without_a_bias_it_is_plain_cross_attention_and_positions_are_for_keys_only() -> None:
    block, known = built(), create("detr_decoder", channels=16, heads=2).attention.double()
    known.load_state_dict({name: value for name, value in block.state_dict().items() if not name.startswith(("hidden", "bias."))})
    with torch.no_grad():
        for layer in block.bias:
            layer.weight.zero_()
    x, context, boxes = sample()
    position, mask = torch.randn(30, 16, dtype=torch.float64), torch.rand(2, 30) < 0.7
    answer = block(x, context, boxes, grid=(5, 6), position=position, mask=mask)
    torch.testing.assert_close(answer, known(x, context + position, context, mask), rtol=1e-12, atol=1e-12)


def test_padding_has_no_weight() -> None:
    block, (x, context, boxes) = built(), sample()
    mask = torch.ones(2, 5, 6, dtype=torch.bool)
    mask[1, :, 4:] = False
    with record(block) as maps:
        block(x, context, boxes, grid=(5, 6), mask=mask.flatten(1))
    weights = maps[""].dense().unflatten(-1, (5, 6))
    assert (weights[1, ..., 4:] == 0).all()
    assert (weights[0] > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads=3 must divide channels=16"),
        ({"stride": 0}, "stride=0"),
        ({"rank": 0}, "rank=0"),
        ({"offsets": "square"}, "offsets"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**settings)


def test_a_grid_of_another_size_is_refused() -> None:
    x, context, boxes = sample()
    with pytest.raises(ValueError, match="30 tokens do not fill a grid of"):
        built()(x, context, boxes, grid=(5, 5))

"""Predicted connectivity: which keys are seen, on grids of any size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from shared.attention import create, record
from shared.attention.sparsifiner import kept_tokens


def built(name: str = "sparsifiner", **settings: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    block = create(name, **({"channels": 32, "heads": 2, "extent": 4, "token_reduction": 2} | settings)).double()
    with torch.no_grad():
        block.token_projection.normal_()
        block.token_basis.normal_()
    return block


def sample(n: int = 16) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 1 + n, 32, dtype=torch.float64)


def test_all_keys_kept_is_multi_head_attention() -> None:
    block, known = built(keep=1.0), create("mhsa", channels=32, heads=2).double()
    known.load_state_dict({name: value for name, value in block.state_dict().items() if name.startswith(("qkv", "out"))})
    torch.testing.assert_close(block(sample(), grid=(4, 4)), known(sample()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("keep", "count"), [(0.3, 6), (0.01, 1), (5 / 17, 5), (0.5, 9)])
def test_so_many_keys_are_seen_by_each_patch_and_all_by_the_class(keep: float, count: int) -> None:
    block = built(keep=keep)
    with record(block) as maps:
        block(sample(), grid=(4, 4))
    seen, weights = block.connectivity(sample(), grid=(4, 4)).mask, maps[""].dense()
    assert torch.equal(seen.sum(-1)[:, :, 1:], torch.full((2, 2, 16), count))
    assert seen[:, :, 0].all()
    assert torch.equal(weights > 0, seen)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 17, dtype=torch.float64))


def test_the_largest_predictions_are_kept() -> None:
    found = built(keep=0.3).connectivity(sample(), grid=(4, 4))
    seen = found.mask[:, :, 1:]
    least, most = found.approximation.masked_fill(~seen, math.inf).amin(-1), found.approximation.masked_fill(seen, -math.inf).amax(-1)
    assert (least >= most).all()


def test_a_share_is_counted_without_rounding_errors() -> None:
    # 0.1 * 30 is 3.0000000000000004 in floating point, and would be rounded up to 4.
    score = torch.randn(2, 1, 31)
    assert torch.equal(kept_tokens(score, 0.1).sum(-1), torch.full((2,), 3))


def test_tokens_are_kept_by_what_the_class_token_sees() -> None:
    row = torch.tensor([[[0.9, 0.1, 0.5, 0.0], [0.9, 0.1, 0.0, 0.3]]])
    assert kept_tokens(row, 0.3).tolist() == [[False, True, False]]
    assert kept_tokens(row, 0.5).tolist() == [[False, True, True]]


def test_the_published_scale_is_another_unless_heads_are_as_wide_as_many() -> None:
    for heads, same in ((2, False), (4, True)):
        settings = {"channels": 16, "heads": heads} if same else {"heads": heads}
        x = sample()[..., : settings.get("channels", 32)]
        sound, published = (built(name, **settings).connectivity(x, grid=(4, 4)) for name in ("sparsifiner", "sparsifiner_published"))
        assert torch.equal(sound.coefficients, published.coefficients) == same


def test_the_prediction_can_be_trained_and_the_choice_passes_no_gradient() -> None:
    block = built()
    block(sample(), grid=(4, 4)).sum().backward()
    assert block.token_projection.grad is None
    block.connectivity(sample(), grid=(4, 4)).approximation.square().sum().backward()
    for weight in (block.token_projection, block.token_basis, block.query_reduce.weight, block.key_reduce.weight):
        assert weight.grad.abs().sum() > 0


def test_projections_follow_the_grid() -> None:
    block = built()
    assert block._on_grid(block.token_basis, (4, 4)) is block.token_basis
    with torch.no_grad():
        # Constant over the places: so it is on every grid. Tokens that are repeated then predict what they did.
        block.token_projection[1:] = block.token_projection[1]
        block.token_basis[1:] = block.token_basis[1]
        block.token_projection[0] = 0
    x = sample()
    small = block.connectivity(x, grid=(4, 4))
    large = block.connectivity(torch.cat([x[:, :1], x[:, 1:].repeat(1, 2, 1)], dim=1), grid=(8, 4))
    # 17 of 33 tokens, where the class token counts for nothing here: 16 places of 17 against 32 of 33.
    assert large.approximation.shape == (2, 2, 32, 33)
    torch.testing.assert_close(large.approximation[:, :, :16, 1:17], small.approximation[..., 1:], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("extent", [(4, 4), (2, 8)])
def test_the_own_grid_may_be_of_any_sides(extent: tuple[int, int]) -> None:
    assert built(extent=extent).token_projection.shape == (17, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads=3 must divide channels=32"),
        ({"keep": 0.0}, "keep must be above 0 and at most 1, not 0.0"),
        ({"keep": 1.5}, "keep must be above 0 and at most 1, not 1.5"),
        ({"channel_reduction": 17}, "channel_reduction=17 must be from 1 to the width of a head, 16"),
        ({"token_reduction": 18}, "token_reduction=18 from 1 to the number of tokens, 17"),
        ({"extent": (4, 4, 4)}, "extent must be positive, one number or one for each of 2 axes"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**settings)


def test_a_grid_without_room_for_the_class_token_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens are not a class token and a grid of"):
        built()(sample(), grid=(4, 5))

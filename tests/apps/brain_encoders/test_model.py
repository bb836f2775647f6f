"""The readouts: each unit reads what it should, and nothing is computed for nothing. Equality with the published program: tests/parity."""

from __future__ import annotations

import pytest
import torch

from apps.brain_encoders.model import FactorisedReadout, RidgeReadout, RoutingTransformer, sine_positions
from apps.brain_encoders.readout import QueryReadout, UnitReadout
from shared.attention import record


def masked_sum(readout: QueryReadout, tokens: torch.Tensor) -> torch.Tensor:
    """The published way: every token for every unit, then masks."""
    everything = torch.einsum("bqc,vc->bqv", tokens, readout.weight) + readout.bias
    return (everything * readout.membership).sum(1)


@pytest.mark.parametrize("overlapping", [True, False])
def test_units_read_the_sum_over_their_queries(overlapping: bool) -> None:
    torch.manual_seed(0)
    membership = (torch.rand(5, 40) > 0.6).float() if overlapping else torch.eye(5).repeat(1, 8)
    membership[0] += membership.sum(0) == 0
    readout, tokens = QueryReadout(membership=membership, channels=8), torch.randn(3, 5, 8)
    assert torch.allclose(readout(tokens), masked_sum(readout, tokens), atol=1e-5)


def test_a_unit_of_two_regions_reads_their_mean_where_columns_add_up_to_one() -> None:
    membership = torch.tensor([[0.5, 1.0], [0.5, 0.0]])
    readout, tokens = QueryReadout(membership=membership, channels=4), torch.randn(1, 2, 4)
    expected = tokens.mean(1) @ readout.weight[0] + readout.bias[0]
    assert torch.allclose(readout(tokens)[:, 0], expected, atol=1e-6)


def test_a_unit_of_no_query_is_refused() -> None:
    with pytest.raises(ValueError, match="1 units are in none"):
        QueryReadout(membership=torch.tensor([[1.0, 0.0]]), channels=4)


def test_each_unit_reads_its_own_token() -> None:
    readout, tokens = UnitReadout(units=6, channels=4), torch.randn(2, 6, 4)
    product = tokens @ readout.weight.mT + readout.bias
    assert torch.allclose(readout(tokens), product.diagonal(dim1=1, dim2=2), atol=1e-6)


def test_the_routing_of_padded_images_is_that_of_the_images_alone() -> None:
    """Places that only fill up a batch are not seen, and do not move the code of the others."""
    torch.manual_seed(0)
    readout = QueryReadout(membership=torch.eye(3), channels=16)
    model = RoutingTransformer(feature_channels=16, readout=readout, channels=16, heads=2, inner_channels=16, encoder_layers=1).eval()
    small = torch.randn(1, 16, 4, 5)
    padded = torch.full((1, 16, 6, 7), 100.0)
    padded[:, :, :4, :5] = small
    valid = torch.zeros(1, 6, 7, dtype=torch.bool)
    valid[:, :4, :5] = True
    assert torch.allclose(model(padded, valid), model(small), atol=1e-5)


def test_the_map_of_a_region_can_be_asked_for() -> None:
    readout = QueryReadout(membership=torch.eye(3), channels=16)
    model = RoutingTransformer(feature_channels=8, readout=readout, channels=16, heads=2, inner_channels=16).eval()
    with record(model) as maps:
        model(torch.randn(2, 8, 4, 5))
    routing = maps["decoder.0.attention"].mean()
    assert routing.shape == (2, 3, 20)
    assert torch.allclose(routing.sum(-1), torch.ones(2, 3), atol=1e-5)


def test_the_factorised_readout_looks_at_the_same_places_in_every_image() -> None:
    readout = FactorisedReadout(feature_channels=4, grid=(2, 3), readout=UnitReadout(units=2, channels=4))
    features = torch.randn(1, 4, 2, 3)
    assert torch.allclose(readout.tokens(2 * features), 2 * readout.tokens(features))
    with pytest.raises(ValueError, match=r"maps for \(2, 3\)"):
        readout(torch.randn(1, 4, 3, 3))


def test_ridge_reads_the_mean_over_the_image_by_default() -> None:
    readout = RidgeReadout(feature_channels=4, grid=(2, 3), units=5)
    features = torch.randn(1, 4, 2, 3)
    assert torch.allclose(readout.tokens(features), features.mean((2, 3)), atol=1e-6)


def test_positions_count_valid_places_only() -> None:
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    valid[1, :, 3] = False
    code = sine_positions(valid, channels=8)
    assert torch.equal(code[1, :, :, :3], sine_positions(torch.ones(1, 3, 3, dtype=torch.bool), channels=8)[0])

"""MaxViT: block and grid attention, and biases by relative place that fit any window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, load_published, record
from shared.attention.maxvit import RelativeBias
from tests.shared.attention.random_blocks import load, random_block, random_tokens

SMALL = {"channels": 16, "head_channels": 8}


def test_the_bias_of_two_places_is_that_of_their_offset() -> None:
    bias = RelativeBias(heads=2, window=(2, 3, 2))
    found = bias().unflatten(2, (2, 3, 2)).unflatten(1, (2, 3, 2))
    for query in ((0, 0, 0), (1, 2, 1), (0, 1, 1)):
        for key in ((0, 0, 0), (1, 0, 0), (0, 2, 1)):
            offset = tuple(q - k + side - 1 for q, k, side in zip(query, key, (2, 3, 2), strict=True))
            assert torch.equal(found[(slice(None), *query, *key)], bias.table[(slice(None), *offset)])


def test_a_table_for_another_window_keeps_its_centre_its_ends_and_its_own_size() -> None:
    torch.manual_seed(0)
    learned = RelativeBias(heads=2, window=(4, 4))
    same, larger = (RelativeBias(heads=2, window=window, table_window=(4, 4)) for window in ((4, 4), (7, 6)))
    for other in (same, larger):
        load(other, learned.state_dict())
    assert torch.equal(same(), learned())
    found = larger().unflatten(2, (7, 6)).unflatten(1, (7, 6))
    # float32 interpolation.
    torch.testing.assert_close(found[:, 3, 2, 3, 2], learned.table[:, 3, 3])
    torch.testing.assert_close(found[:, 6, 5, 0, 0], learned.table[:, 6, 6])
    torch.testing.assert_close(found[:, 0, 5, 6, 0], learned.table[:, 0, 6])
    # 6 of 6 offsets are 3 of 3, so that 2 of 6 are 1 of 3.
    torch.testing.assert_close(found[:, 2, 0, 0, 0], learned.table[:, 4, 3])


def test_one_window_without_biases_is_self_attention() -> None:
    x = random_tokens(2, 16, 3, 5)
    for name in ("maxvit_block", "maxvit_grid"):
        block = random_block(name, **SMALL, window=(3, 5))
        nn.init.zeros_(block.bias.table)
        everywhere = random_block("mhsa", channels=16, heads=2)
        state = block.state_dict()
        load(everywhere, {key: state[key] for key in everywhere.state_dict()})
        tokens = x.flatten(2).mT
        expected = block.perceptron(tokens + everywhere(block.norm(tokens))).mT.reshape(x.shape)
        # float64 sums in another order.
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_grid_attention_is_block_attention_among_places_that_lie_apart() -> None:
    """Place (a, b) of 3 blocks of 4 becomes place (b, a) of 4 rows of 3: what were neighbours are then 3 apart."""
    block = random_block("maxvit_block", **SMALL, window=4, rank=1)
    grid = load(random_block("maxvit_grid", **SMALL, window=4, rank=1), block.state_dict())
    x = random_tokens(2, 16, 12)

    def apart(x: Tensor) -> Tensor:
        return x.unflatten(2, (3, 4)).mT.flatten(2)

    # The same sums, perhaps in another order.
    torch.testing.assert_close(grid(apart(x)), apart(block(x)), rtol=1e-10, atol=1e-10)


def test_block_attention_follows_a_shift_by_whole_windows() -> None:
    block = random_block("maxvit_block", **SMALL, window=3)
    x = random_tokens(1, 16, 6, 9)
    # The same sums, perhaps in another order.
    torch.testing.assert_close(block(x.roll((3, 6), dims=(2, 3))), block(x).roll((3, 6), dims=(2, 3)), rtol=1e-10, atol=1e-10)


def test_grid_attention_without_biases_follows_every_shift() -> None:
    block = random_block("maxvit_grid", **SMALL, window=3)
    nn.init.zeros_(block.bias.table)
    x = random_tokens(1, 16, 6, 9)
    # Keys in another order: float64 sums too.
    torch.testing.assert_close(block(x.roll((1, 5), dims=(2, 3))), block(x).roll((1, 5), dims=(2, 3)), rtol=1e-10, atol=1e-10)


def test_who_sees_whom() -> None:
    x = random_tokens(1, 16, 7, 9)
    for name in ("maxvit_block", "maxvit_grid"):
        block = random_block(name, **SMALL, window=4)
        with record(block) as maps:
            block(x)
        seen = (maps[""].dense(queries=0, heads=0)[0, 0, 0] > 0).reshape(7, 9).nonzero().tolist()
        rows, columns = ((0, 1, 2, 3), (0, 1, 2, 3)) if name == "maxvit_block" else ((0, 2, 4, 6), (0, 3, 6))
        assert seen == [[row, column] for row in rows for column in columns]


def test_volumes_of_one_slice_are_images() -> None:
    x = random_tokens(2, 16, 5, 7)
    for name in ("maxvit_block", "maxvit_grid"):
        flat, deep = random_block(name, **SMALL, window=3), random_block(name, **SMALL, window=(1, 3, 3), rank=3)
        state = flat.state_dict()
        load(deep, state | {"bias.table": state["bias.table"].unsqueeze(1)})
        # The same sums, perhaps in another order.
        torch.testing.assert_close(flat(x), deep(x.unsqueeze(2)).squeeze(2), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["block", "grid"])
def test_both_of_timms_forms_load(name: str) -> None:
    """Its own, and that of the weights that come from TensorFlow."""
    maxxvit = pytest.importorskip("timm.models.maxxvit")
    x = random_tokens(2, 16, 8, 12)
    own = {"rel_pos_type": "bias", "head_first": True, "act_layer": "gelu", "norm_eps": 1e-6}
    tensorflow = {"rel_pos_type": "bias_tf", "head_first": False, "act_layer": "gelu_tanh", "norm_eps": 1e-5}
    for form, ours in ((own, {}), (tensorflow, {"eps": 1e-5, "gelu": "tanh"})):
        settings = maxxvit.MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), grid_size=(4, 4), **form)
        theirs = maxxvit.PartitionAttentionCl(16, partition_type=name, cfg=settings).double().eval()
        torch.manual_seed(0)
        for weight in theirs.parameters():
            nn.init.normal_(weight, std=0.3)
        block = create(f"maxvit_{name}", **SMALL, window=4, **ours).double()
        load_published(f"maxvit_{name}", block, theirs.state_dict())
        # float64 sums in another order.
        torch.testing.assert_close(block(x).movedim(1, -1), theirs(x.movedim(1, -1)), rtol=1e-10, atol=1e-10)


def test_a_larger_window_runs_with_weights_of_a_smaller_one() -> None:
    learned = random_block("maxvit_block", **SMALL, window=4)
    larger = load(random_block("maxvit_block", **SMALL, window=6, table_window=4), learned.state_dict())
    assert larger(random_tokens(1, 16, 12, 12)).shape == (1, 16, 12, 12)
    with record(larger) as maps:
        larger(random_tokens(1, 16, 12, 12))
    assert (maps[""].dense(queries=0, heads=0) > 0).sum() == 36


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="head_channels=32 must divide channels=16"):
        create("maxvit_block", channels=16)
    with pytest.raises(ValueError, match=r"window must be positive, .* each of 2 axes, not \(4, 4, 4\)"):
        create("maxvit_block", **SMALL, window=(4, 4, 4))
    with pytest.raises(ValueError, match=r"table_window must be positive, .* not 0"):
        create("maxvit_grid", **SMALL, table_window=0)
    with pytest.raises(ValueError, match="rank must be 1, 2 or 3, not 4"):
        create("maxvit_grid", **SMALL, rank=4)
    with pytest.raises(ValueError, match="must be positive: channels=16, expansion=0"):
        create("maxvit_grid", **SMALL, expansion=0)
    with pytest.raises(ValueError, match="window must have 1 to 3 axes, not 4"):
        RelativeBias(heads=1, window=(2, 2, 2, 2))
    with pytest.raises(ValueError, match="strided is False in this form"):
        create("maxvit_block", **SMALL, strided=True)

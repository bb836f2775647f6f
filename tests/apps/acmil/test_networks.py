"""What every network promises, and what only ACMIL does."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from apps.acmil.config import ModelConfig, Name
from apps.acmil.losses import branch_diversity, branch_loss, negative_entropy
from apps.acmil.model import ACMIL, MultiHeadACMIL
from apps.acmil.networks import NAMES, build, default_channels
from shared.errors import UserError

NETWORKS = list(get_args(Name))


def network(name: str, *, classes: int = 3, **settings: object):
    torch.manual_seed(0)
    return build(ModelConfig(name=name, channels=16, attention_channels=8, branches=3, **settings), features=24, classes=classes)


def bag(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_bag_of_any_size_gives_logits_and_attention_that_adds_up_to_one(name: str, count: int) -> None:
    answer = network(name).eval()(bag(count))
    assert answer.logits.shape == (3,)
    assert answer.branch_logits.shape[1] == 3
    assert answer.attention.shape[1] == count
    assert answer.attention.dtype == torch.float32
    assert (answer.attention >= 0).all()
    torch.testing.assert_close(answer.attention.sum(1), torch.ones(len(answer.attention)))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("transmil", "dtfd")])
def test_the_order_of_the_tiles_does_not_matter(name: str) -> None:
    """TransMIL lays them out in their order, and DTFD deals them out in turn."""
    tested, order = network(name).eval(), torch.randperm(50, generator=torch.Generator().manual_seed(1))
    answer, mixed = tested(bag(50)), tested(bag(50)[order])
    torch.testing.assert_close(mixed.logits, answer.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.attention, answer.attention[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_answer_is_the_same_every_time(name: str) -> None:
    tested = network(name).eval()
    assert torch.equal(tested(bag(41)).logits, tested(bag(41)).logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_lowers_the_loss_and_reaches_every_weight(name: str) -> None:
    tested, label = network(name).train(), torch.tensor(1)
    if name == "ibmil":
        tested.prototypes.copy_(torch.randn(8, 16))
    optimizer = torch.optim.Adam(tested.parameters(), lr=3e-3)
    first = None
    for _ in range(25):
        loss = torch.stack(list(tested.losses(bag(20), label).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or float(loss.detach())
    assert float(loss.detach()) < first
    unreached = [key for key, weight in tested.named_parameters() if weight.grad is None]
    assert [key for key in unreached if not key.startswith("instance_classifiers")] == []  # CLAM asks those of the slide's class only


@pytest.mark.parametrize("name", NETWORKS)
def test_more_than_one_slide_at_a_time_is_refused_rather_than_ignored(name: str) -> None:
    for wrong in (bag(10)[None], bag(10)[:0], bag(10)[0]):
        with pytest.raises(ValueError, match="at least one instance"):
            network(name).eval()(wrong)


def test_every_network_has_a_name_for_people() -> None:
    assert list(NAMES) == NETWORKS


@pytest.mark.parametrize(("features", "channels"), [(384, 128), (512, 256), (768, 384), (1024, 512), (1536, 768), (20, 16)])
def test_the_inner_width_is_the_one_that_the_authors_pair_with_an_encoder(features: int, channels: int) -> None:
    assert default_channels(features) == channels


def test_a_width_that_eight_heads_cannot_share_is_an_error_in_words() -> None:
    with pytest.raises(UserError, match=r"model: channels=20 must be a multiple of 8"):
        build(ModelConfig(name="acmil_mha", channels=20), features=24, classes=2)


@pytest.mark.parametrize("kind", [ACMIL, MultiHeadACMIL])
def test_in_training_each_branch_goes_without_six_of_its_ten_favourites(kind: type) -> None:
    torch.manual_seed(0)
    tested = kind(features=24, classes=2, channels=16, branches=3).train()
    weights = tested(bag(60)).attention if kind is ACMIL else tested._read(bag(60))[1].flatten(0, 1)
    favourites = tested.eval()(bag(60)).attention if kind is ACMIL else tested.eval()._read(bag(60))[1].flatten(0, 1)
    for masked, whole in zip(weights, favourites, strict=True):
        gone = (masked == 0).nonzero().flatten()
        assert len(gone) == 6
        assert set(gone.tolist()) <= set(whole.topk(10).indices.tolist())


def test_an_instance_that_was_dropped_gets_no_gradient() -> None:
    torch.manual_seed(0)
    tested, x = ACMIL(features=24, classes=2, channels=16, branches=1, drop=1.0, top_instances=4), bag(30).requires_grad_()
    answer = tested.train()(x)
    answer.logits.sum().backward()
    dropped = answer.attention[0] == 0
    assert dropped.sum() == 4
    assert (x.grad[dropped] == 0).all()
    assert (x.grad[~dropped] != 0).any()


def test_diversity_is_one_for_branches_that_look_alike_and_nothing_for_one_branch() -> None:
    same, apart = torch.ones(1, 4, 9) / 9, torch.eye(4).reshape(1, 4, 4)
    assert float(branch_diversity(same)) == pytest.approx(1)
    assert float(branch_diversity(apart)) == 0
    assert float(branch_diversity(same[:, :1])) == 0
    assert float(branch_loss(torch.zeros(1, 2), torch.tensor(0))) == 0


def test_entropy_is_that_of_even_attention_and_finite_for_a_single_tile() -> None:
    assert float(negative_entropy(torch.ones(1, 2, 8) / 8)) == pytest.approx(-2.0794415, rel=1e-6)  # -log 8
    assert float(negative_entropy(torch.eye(5)[:2][None])) == 0


@pytest.mark.parametrize("name", ["acmil_ga", "acmil_mha", "abmil"])
def test_half_precision_gives_nearly_the_same_answer_and_no_nan(name: str) -> None:
    tested, x = network(name).eval(), bag(200)
    with torch.autocast("cpu", torch.bfloat16):
        half = tested(x)
    # bfloat16 keeps three digits; the logits are below 1 in size
    torch.testing.assert_close(half.logits.float(), tested(x).logits, rtol=0, atol=0.03)
    torch.testing.assert_close(half.attention.sum(1), torch.ones(len(half.attention)))
    loss = torch.stack(list(tested.train().losses(x, torch.tensor(0)).values())).sum()
    assert torch.isfinite(loss)


def test_multi_head_attention_in_the_cheap_order_is_the_published_one() -> None:
    """Against torch's own multi-head attention, which projects every instance."""
    torch.manual_seed(0)
    branch = MultiHeadACMIL(features=24, classes=2, channels=16, branches=1).eval().branches[0]
    theirs = torch.nn.MultiheadAttention(16, 8, batch_first=True).eval()
    parts = (branch.query, branch.key, branch.pooling.value)
    theirs.in_proj_weight.data = torch.cat([part.weight for part in parts])
    theirs.in_proj_bias.data = torch.cat([part.bias for part in parts])
    theirs.out_proj = branch.pooling.out
    x, query = torch.randn(40, 16), torch.randn(16)
    expected, weights = theirs(query[None], x, x, average_attn_weights=False)
    scores = torch.softmax(branch.scores(x, query), -1)
    torch.testing.assert_close(scores, weights[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(branch.pooling(scores @ x), branch.pooling.norm(expected[0]), rtol=1e-4, atol=1e-5)


def test_the_class_tokens_row_of_transmil_is_that_of_the_whole_map() -> None:
    from apps.acmil.transmil import NystromAttention, pseudo_inverse

    torch.manual_seed(0)
    attention, x = NystromAttention(channels=16, heads=2, landmarks=8), torch.randn(29, 16)
    queries, keys, values = attention._projected(x)
    near, far, _ = attention._landmarks(queries, keys, 29)
    whole = torch.softmax(queries @ far.mT, -1) @ pseudo_inverse(torch.softmax(near @ far.mT, -1)) @ torch.softmax(near @ keys.mT, -1)
    torch.testing.assert_close(attention.first_row(x), whole[0, :, -29, -29:], rtol=1e-4, atol=1e-5)
    plain = attention.out((whole @ values + attention.residual(values))[0].transpose(0, 1).flatten(1)[-29:])
    torch.testing.assert_close(attention.eval()(x), plain, rtol=1e-4, atol=1e-5)

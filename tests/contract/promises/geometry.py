"""Promise 6: results come back in the input's own geometry."""

from __future__ import annotations

from tests.contract.conftest import Inferred
from tests.contract.contract import Contract
from tests.contract.inputs import rows


def test_every_result_has_the_geometry_of_its_input(contract: Contract, inferred: Inferred) -> None:
    found = rows(inferred.output)
    for name, good in contract.good.items():
        for sample in good.samples:
            files = {kind: inferred.output / file for kind, file in found[name, sample]["files"].items()}
            assert contract.geometry(files) == good.geometry, (name, sample)


def test_the_same_thing_in_another_format_has_the_same_answer(contract: Contract, inferred: Inferred) -> None:
    found = rows(inferred.output)
    pairs = [(name, good.same_as) for name, good in contract.good.items() if good.same_as is not None]
    assert pairs
    for name, other in pairs:
        for sample in contract.good[name].samples:
            one, two = (inferred.output / found[key, sample]["files"][contract.main_result] for key in (name, other))
            assert contract.same(one) == contract.same(two), (name, other)


def test_a_good_answer_is_not_always_the_empty_one(contract: Contract, inferred: Inferred) -> None:
    """Else the comparisons above would compare nothing."""
    results = {(inferred.output / row["files"][contract.main_result]).read_bytes() for row in rows(inferred.output).values()}
    things = [good for good in contract.good.values() if good.same_as is None]
    assert len(results) > len(things) // 2

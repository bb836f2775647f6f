"""The public sets of whole slides are listed with their terms, and used where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.data.manifest import list_manifests, load
from shared.errors import UserError
from tests.commands import Answer

SETS = {"bracs", "camelyon16", "camelyon17", "tcga-nsclc", "tcga-rcc"}


def test_the_list_shows_them_by_slides_and_not_by_pairs(acmil: Callable[..., Answer]) -> None:
    assert {manifest.name for manifest in list_manifests("acmil")} == SETS
    answer = acmil("data", "list", "--app", "acmil")
    assert answer.code == 0
    assert "399 slides" in answer.out


@pytest.mark.parametrize("name", sorted(SETS))
def test_fetch_says_where_a_set_is_how_to_lay_it_out_and_on_which_terms(name: str, acmil: Callable[..., Answer], tmp_path: Path) -> None:
    answer = acmil("data", "fetch", name, "--root", tmp_path)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    manifest = load(name)
    for part in ("where: https://", "how:   Put the slides into one folder", f"terms: {manifest.terms}"):
        assert part in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_without_layouts_must_say_how_its_set_is_used_in_place(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "datasets" / "bracs.yaml").read_text()
    path = tmp_path / "bracs.yaml"
    path.write_text(text.split("in_place:")[0] + "notes: none\n")
    with pytest.raises(UserError, match="key 'layouts': must have at least one entry"):
        load(path)

"""What a person sees of the data verbs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.data.commands import fetch_data, list_data, verify_data
from shared.data.config import FetchConfig, ListConfig, VerifyConfig
from shared.errors import UserError
from tests.shared.data.conftest import pair_files, zip_of


@pytest.fixture
def fetched(make_manifest: Callable[..., str], tmp_path: Path) -> VerifyConfig:
    given = tmp_path / "given.zip"
    given.write_bytes(zip_of(pair_files()))
    manifest = make_manifest()
    fetch_data(FetchConfig(name=manifest, root=tmp_path / "data", archive=given))
    return VerifyConfig(name=manifest, root=tmp_path / "data")


def test_the_list_names_the_data_sets_of_an_app(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    list_data(ListConfig(app="pranet", root=tmp_path))
    shown = capsys.readouterr().out
    assert "kvasir-seg" in shown
    assert "1,000" in shown
    assert "by hand" in shown
    assert "automatic" in shown


def test_an_app_without_data_sets_is_told_which_have_some() -> None:
    with pytest.raises(UserError, match=r"'pranett'\. Apps with data sets: .*\bpranet\b"):
        list_data(ListConfig(app="pranett"))


def test_terms_and_citation_are_shown_with_a_fetch(fetched: VerifyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_data(FetchConfig(name=fetched.name, root=fetched.root))
    shown = " ".join(capsys.readouterr().out.split())
    assert "terms: Free for all." in shown
    assert "cite: Nobody, 2020" in shown
    assert "already there" in shown


def test_a_mistyped_name_suggests_the_nearest(tmp_path: Path) -> None:
    for command, config in ((fetch_data, FetchConfig), (verify_data, VerifyConfig)):
        with pytest.raises(UserError, match="Did you mean 'kvasir-seg'"):
            command(config(name="kvasir_seg", root=tmp_path))


def test_an_unchanged_data_set_verifies(fetched: VerifyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    verify_data(fetched)
    assert "all 8 files are there and unchanged" in " ".join(capsys.readouterr().out.split())


def test_missing_changed_and_extra_files_are_named(fetched: VerifyConfig) -> None:
    folder = fetched.root / "polyps"
    (folder / "images" / "frame_0.png").unlink()
    content = bytearray((folder / "masks" / "frame_1.png").read_bytes())
    content[-1] ^= 1
    (folder / "masks" / "frame_1.png").write_bytes(content)
    (folder / "images" / "new.png").write_bytes(b"new")
    with pytest.raises(UserError) as caught:
        verify_data(fetched)
    message = str(caught.value)
    assert "missing 1: images/frame_0.png" in message
    assert "changed 1: masks/frame_1.png" in message
    assert "extra 1: images/new.png" in message
    assert "frame_2" not in message


def test_a_data_set_that_was_not_fetched_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data fetch kvasir-seg --root"):
        verify_data(VerifyConfig(name="kvasir-seg", root=tmp_path))


@pytest.mark.parametrize("listing", [None, "nonsense\n"])
def test_a_lost_or_broken_listing_is_named(fetched: VerifyConfig, listing: str | None) -> None:
    path = fetched.root / "polyps" / "sha256sums.txt"
    path.unlink()
    if listing is not None:
        path.write_text(listing)
    with pytest.raises(UserError, match=r"sha256sums.txt: "):
        verify_data(fetched)

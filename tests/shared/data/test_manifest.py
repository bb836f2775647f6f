"""Every manifest that ships is valid, and a wrong one is refused with its file and key."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.data.manifest import list_manifests, load, names
from shared.errors import UserError


@pytest.mark.parametrize("name", names())
def test_every_manifest_that_ships_is_valid(name: str) -> None:
    manifest = load(name)
    assert manifest.name == name
    assert manifest.terms
    assert manifest.citation


def test_the_sets_of_the_pranet_paper_are_all_there() -> None:
    counts = {manifest.name: manifest.count for manifest in list_manifests("pranet")}
    assert counts == {
        "cvc-300": 60,
        "cvc-clinicdb": 612,
        "cvc-colondb": 380,
        "etis-laribpolypdb": 196,
        "kvasir-seg": 1000,
        "pranet-test": 798,
        "pranet-train": 1450,
    }
    assert load("pranet-test").splits["ETIS-LaribPolypDB"] == 196


def test_the_folder_of_manifests_holds_data_only() -> None:
    # A package called datasets would hide Hugging Face's of the same name.
    assert {path.suffix for path in load("kvasir-seg").path.parent.iterdir()} == {".yaml"}


@pytest.mark.parametrize(("typed", "meant"), [("kvasirseg", "kvasir-seg"), ("Kvasir", "kvasir-seg"), ("etis-larib", "etis-laribpolypdb")])
def test_an_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean '{meant}'"):
        load(typed)


def test_a_name_cannot_lead_out_of_the_folder() -> None:
    with pytest.raises(UserError, match="no data set called"):
        load("../datasets/kvasir-seg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"homepge": "x"}, r"polyps.yaml: unknown key 'homepge'. Did you mean 'homepage'"),
        ({"count": "many"}, r"polyps.yaml: key 'count' must be a whole number, found 'many'"),
        ({"count": 0}, r"polyps.yaml: key 'count': must be at least 1"),
        ({"apps": "pranet"}, r"polyps.yaml: key 'apps' must be a list, found 'pranet'"),
        ({"archives": []}, r"polyps.yaml: key 'archives': must have at least one"),
        ({"archive": {"how": "magic"}}, r"polyps.yaml: key 'archives\[0\].how' must be one of direct, manual, found 'magic'"),
        ({"archive": {"url": None}}, r"polyps.yaml: key 'archives\[0\].url': a direct archive needs one"),
        ({"archive": {"how": "manual"}}, r"polyps.yaml: key 'archives\[0\].note': a manual archive needs instructions"),
        ({"archive": {"url": "file:///etc/passwd"}}, r"key 'archives\[0\].url': must start with http"),
        ({"archive": {"sha256": "abc"}}, r"key 'archives\[0\].sha256': must be 64 lower-case hexadecimal digits"),
        ({"archive": {"file": "../polyps.zip"}}, r"key 'archives\[0\].file': must be a plain file name"),
        ({"layouts": [{"images": "images/*", "masks": "masks/{stem}.*"}]}, r"key 'layouts\[0\].images': must have \{stem\} once"),
        ({"splits": {"a": 4}}, r"key 'splits': must list the folders if, and only if"),
        ({"sha256": "0" * 64}, r"key 'sha256' is not for the file to set"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_file_and_key(make_manifest: Callable[..., str], changes: dict, message: str) -> None:
    path = make_manifest(**changes)
    with pytest.raises(UserError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("- a\n- b\n", "expected a mapping of keys"),
        ("", "found nothing"),
        ("name: x\n", "key 'title' is missing"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"x.yaml: .*{message}"):
        load(path)

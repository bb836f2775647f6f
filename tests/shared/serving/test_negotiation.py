"""Which type a client gets, by RFC 9110."""

import pytest

from shared.serving.negotiation import negotiate

OFFERS = ["application/json", "image/png"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/png"),
        ("application/json;q=0.5, image/png;q=0.9", "image/png"),
        ("image/png, application/json", "application/json"),
        ("*/*;q=0.1, image/png", "image/png"),
        ("application/json;q=0, */*", "image/png"),
        ("image/*;q=0.9, image/png;q=0, */*;q=0.1", "application/json"),
        ("text/html", None),
        ("*/json", None),
        ("image/png;q=nonsense", None),
        (",,;;=", None),
    ],
)
def test_the_most_wanted_type_on_offer_is_chosen(accept: str | None, expected: str | None) -> None:
    assert negotiate(accept, OFFERS) == expected

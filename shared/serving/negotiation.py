"""Which of the media types on offer a client wants (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["negotiate"]


def negotiate(accept: str | None, offers: Sequence[str]) -> str | None:
    """The offer that the Accept header rates highest, the earlier offer among equals; None if it accepts none of them.

    For each offer the most specific matching range counts, as the standard says: "image/png;q=0, */*" excludes PNG. No header accepts all.
    """
    ranges = [_parse(part) for part in (accept or "*/*").split(",") if part.strip()]
    best, best_quality = None, 0.0
    for offer in offers:
        matches = [(range_.count("*"), -quality) for range_, quality in ranges if _matches(range_, offer)]
        quality = -min(matches)[1] if matches else 0.0
        if quality > best_quality:
            best, best_quality = offer, quality
    return best


def _parse(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return media_range, quality


def _matches(media_range: str, offer: str) -> bool:
    kind, _, subtype = media_range.partition("/")
    offered_kind, _, offered_subtype = offer.partition("/")
    return kind in ("*", offered_kind) and subtype in ("*", offered_subtype) and (kind != "*" or subtype == "*")

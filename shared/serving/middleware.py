"""What happens to every request: an id, a log line, the metrics, the security headers, and an answer even to our own faults."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.serving.metrics import Metrics
from shared.serving.problems import problem_response

__all__ = ["Observed"]

logger = logging.getLogger("shared.serving.requests")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: counted, not logged."""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Observed:
    """ASGI middleware around the whole service."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; see the module."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        begun, bytes_in, status = time.monotonic(), 0, 0

        async def counted() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, counted, dressed)
        except Exception as error:
            logger.error("fault", exc_info=error, extra={"fields": {"request_id": request_id}})
            if status == 0:
                detail = "The service failed on this request. Nothing was stored; report the request id to whoever runs the service."
                await problem_response(500, detail, request_id)(scope, counted, dressed)
        finally:
            # Labels come from fixed sets only: a stranger's path or method must not grow the metrics or reach the log.
            route = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            duration_s = time.monotonic() - begun
            # Status 499 (client went away before an answer) is nginx's convention.
            self._metrics.requests.labels(method, route, status or 499).inc()
            self._metrics.duration.labels(route).observe(duration_s)
            if route not in _QUIET:
                fields = {
                    "method": method,
                    "route": route,
                    "status": status or 499,
                    "duration_ms": round(1000 * duration_s, 1),
                    "bytes_in": bytes_in,
                    "request_id": request_id,
                }
                logger.info("request", extra={"fields": fields})

"""Every error as application/problem+json (RFC 9457), whoever raises it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from shared.serving.answers import Problem

__all__ = ["handle_problems", "problem_response"]


def problem_response(status: int, detail: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """``detail`` is for the person who reads it: what was found, what was expected, what to do."""
    content = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, request_id=request_id)
    return JSONResponse(content.model_dump(), status, headers, media_type="application/problem+json")


def handle_problems(app: FastAPI) -> None:
    """Turns the framework's errors and ours into problems."""

    @app.exception_handler(HTTPException)
    async def from_http(request: Request, error: HTTPException) -> Response:
        return problem_response(error.status_code, str(error.detail), request.state.request_id, error.headers)

    @app.exception_handler(RequestValidationError)
    async def from_validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = " ".join(str(part) for part in first["loc"] if not isinstance(part, int))
        return problem_response(422, f"{place}: {first['msg']}.", request.state.request_id)

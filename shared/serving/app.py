"""The routes: predictions, the model, its health, and the page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from markdown_it import MarkdownIt
from starlette.requests import ClientDisconnect

from shared.inference.protocols import Prediction, Predictor, Sample
from shared.serving.answers import Attachment, Failure, Include, Limits, ModelAnswer, PredictionsAnswer, Problem, Result, problem
from shared.serving.config import ServeConfig, read_api_key
from shared.serving.metrics import Metrics
from shared.serving.middleware import Observed
from shared.serving.names import disposition, result_name, stem_of
from shared.serving.negotiation import negotiate
from shared.serving.problems import handle_problems
from shared.serving.queue import PredictionQueue, QueueFullError
from shared.serving.service import Service
from shared.serving.uploads import FIELD, Upload, joined, read_uploads

__all__ = ["create_app"]

JSON = "application/json"
PAGE = Path(__file__).parent / "page"
CODE_SAMPLES = [
    {
        "lang": "Shell",
        "label": "Measurements of two files",
        "source": "curl -F files=@a.png -F files=@b.png http://127.0.0.1:8000/v1/predictions",
    },
    {
        "lang": "Shell",
        "label": "The main result of one file",
        "source": "curl -F files=@a.png -H 'Accept: image/png' -o a_mask.png http://127.0.0.1:8000/v1/predictions",
    },
    {
        "lang": "Shell",
        "label": "The four sequences of one examination",
        "source": "curl -F files=@t1.nii.gz -F files=@t1ce.nii.gz -F files=@t2.nii.gz -F files=@flair.nii.gz "
        "'http://127.0.0.1:8000/v1/predictions?together=true'",
    },
    {
        "lang": "Python",
        "label": "With the overlay, and a key",
        "source": 'httpx.post(url, files={"files": image}, params={"include": "preview"}, headers={"Authorization": "Bearer KEY"})',
    },
]
TOGETHER = (
    "All files of the request are one input: the slices of a DICOM series, or the sequences of one examination. "
    "As good as a .zip of them, for models that read .zip."
)
DESCRIPTION = """Predictions of one model, for research use only: not a medical device.

Inputs are held in memory while they are answered; they are neither stored nor logged."""


def create_app(load: Callable[[], Predictor[Prediction]], config: ServeConfig, *, media_types: Sequence[str]) -> FastAPI:
    """The service as an ASGI application.

    Args:
        load: returns the predictor, ready to answer at full speed; called in the background when the application starts.
        config: limits and the API key; host, port, model and device are for ``serve`` and ``load``.
        media_types: ``Prediction.media_types`` of this predictor: what it answers in, beside JSON. Known before the model is loaded.

    Raises:
        UserError: if the API key cannot be read.
    """
    key = read_api_key(config)
    metrics = Metrics()
    service = Service(load, config, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Fovea", version="1", description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None, responses=problem(500)
    )
    app.state.service = service
    app.add_middleware(Observed, metrics=metrics)
    handle_problems(app)
    app.include_router(_model_routes(service, config, metrics, key, media_types))
    app.include_router(_health_routes(service, metrics))
    app.include_router(_page_routes())
    _name_problem_schema(app)
    return app


def _model_routes(service: Service, config: ServeConfig, metrics: Metrics, key: str | None, media_types: Sequence[str]) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(_key_check(key, metrics))] if key else [], responses=problem(401) if key else {})
    max_bytes = int(config.max_upload_mb * 1e6)

    def ready() -> tuple[Predictor[Prediction], PredictionQueue]:
        if service.predictor is None or service.queue is None:
            raise HTTPException(503, "The model is not loaded yet. Try again in a few seconds.", {"Retry-After": "5"})
        return service.predictor, service.queue

    def refuse(status: int, reason: str, detail: str, headers: dict[str, str] | None = None) -> HTTPException:
        metrics.rejected.labels(reason).inc()
        return HTTPException(status, detail, headers)

    @router.post(
        "/predictions",
        summary="Predict for one or several files",
        response_model=PredictionsAnswer,
        responses={
            200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}},
            **problem(400, 406, 408, 409, 413, 415, 429, 503, 504),
            422: {
                "description": "No file could be read (as the 200 answer, with failures only), or a parameter is unknown",
                "content": {
                    JSON: {"schema": {"$ref": "#/components/schemas/PredictionsAnswer"}},
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
                },
            },
        },
        openapi_extra={"requestBody": _request_body(config), "x-codeSamples": CODE_SAMPLES},
    )
    async def predictions(
        request: Request,
        include: Annotated[list[Include], Query(description="Files wanted in the JSON, repeatable.")] = [],  # noqa: B006
        together: Annotated[bool, Query(description=TOGETHER)] = False,
    ) -> Response:
        """JSON holds a result for each sample and a failure for each file that cannot be read; its status is 200 if there is any result.

        Another media type, by the Accept header, is answered for a single input with a single sample: the main result itself.
        """
        predictor, queue = ready()
        media_type = negotiate(request.headers.get("accept"), [JSON, *media_types])
        if media_type is None:
            raise refuse(406, "not_acceptable", f"The Accept header takes none of {', '.join([JSON, *media_types])}.")
        try:
            with queue.admit():
                uploads = await _received(request, max_bytes, config)
                if together and len(uploads) > 1:
                    if ".zip" not in predictor.suffixes:
                        raise refuse(409, "not_together", "This model reads each file by itself. Leave out the parameter `together`.")
                    uploads = [await asyncio.to_thread(joined, uploads)]
                if media_type != JSON and len(uploads) > 1:
                    raise refuse(406, "not_acceptable", f"{len(uploads)} files cannot be one {media_type}. Ask for {JSON}, or send one.")
                async with asyncio.timeout(config.timeout_s):
                    if media_type == JSON:
                        return await _as_json(service, predictor, uploads, include)
                    return await _as_file(service, predictor, uploads[0], media_type)
        except QueueFullError as error:
            after = str(error.retry_after_s)
            raise refuse(429, "queue_full", f"The service is busy. Try again in {after} s.", {"Retry-After": after}) from None
        except TimeoutError:
            detail = f"No answer within {config.timeout_s:g} s; the work was dropped. Send less at once, or try again later."
            raise refuse(504, "timeout", detail) from None

    @router.get("/model", summary="The model: card, settings, limits", responses=problem(503))
    def model() -> ModelAnswer:
        predictor, _ = ready()
        about = predictor.about
        return ModelAnswer(
            name=str(about["name"]),
            version=str(about["version"]),
            card=predictor.card,
            about=about,
            suffixes=sorted(predictor.suffixes),
            media_types=[JSON, *media_types],
            limits=Limits(
                max_upload_mb=config.max_upload_mb, max_pixels=config.max_pixels, max_files=config.max_files, timeout_s=config.timeout_s
            ),
        )

    @router.get("/model/card", summary="The model card, for reading", response_class=HTMLResponse, responses=problem(503))
    def card() -> HTMLResponse:
        predictor, _ = ready()
        # HTML within the Markdown is shown as text, not run: a bundle may come from a stranger.
        return HTMLResponse(MarkdownIt("commonmark", {"html": False}).enable("table").render(predictor.card))

    return router


def _health_routes(service: Service, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Loaded, and able to answer", responses=problem(503))
    async def readyz() -> dict[str, str]:
        if service.queue is None:
            raise HTTPException(503, "The model is not loaded yet.", {"Retry-After": "5"})
        return {"status": "ready"}

    @router.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _page_routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    for path, name in {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}.items():
        router.add_api_route(path, _file(PAGE / name), methods=["GET", "HEAD"], name=name)
    return router


def _file(path: Path) -> Callable[[], FileResponse]:
    def answer() -> FileResponse:
        return FileResponse(path)

    return answer


def _key_check(key: str, metrics: Metrics) -> Callable[..., None]:
    expected = hashlib.sha256(key.encode()).digest()
    scheme = HTTPBearer(auto_error=False, description="The API key that the operator of the service gave you.")

    def check(credentials: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008
        given = hashlib.sha256((credentials.credentials if credentials else "").encode()).digest()
        # Equal lengths and a comparison in constant time: the answer's timing tells nothing about the key.
        if not hmac.compare_digest(given, expected):
            metrics.rejected.labels("unauthorized").inc()
            found = "The API key is wrong." if credentials else "An API key is needed."
            raise HTTPException(401, f"{found} Send it as `Authorization: Bearer KEY`.", {"WWW-Authenticate": "Bearer"})

    return check


async def _received(request: Request, max_bytes: int, config: ServeConfig) -> list[Upload]:
    try:
        async with asyncio.timeout(config.timeout_s):
            return await read_uploads(request, max_bytes=max_bytes, max_files=config.max_files)
    except ClientDisconnect:
        raise HTTPException(400, "The connection was closed before the upload was complete.") from None
    except TimeoutError:
        raise HTTPException(408, f"The upload did not arrive within {config.timeout_s:g} s. Send less at once.") from None


async def _as_json(service: Service, predictor: Predictor[Prediction], uploads: Sequence[Upload], include: Sequence[Include]) -> Response:
    def finish(upload: Upload, sample: Sample, prediction: Any) -> Result:
        def attached(kind: str, media_type: str, content: bytes) -> Attachment:
            name = result_name(stem_of(upload.name, predictor.suffixes), sample.id, kind, media_type, content)
            return Attachment(name=name, media_type=media_type, base64=base64.b64encode(content).decode("ascii"))

        files: dict[Include, Attachment] = {}
        if "result" in include:
            media_type = prediction.media_types[0]
            files["result"] = attached("result", media_type, prediction.encode(media_type))
        if "preview" in include and hasattr(prediction, "preview"):
            files["preview"] = attached("overlay", "image/png", prediction.preview())
        return Result(file=upload.name, sample=sample.id, summary=prediction.summary(), files=files)

    outcomes = await service.predict(uploads, finish)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    answer = PredictionsAnswer(
        model={"name": str(predictor.about["name"]), "version": str(predictor.about["version"])},
        results=[outcome for outcome in outcomes if isinstance(outcome, Result)],
        failures=failures,
    )
    return JSONResponse(answer.model_dump(), 200 if answer.results else max(failure.status for failure in failures))


async def _as_file(service: Service, predictor: Predictor[Prediction], upload: Upload, media_type: str) -> Response:
    def finish(_: Upload, sample: Sample, prediction: Any) -> tuple[bytes, str]:
        content = prediction.encode(media_type)
        return content, result_name(stem_of(upload.name, predictor.suffixes), sample.id, "result", media_type, content)

    (outcome,) = await service.predict([upload], finish, single=True)
    if isinstance(outcome, Failure):
        raise HTTPException(outcome.status, outcome.detail)
    content, name = outcome
    return Response(content, media_type=media_type, headers={"Content-Disposition": disposition(name)})


def _request_body(config: ServeConfig) -> dict[str, Any]:
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": config.max_files}
    schema = {"type": "object", "required": [FIELD], "properties": {FIELD: files}, "additionalProperties": False}
    return {
        "required": True,
        "description": f"The files, up to {config.max_upload_mb:g} MB together.",
        "content": {"multipart/form-data": {"schema": schema}},
    }


def _name_problem_schema(app: FastAPI) -> None:
    """Adds the schema that ``problem()`` refers to, which no route returns as a model."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document

    app.openapi = openapi  # type: ignore[method-assign]

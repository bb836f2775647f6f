"""What the service answers, as it stands in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Attachment", "Failure", "Include", "Limits", "ModelAnswer", "PredictionsAnswer", "Problem", "Result", "problem"]

Include = Literal["result", "preview"]
"""Files that a client may have beside the measurements: the main result (such as the mask), and a picture for a person (the overlay)."""


class Attachment(BaseModel):
    """A file within the JSON."""

    name: str = Field(description="What to call it where it is saved.", examples=["frame_0412_result.png"])
    media_type: str = Field(examples=["image/png"])
    base64: str = Field(description="The file's bytes, in base64.", examples=["iVBORw0KGgo..."])


class Result(BaseModel):
    """The answer for one sample: an image, or one frame of several."""

    file: str = Field(
        description="Name of the uploaded file; of several sent together, what their names share.", examples=["frame_0412.png"]
    )
    sample: str = Field(description="Which sample of the file; empty for the only one.", examples=[""])
    summary: dict[str, Any] = Field(
        description="The measurements; names carry their units.", examples=[{"area_fraction": 0.081, "largest_component_px": 10042}]
    )
    files: dict[Include, Attachment] = Field(
        description="What `include` asked for; empty otherwise, and without `preview` where the model draws none.", examples=[{}]
    )


class Failure(BaseModel):
    """Why one file, or one sample of it, has no answer. The others are not affected."""

    file: str = Field(examples=["notes.txt"])
    sample: str = Field(examples=[""])
    status: int = Field(description="As an HTTP status: 413 too large, 422 not readable, 500 our fault.", examples=[422])
    detail: str = Field(examples=["notes.txt: is no image; expected PNG, JPEG or TIFF."])


class PredictionsAnswer(BaseModel):
    """Results in the order of the upload, and failures beside them."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": {"name": "pranet", "version": "1.0"},
                "results": [{"file": "frame_0412.png", "sample": "", "summary": {"area_fraction": 0.081}, "files": {}}],
                "failures": [
                    {"file": "notes.txt", "sample": "", "status": 422, "detail": "notes.txt: is no image; expected PNG, JPEG or TIFF."}
                ],
            }
        }
    )
    model: dict[str, str] = Field(description="Name and version of the model that answered.")
    results: list[Result]
    failures: list[Failure]


class Limits(BaseModel):
    """What one request may hold."""

    max_upload_mb: float = Field(description="10^6 bytes, all files together.")
    max_pixels: int
    max_files: int
    timeout_s: float


class ModelAnswer(BaseModel):
    """The model behind the service."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "pranet",
                "version": "1.0",
                "card": "# PraNet\n\nSegments polyps in single colonoscopy frames.",
                "about": {"name": "pranet", "version": "1.0", "threshold": 0.5},
                "suffixes": [".jpeg", ".jpg", ".png"],
                "media_types": ["application/json", "image/png"],
                "limits": {"max_upload_mb": 64.0, "max_pixels": 64000000, "max_files": 32, "timeout_s": 60.0},
            }
        }
    )
    name: str
    version: str
    card: str = Field(description="The model card, Markdown.")
    about: dict[str, Any] = Field(description="Settings and provenance of the model.")
    suffixes: list[str] = Field(description="File name endings that the model reads.")
    media_types: list[str] = Field(description="What POST /v1/predictions can answer in, by the Accept header.")
    limits: Limits


class Problem(BaseModel):
    """An error, as RFC 9457 (application/problem+json)."""

    title: str = Field(examples=["Too Many Requests"])
    status: int = Field(examples=[429])
    detail: str = Field(description="What was found, what was expected, what to do.", examples=["The service is busy. Try again in 2 s."])
    request_id: str = Field(description="Name it when you report a fault; the service's log has it too.", examples=["8c2f4f0e5d5b4c51"])


def problem(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these error statuses."""
    meanings = {
        400: "Nothing uploaded, or a malformed form",
        401: "The API key is missing or wrong",
        406: "No media type of the Accept header can be made of this request",
        408: "The upload did not arrive in time",
        409: "Several files as one input (`together`), and this model reads each by itself",
        413: "Too many bytes, pixels or files",
        415: "Not multipart/form-data",
        422: "The file cannot be read, or a parameter is unknown",
        429: "The service is busy",
        500: "A fault of the service",
        503: "The model is not loaded yet",
        504: "The prediction did not finish in time; it was dropped",
    }
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {status: {"description": meanings[status], "content": {"application/problem+json": schema}} for status in statuses}

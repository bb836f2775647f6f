"""A web server on this machine that misbehaves on request, and made-up data sets to fetch from it."""

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image


@dataclass
class Page:
    content: bytes
    etag: str | None = '"first"'
    faults: list[str] = field(default_factory=list)
    """What goes wrong with the next requests, one entry each: "503", "404", "drop 1000" (after so many bytes), "slow" (a trickle)."""


class Site(ThreadingHTTPServer):
    """Pages by path, and the requests that came: (path, value of the Range header)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent_slowly = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        page = self.server.pages.get(self.path)
        fault = page.faults.pop(0) if page and page.faults else ""
        if page is None or fault == "404":
            self._answer(404, b"gone")
        elif fault.isdigit():
            self._answer(int(fault), b"later")
        elif asked and page.etag and self.headers.get("If-Range") == page.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(page.content):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(page.content)}"})
            else:
                span = f"bytes {start}-{len(page.content) - 1}/{len(page.content)}"
                self._answer(206, page.content[start:], {"Content-Range": span, "ETag": page.etag}, fault)
        else:
            self._answer(200, page.content, {"ETag": page.etag} if page.etag else {}, fault)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if fault.startswith("drop"):
            self.wfile.write(content[: int(fault.split()[1])])
            self.close_connection = True
        elif fault == "slow":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.server.sent_slowly.set()
            self.rfile.read(1)  # holds the line until the client is gone
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def png(seed: int) -> bytes:
    """A small image of noise, so that it does not compress."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pair_files(count: int = 4) -> dict[str, bytes]:
    """Archive member -> content, in the layout of the made-up manifest."""
    images = {f"Polyps/images/frame_{i}.png": png(i) for i in range(count)}
    return images | {f"Polyps/masks/frame_{i}.png": png(100 + i) for i in range(count)}


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bag:
        for name, content in files.items():
            bag.writestr(name, content)
    return buffer.getvalue()


def manifest_values(**changes: Any) -> dict[str, Any]:
    """A valid manifest; ``archive`` changes keys of its one archive."""
    archive = {"file": "polyps.zip", "how": "direct", "url": "http://127.0.0.1:9/polyps.zip", "sha256": None, "bytes": None}
    archive |= changes.pop("archive", {})
    return {
        "name": "polyps",
        "title": "Made-up polyps",
        "modality": "colonoscopy",
        "task": "polyp segmentation",
        "apps": ["pranet"],
        "homepage": "https://example.org/polyps",
        "terms": "Free for all.",
        "citation": "Nobody, 2020",
        "count": 4,
        "size_mb": None,
        "archives": [archive],
        "layouts": [{"images": "**/Polyps/images/{stem}.*", "masks": "**/Polyps/masks/{stem}.*"}],
        "splits": {},
        "notes": "Made up.",
    } | changes


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[..., str]:
    def make(**changes: Any) -> str:
        values = manifest_values(**changes)
        path = tmp_path / "manifests" / f"{values['name']}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return make

"""A person at the page, in a real browser: drops an image, sees the overlay, and is told what is wrong when something is."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.serving.config import ServeConfig
from tests.shared.serving.conftest import Running, film, picture, running

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "playwright.Browser") -> Iterator["playwright.Page"]:
    """Fails the test on anything that the browser complains about: a script error, a refused resource, a broken policy."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Content Security" in message.text else None)
    page.set_default_timeout(120_000)
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    path.write_bytes(picture(0.25, size=(300, 400)))
    return path


def test_a_chosen_image_is_shown_with_overlay_measurements_and_downloads(service: Running, page: "playwright.Page", frame: Path) -> None:
    page.goto(service.url)
    playwright.expect(page.locator("#model")).to_have_text("brightness, version 1.0")
    playwright.expect(page.get_by_text("Research use only. Not a medical device.")).to_be_visible()
    page.set_input_files("#choose", frame)
    playwright.expect(page.locator(".result .answer")).to_be_visible()
    playwright.expect(page.locator("#status")).to_have_text("1 file answered.")
    for name in ("original", "overlay"):
        playwright.expect(page.locator(f".{name}")).to_have_js_property("naturalWidth", 400)
    playwright.expect(page.get_by_role("row", name="Area fraction 0.25")).to_be_visible()
    playwright.expect(page.get_by_role("row", name="Area 30000 px")).to_be_visible()
    playwright.expect(page.get_by_role("row", name="Centroid, y 37 px")).to_be_visible()

    slider = page.get_by_role("slider", name="Overlay")
    slider.focus()
    slider.press("Home")
    assert page.locator(".overlay").evaluate("image => getComputedStyle(image).opacity") == "0"
    slider.press("ArrowRight")
    playwright.expect(page.locator("output")).to_have_text("5 %")

    saved = {}
    for label in ("Result (PNG)", "Overlay (PNG)", "Measurements (JSON)"):
        with page.expect_download() as download:
            page.get_by_role("link", name=label).click()
        saved[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
    assert set(saved) == {"frame_result.png", "frame_overlay.png", "frame.json"}
    assert json.loads(saved["frame.json"])["summary"]["area_px"] == 30_000
    assert saved["frame_result.png"] == service.post(("frame.png", frame.read_bytes()), headers={"Accept": "image/png"}).content


def test_images_are_dropped_and_a_broken_one_does_not_lose_the_others(service: Running, page: "playwright.Page", frame: Path) -> None:
    page.goto(service.url)
    playwright.expect(page.locator("#model")).to_have_text("brightness, version 1.0")
    files = page.evaluate_handle(
        """async (bytes) => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([new Uint8Array(bytes)], "first.png", { type: "image/png" }));
            dropped.items.add(new File(["no image"], "notes.png", { type: "image/png" }));
            dropped.items.add(new File([new Uint8Array(bytes)], "<img src=x onerror=alert(1)>.png", { type: "image/png" }));
            return dropped;
        }""",
        list(frame.read_bytes()),
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": files})
    playwright.expect(page.locator("#drop")).to_have_class("over")
    page.dispatch_event("#drop", "drop", {"dataTransfer": files})
    playwright.expect(page.locator("#status")).to_have_text("3 files answered, 1 without an answer.")
    playwright.expect(page.get_by_role("alert")).to_have_text("notes.png: is no image; expected PNG, GIF or BMP.")
    playwright.expect(page.locator(".answer:visible")).to_have_count(2)
    playwright.expect(page.get_by_role("heading", name="<img src=x onerror=alert(1)>.png")).to_be_visible()
    page.get_by_role("button", name="Clear all").click()
    playwright.expect(page.locator(".result")).to_have_count(0)


def test_the_card_opens_from_the_keyboard_and_runs_nothing(service: Running, page: "playwright.Page") -> None:
    page.goto(service.url)
    link = page.get_by_role("link", name="Model card")
    link.focus()
    link.press("Enter")
    playwright.expect(page.get_by_role("dialog").get_by_role("heading", name="Brightness")).to_be_visible()
    assert page.title() == "brightness · Fovea"
    page.keyboard.press("Escape")
    playwright.expect(page.get_by_role("dialog")).to_be_hidden()


def test_a_locked_service_asks_for_the_key_and_loses_no_file_meanwhile(
    page: "playwright.Page", frame: Path, settings: Callable[..., ServeConfig], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("right-key")
    with running(settings(api_key_file=key)) as service:
        page.goto(service.url)
        field = page.get_by_label("This service asks for an API key")
        field.fill("wrong")
        field.press("Enter")
        playwright.expect(page.get_by_text("That key was not accepted.")).to_be_visible()
        page.set_input_files("#choose", frame)
        playwright.expect(page.locator(".result")).to_have_count(0)
        field.fill("right-key")
        page.get_by_role("button", name="Unlock").click()
        playwright.expect(page.locator(".result .answer")).to_be_visible()


def test_a_film_shows_each_frame(service: Running, page: "playwright.Page", tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    path.write_bytes(film(3))
    page.goto(service.url)
    page.set_input_files("#choose", path)
    playwright.expect(page.locator(".answer:visible")).to_have_count(3)
    playwright.expect(page.get_by_role("heading", name="film.gif, frame_000002")).to_be_visible()

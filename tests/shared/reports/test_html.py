"""The report: one file that opens anywhere, shows names as they are, fetches nothing, and reads on paper and on a telephone."""

import base64
import hashlib
import io
import re
import shutil
import subprocess
import threading
from datetime import UTC, datetime
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from shared.errors import InputError, UserError
from shared.metrics.intervals import Interval
from shared.reports.figures import bars_with_intervals
from shared.reports.html import Link, Report

HOSTILE = """x" onerror='alert(1)'><script>alert(1)</script>&amp;{{ 7*7 }}.png"""
CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """What a browser would find."""

    void = frozenset({"meta", "img", "br", "rect", "input"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def photograph(height=120, width=160):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def full_report(folder, name=HOSTILE):
    path = folder / "frame.png"
    Image.fromarray(photograph()).save(path)
    estimate = Interval(estimate=0.713, low=0.65, high=0.772, confidence=0.95)
    report = Report(name, subtitle=name, details={name: Link(text=name, path=name)}, note=name, created=datetime(2025, 2, 3, tzinfo=UTC))
    report.facts({name: estimate, "Found": "17 of 20"})
    report.text(f"**Bold** and *italic* and `{name}`\n\n- {name}\n- [the table](per_case.csv)")
    report.section(name)
    report.gallery([(photograph(), name), (path, name), (path.read_bytes(), name)], legend={name: (0, 229, 255)})
    report.table([name, "Dice"], [[name, 0.5], [Link(text=name, path=f"a b/{name}"), estimate]], caption=name, best={"Dice": "highest"})
    report.figure(bars_with_intervals([name], [0.5], low=[0.4], high=[0.6]), name, alt=name)
    return report


def test_hostile_names_are_shown_and_never_become_markup(tmp_path):
    page = Page(full_report(tmp_path).html())
    assert page.open == []
    assert not page.all("script")
    assert not any(attribute.startswith("on") or attribute == "style" for _, attributes in page.tags for attribute in attributes)
    shown = " ".join(HOSTILE.split())
    assert page.text.count(shown) >= 10
    assert {image["alt"] for image in page.all("img")} == {HOSTILE}
    assert HOSTILE in [unquote(link["href"]).removeprefix("./") for link in page.all("a")]


def a_scene():
    meshes = {"color": [0, 229, 255], "opacity": 1.0, "positions": "", "normals": "", "indices": ""}
    return {"radius": 1.0, "half": [1.0, 1.0, 1.0], "surfaces": [meshes]}


def test_the_only_script_is_the_viewer_of_scenes_and_the_policy_names_it():
    report = Report("x")
    for _ in range(2):
        report.scene(a_scene(), photograph(), HOSTILE, legend={HOSTILE: (0, 229, 255)})
    html = report.html()
    page = Page(html)
    data, program = [script for script in page.all("script") if script], [script for script in page.all("script") if not script]
    assert [script["type"] for script in data] == ["application/json"] * 2
    assert len(program) == 1
    source = re.findall("<script>(.*?)</script>", html, re.DOTALL)[0]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" in page.all("meta")[1]["content"]
    assert not re.search(r"https?://|import |fetch|eval", source)
    assert {image["alt"] for image in page.all("img")} == {HOSTILE}
    with pytest.raises(ValueError, match="2 names for 1 surfaces"):
        report.scene(a_scene(), photograph(), "x", legend={"a": (0, 0, 0), "b": (0, 0, 0)})


def test_nothing_is_fetched_from_anywhere(tmp_path):
    html = full_report(tmp_path).html()
    page = Page(html)
    assert not page.all("link")
    assert not re.search(r"url\(|@import|https?://", re.search("<style>.*</style>", html, re.DOTALL)[0])
    for _, attributes in page.tags:
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith(("#", "./", "per_case.csv"))
    policy = page.all("meta")[1]["content"]
    style = re.search("<style>(.*)</style>", html, re.DOTALL)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy


def test_pictures_decode_at_their_stated_size_without_their_metadata(tmp_path):
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[0x010E] = "Patient Name"
    Image.fromarray(photograph(1300, 2600)).save(path, exif=exif)
    report = Report("x")
    report.figure(path, "A large photograph.")
    report.figure(np.zeros((40, 30), np.uint8), "A grey one.")
    images = Page(report.html()).all("img")
    decoded = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert [image.size for image in decoded] == [(1600, 800), (30, 40)]
    assert [(int(image["width"]), int(image["height"])) for image in images] == [(1600, 800), (30, 40)]
    assert not any(image.getexif() for image in decoded)


def test_numbers_are_rounded_and_the_best_is_marked_in_words_too():
    report = Report("x")
    rows = [
        ["a", 1450, 0.91234, 0.2],
        ["b", 20, Interval(estimate=0.95, low=None, high=None, confidence=0.95), None],
        ["c", 1, np.nan, 0.1],
    ]
    report.table(["Model", "Frames", "Dice", "MAE"], rows, caption="Scores.", best={"Dice": "highest", "MAE": "lowest"})
    text = Page(report.html()).text
    assert "a 1,450 0.912 0.200 b 20 0.950 (best) – c 1 – 0.100 (best)" in text


def test_a_reader_of_the_page_finds_contents_headings_and_table_headers(tmp_path):
    page = Page(full_report(tmp_path).html())
    targets = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(targets) == len(set(targets))
    assert all(link["href"][1:] in targets for link in page.all("a") if link["href"].startswith("#"))
    assert len(page.all("h1")) == 1
    assert {header["scope"] for header in page.all("th")} == {"row", "col"}
    assert page.all("html")[0]["lang"] == "en"


@pytest.mark.parametrize(
    "url", ["http://a.example/x", "//a.example", "javascript:alert(1)", "&#106;avascript:x", "../up.csv", "/etc/passwd", "data:x"]
)
def test_text_links_only_to_files_beside_the_report(url):
    report = Report("x")
    report.text(f"[label]({url}) ![picture]({url}) <{url}>")
    page = Page(report.html())
    assert not page.all("a")
    assert not page.all("img")
    assert "[label]" in page.text


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_links_out_of_the_folder_are_refused(path):
    with pytest.raises(ValueError, match="inside the report's folder"):
        Link(text="x", path=path)


def test_a_file_name_that_looks_like_a_protocol_is_a_file():
    assert Link(text="x", path="javascript:alert(1)").href == "./javascript%3Aalert%281%29"


def test_a_report_is_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "report.html"
    report = full_report(tmp_path)
    report.write(path)
    assert path.read_text("utf-8") == report.html()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(UserError, match="cannot be written"):
        report.write(path.parent)
    assert path.read_text("utf-8") == report.html()


def test_what_is_not_a_picture_or_a_table_is_refused(tmp_path):
    report = Report("x")
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        report.figure(broken, "x")
    with pytest.raises(ValueError, match="picture is float64"):
        report.figure(np.zeros((3, 3)), "x")
    with pytest.raises(ValueError, match="a row has 1 cells: expected 2"):
        report.table(["a", "b"], [["x"]], caption="x")
    with pytest.raises(ValueError, match="'c'"):
        report.table(["a", "b"], [], caption="x", best={"c": "highest"})
    page = Page(report.html())
    assert not page.all("figure")
    assert not page.all("table")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_renders_and_fits_a_telephone(tmp_path):
    """A page in a frame 400 pixels wide, measured by the page around it: the report itself allows no script."""
    full_report(tmp_path, name="a_long_file_name_" * 12).write(tmp_path / "report.html")
    (tmp_path / "around.html").write_text("""<iframe src="report.html" width="400" height="800"></iframe><output></output><script>
        onload = () => {
            const page = document.querySelector("iframe").contentDocument, view = page.defaultView;
            document.querySelector("output").textContent =
                "width " + page.documentElement.scrollWidth + " of " + view.innerWidth +
                ", pictures " + [...page.images].filter(image => image.naturalWidth > 0).length +
                ", facts " + view.getComputedStyle(page.querySelector(".facts")).display;
        }</script>""")
    handler = partial(SilentHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        printed = chromium(tmp_path, "--dump-dom", "--window-size=1000,900", f"{address}/around.html")
        chromium(tmp_path, f"--screenshot={tmp_path / 'wide.png'}", "--window-size=1200,900", f"{address}/report.html")
        server.shutdown()
    measured = re.search(r"<output>(.*?)</output>", printed)[1]
    width, frame = map(int, re.search(r"width (\d+) of (\d+)", measured).groups())
    assert width <= frame <= 400
    assert "pictures 4, facts grid" in measured  # pictures decode and the style passes the page's own policy
    assert np.asarray(Image.open(tmp_path / "wide.png").convert("L")).std() > 10


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def chromium(folder, *arguments):
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

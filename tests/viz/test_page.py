"""The report page: what is in it, that nothing is fetched, and that a browser shows it without overflow."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from resnet_min.errors import UserError
from resnet_min.viz import page

ODD = 'cat <script>alert("1")</script> & "dog"\x1b[31m'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Reader(HTMLParser):
    """Tags with their attributes, texts; every tag that is opened must be closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def write(folder, count=2):
    """A page of `count` networks with odd names."""
    pictures = {}
    for what in ("confusion", "worst", "comparison", "odd"):
        pictures[what] = folder / f"{what}.png"
        Image.new("RGB", (1700, 500), (200, 30, 30)).save(pictures[what])
    rows = [["class", "images"], [ODD, "5"]]
    networks = [
        page.Network(
            f"{ODD} {number}", {"recipe": "none", "source": "x" * 300},
            {what: pictures[what] for what in ("confusion", "worst", "odd")}, {"Figures": rows},
        )
        for number in range(count)
    ]  # fmt: skip
    wide = ["network", *(f"figure {number}" for number in range(30))]
    page.write(folder / "page.html", f"{ODD} and more", networks, {"comparison": pictures["comparison"]}, [wide, wide])
    return folder / "page.html"


@pytest.mark.parametrize("count", [1, 2])
def test_a_page_is_whole_by_itself_and_names_are_only_text(tmp_path, count):
    text = write(tmp_path, count).read_text()
    read = Reader(text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in read.tags} and "http" not in text
    sources = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    assert len(sources) == 3 * count + 1
    for source in sources:
        kind, data = source.split(";base64,")
        assert kind == "data:image/png" and Image.open(io.BytesIO(base64.b64decode(data))).size == (1700, 500)
    said = "".join(read.texts)
    assert 'cat <script>alert("1")</script> & "dog"\\x1b[31m' in said and "\x1b" not in text
    headings = re.findall(r'<h2 id="([^"]+)">', text)
    assert headings == ["summary", "results", "what-it-gets-wrong", "more"]
    assert [attributes["href"] for tag, attributes in read.tags if tag == "a"] == [f"#{name}" for name in headings]
    assert (f"Figures: {ODD[:5]}" in said) == (count > 1)  # whose figures they are
    tags = [tag for tag, _ in read.tags]
    assert tags.count("caption") == count and tags.count("h3") == (count if count > 1 else 0)
    assert said.count("x" * 300) == count  # the facts
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    whose = [
        f"cat &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &quot;dog&quot;\\x1b[31m {n}"
        for n in range(count)
    ]
    assert sum(caption.startswith(name) for caption in captions for name in whose) == (3 * count if count > 1 else 0)


def test_a_picture_that_no_page_holds(tmp_path):
    Path(tmp_path, "a.pdf").write_text("")
    with pytest.raises(UserError, match="png and svg, not a.pdf"):
        page.write(tmp_path / "p.html", "t", [], {"comparison": tmp_path / "a.pdf"}, [["network"]])
    assert not (tmp_path / "p.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [500, 1280])  # headless Chromium has no narrower window
def test_a_browser_shows_it_no_wider_than_its_window(tmp_path, width):
    path = write(tmp_path)
    script = "<script>document.title = [document.documentElement.scrollWidth, innerWidth, document.images.length,"
    script += " [...document.images].every(image => image.complete && image.naturalWidth == 1700)].join(' ')</script>"
    path.write_text(path.read_text().replace("</body>", f"{script}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    wide, window, images, whole = re.search("<title>(.*?)</title>", shown)[1].split()
    assert int(wide) <= int(window) and (images, whole) == ("7", "true")

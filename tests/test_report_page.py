"""The report's HTML page: what is in it, and that a real browser shows and sorts it."""

import copy
import html.parser
import re
import shutil
import subprocess

import diffusers
import pytest
from unets import build

import tfq
from tfq import TfqConfig
from tfq.page import charts

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no headless browser: install chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


@pytest.fixture(scope="module")
def reports():
    """One report after loading, without maps or comparison, and one with everything."""
    unet, scheduler = build("attention"), diffusers.DDIMScheduler()
    converted = tfq.convert(
        copy.deepcopy(unet),
        TfqConfig(temporal="select", calibration_samples=1),
        scheduler=scheduler,
        num_inference_steps=3,
    )
    compared = tfq.compare(unet, converted, scheduler, num_inference_steps=3, images=2)
    dynamic = tfq.convert(build("attention"))
    return tfq.report(dynamic), tfq.report(converted, comparison=compared)


@pytest.fixture(scope="module")
def pages(reports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    paths = [folder / "plain.html", folder / "full.html"]
    for report, path in zip(reports, paths, strict=True):
        report.save(path)
    return paths


class Outline(html.parser.HTMLParser):
    """Headings, links out of the page, and whether every element is closed."""

    VOID = ("meta", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.links, self.ids = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[key] for key in ("src", "href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, text):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(text)


def test_sections(pages):
    plain, full = (Outline(path.read_text("utf-8")) for path in pages)
    assert plain.headings == ["Where the multiply-adds run", "Layers"]
    for heading in (
        "Before and after", "Speed on this machine", "Distance to the float trajectory",
        "Relative error of the features that run", "tau = error of the block / error of the cache",
        "Ranges over time", "Layers",
    ):  # fmt: skip
        assert heading in full.headings, heading
    assert plain.open == full.open == []
    assert len(set(full.ids)) == len(full.ids)


def test_page_needs_no_network(pages):
    for path in pages:
        text = path.read_text("utf-8")
        assert all(link.startswith("data:image/png;base64,") for link in Outline(text).links)
        assert not re.search(r"https?:|@import|url\(", text)


def test_figures_are_those_of_the_report(reports, pages):
    _, report = reports
    text, values = pages[1].read_text("utf-8"), report.to_dict()
    compared = values["comparison"]
    assert f"{compared['psnr']:.1f} dB" in text
    assert f"{compared['speedup']['median']:.2f}×" in text
    assert f"{100 * values['native_mac_share']:.2f} %" in text
    assert compared["machine"]["cpu"] in text
    for layer in values["layers"]:
        assert f"<td>{layer['name']}</td>" in text
    # A chart over time in the row of every layer with ranges by timestep.
    by_timestep = [
        x for x in values["layers"] if x["range"] == "timestep" and x["error"] is not None
    ]
    assert 0 < text.count('class="spark"') <= len(by_timestep)


def test_ranges_are_those_that_were_calibrated(reports):
    (name, timesteps, lows, highs), *_ = reports[1]._ranges
    assert name in {layer["name"] for layer in reports[1].to_dict()["layers"]}
    assert len(timesteps) == len(lows) == len(highs) == 3
    assert all(low <= 0 <= high for low, high in zip(lows, highs, strict=True))
    assert any(high > low for low, high in zip(lows, highs, strict=True))
    assert reports[0]._ranges == [], "dynamic"


def test_names_are_escaped(reports):
    values = copy.deepcopy(reports[0].to_dict())
    values["layers"][0]["reason"] = "<script>alert(1)</script> & more"
    page = tfq.page.render(values)
    assert (
        "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    )


def test_charts():
    assert charts._ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts._ticks(-0.3, 0.31)[0] == pytest.approx(-0.2)
    assert charts._ticks(5, 5), "a constant has a tick, too"
    constant = charts.line([0, 1], [3.0, 3.0], "x", "y")
    assert "nan" not in constant and constant.count("<circle") == 2
    assert charts.line([0], [3.0], "x", "y").count("<circle") == 1, "one step"
    drawn = charts.bars([("a", 1.0, 0.9, 1.1), ("b", 2.0, 1.9, 2.1)], "ms")
    ends = [
        float(x) + float(width)
        for x, width in re.findall(r'<rect [^>]*x="(\d+)" y="\d+" width="([\d.]+)"', drawn)
    ]
    whiskers = re.findall(r'class="whisker" d="M([\d.]+),[\d.]+H([\d.]+)', drawn)
    for end, (low, high) in zip(ends, whiskers, strict=True):
        assert end == pytest.approx((float(low) + float(high)) / 2, abs=0.2)
    assert ends[0] < float(whiskers[1][0]) and ends[1] < charts.WIDTH


def browse(path, script, tmp_path, width=1200, flags=()):
    """The DOM after `script` ran at the end of the page, and what the console said."""
    page = tmp_path / "page.html"
    text = path.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>")
    page.write_text(text, "utf-8")
    done = subprocess.run(
        [BROWSER, *FLAGS, *flags, "--enable-logging=stderr", f"--window-size={width},900",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@needs_browser
def test_browser_sorts_by_number_and_by_name(pages, tmp_path):
    sort = """
      const buttons = [...document.querySelectorAll("th button")];
      const column = (name) => buttons.find((button) => button.textContent === name);
      const read = () => [...document.querySelectorAll("#layers tbody tr")];
      column("MMAC").click();
      const down = read().map((row) => Number(row.cells[6].dataset.v));
      column("MMAC").click();
      const up = read().map((row) => Number(row.cells[6].dataset.v));
      column("layer").click();
      const names = read().map((row) => row.cells[0].textContent);
      document.title = JSON.stringify({ down, up, names });
    """
    import json

    dom = browse(pages[1], sort, tmp_path)
    seen = json.loads(re.search("<title>(.*?)</title>", dom).group(1))
    assert seen["down"] == sorted(seen["down"], reverse=True) and seen["down"][0] > seen["down"][-1]
    assert seen["up"] == sorted(seen["up"])
    assert len(set(seen["names"])) == len(seen["names"]) == len(seen["up"])
    assert seen["names"][0].startswith("conv_in") and seen["names"][-1].startswith("up_blocks")
    assert dom.count('aria-sort="ascending"') == 1


@needs_browser
def test_browser_searches(pages, tmp_path):
    search = """
      const input = document.getElementById("search");
      input.value = "torch conv_";
      input.dispatchEvent(new Event("input"));
      const rows = [...document.querySelectorAll("#layers tbody tr")].filter((row) => !row.hidden);
      document.title = rows.map((row) => row.cells[0].textContent).join() + "; "
        + document.getElementById("shown").textContent;
    """
    dom = browse(pages[0], search, tmp_path)
    assert re.search(r"<title>conv_in,conv_out; 2 of \d+ layers</title>", dom)


@needs_browser
@pytest.mark.parametrize("width", [1300, 500])
def test_browser_shows_everything_without_scrolling_sideways(pages, tmp_path, width):
    measure = """
      const images = [...document.images];
      document.title = [
        document.documentElement.scrollWidth <= window.innerWidth,
        images.length,
        images.every((image) => image.complete && image.naturalWidth > 0),
        [...document.querySelectorAll("svg")].every((svg) => svg.getBoundingClientRect().height > 5),
      ].join();
    """
    ready = f"window.addEventListener('load', () => {{ {measure} }});"
    assert "<title>true,3,true,true</title>" in browse(pages[1], ready, tmp_path, width)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_shows_readable_text_in_both_colour_schemes(pages, tmp_path, scheme):
    """Text stands out from what is behind it by WCAG's ratio of 4.5, and the page follows the scheme."""
    measure = """
      const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
      const luminance = (color) => numbers(color).slice(0, 3).map((value) => value / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const background = (element) => {
        for (let e = element; e; e = e.parentElement) {
          const color = getComputedStyle(e).backgroundColor;
          if ((numbers(color)[3] ?? 1) === 1) return color;
        }
        return "rgb(255, 255, 255)";
      };
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      let least = 21, where = "";
      while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || element.closest("script, style, title")) continue;
        const style = getComputedStyle(element);
        const text = luminance(element.closest("svg") ? style.fill : style.color);
        const back = luminance(background(element));
        const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
        if (ratio < least) { least = ratio; where = element.tagName + " " + element.className; }
      }
      document.title = [
        matchMedia("(prefers-color-scheme: dark)").matches,
        luminance(getComputedStyle(document.body).backgroundColor) < 0.1, least.toFixed(2), where,
      ].join();
    """
    flag = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    dom = browse(pages[1], measure, tmp_path, flags=(flag,))
    matches, is_dark, least, where = re.search("<title>(.*?)</title>", dom).group(1).split(",")
    assert matches == is_dark == str(scheme == "dark").lower()
    assert float(least) >= 4.5, where

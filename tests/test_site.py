"""The site: built once, then every link followed, every lesson and public name looked for, and used in a browser.

The browser's part needs Chromium and its driver (Debian: `apt install chromium chromium-driver`), and skips where they
are not. Screenshots are left in `build/screenshots`.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import typer
from filelock import FileLock

import minipeft
from minipeft.cli import app
from tests.browser import SCREENSHOTS, chromium, needs_browser, until

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DESKTOP, PHONE = (1300, 1000), (390, 844)
LESSONS = sorted((ROOT / "lessons" / "solutions").glob("[0-9][0-9]_*.ipynb"))
GATHERED = ("command_line", "contributing")
"""Pages that a build of the site may have left in docs."""
PAGES = [path for path in sorted(DOCS.glob("*.md")) if path.stem not in GATHERED]
GUIDES = [ROOT / "README.md", *PAGES, *sorted((DOCS / "how_to").glob("*.md"))]

needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_nb", "sphinx_book_theme", "ziamath")),
    reason='the site cannot be built: pip install -e ".[site]"',
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; the processes of one test run build it once."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    html, log = shared / "site", shared / "site.log"
    with FileLock(shared / "site.lock"):
        if not log.exists():
            command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(shared / "doctrees")]
            built = subprocess.run([*command, str(DOCS), str(html)], capture_output=True, text=True, timeout=600)
            log.write_text(
                "" if built.returncode == 0 else f"{built.stdout}{built.stderr}\nended with {built.returncode}"
            )
    if told := log.read_text():
        pytest.fail(f"the site was not built without a warning:\n{told[-3000:]}")
    return html


class Page(HTMLParser):
    """What a page is called, refers to, and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("index", "search", "next", "prev", "author", "canonical"):
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    """All pages of the site."""
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts}


@needs_sphinx
def test_no_link_leads_nowhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{path.name}: {link}")
    assert broken == []


@needs_sphinx
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loaded = {source for page in pages.values() for source in page.loads}
    assert [source for source in loaded if urlsplit(source).scheme not in ("", "data") or source.startswith("//")] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")) == [], sheet


@needs_sphinx
def test_every_lesson_is_a_page_in_order(site: Path) -> None:
    index = (site / "lessons" / "index.html").read_text(encoding="utf-8")
    navigation = index[index.index("<nav") :]
    places = [navigation.index(f'href="{lesson.stem}.html"') for lesson in LESSONS]
    assert places == sorted(places)
    for lesson in LESSONS:
        page = (site / "lessons" / f"{lesson.stem}.html").read_text(encoding="utf-8")
        assert "Show the solution" in page
        assert "Hint 1 of" in page
        assert "<img" in page
        assert "NotImplementedError" in page  # the gap


@needs_sphinx
def test_every_formula_is_drawn(site: Path) -> None:
    for lesson in LESSONS:
        page = (site / "lessons" / f"{lesson.stem}.html").read_text(encoding="utf-8")
        prose = re.sub(r"<pre>.*?</pre>|<code.*?</code>|<[^>]*>", "", page, flags=re.DOTALL)
        assert re.findall(r"\\[a-z]+\{|\$\$", prose) == [], lesson.stem
    assert 'aria-label="\\sqrt{D_h}"' in (site / "lessons" / "02_attention_three_ways.html").read_text(encoding="utf-8")


@needs_sphinx
def test_the_reference_has_every_public_name_and_shapes_as_in_the_source(site: Path, pages: dict[Path, Page]) -> None:
    found = set().union(*(page.ids for path, page in pages.items() if path.parent.name == "api"))
    assert [name for name in minipeft.__all__ if f"minipeft.{name}" not in found] == []
    text = unescape(re.sub(r"<[^>]*>", "", (site / "api" / "model.html").read_text(encoding="utf-8")))
    assert 'Float[Tensor, "B T V"]' in text
    assert 'Bool[Tensor, "#B 1 T S"]' in text


CALL = re.compile(r"^(?:\w+=\S+ )*(?:minipeft|torchrun .*-m minipeft\.cli) (?P<words>.*)$", flags=re.MULTILINE)


def commands_of(guide: Path) -> Iterator[str]:
    """What stands behind `minipeft` in each line of a guide's blocks of commands."""
    blocks = re.findall(r"^```(.*?)\n(.*?)^```", guide.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for block in (text for language, text in blocks if not language):
        for call in CALL.finditer(block.replace("\\\n", " ")):
            if call["words"] != "…":
                yield call["words"].split("   #")[0]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_guides_call_commands_and_options_that_exist(guide: Path) -> None:
    groups: Any = typer.main.get_command(app)
    for line in commands_of(guide):
        words = shlex.split(line)
        command = groups.commands[words.pop(0)]
        if inner := getattr(command, "commands", None):
            command = inner[words.pop(0)]
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}, line


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_guides_name_files_that_exist(guide: Path) -> None:
    text = guide.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|recipes|minipeft|lessons|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


class Window(NamedTuple):
    """A browser's window, and the site in it."""

    chrome: Any
    site: Path

    def open(self, page: str, size: tuple[int, int] = DESKTOP) -> None:
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
        )
        self.chrome.get((self.site / page).as_uri())

    def find(self, selector: str) -> Any:
        """The first visible element, once there is one."""
        return until(
            lambda: next(filter(lambda one: one.is_displayed(), self.all(selector)), None), f"there is no {selector}"
        )

    def all(self, selector: str) -> list[Any]:
        return list(self.chrome.find_elements("css selector", selector))

    def theme(self) -> str:
        """The colours that are shown: light or dark."""
        return str(self.chrome.execute_script("return document.documentElement.dataset.theme"))

    def mode(self) -> str:
        """What was chosen: light, dark or auto."""
        return str(self.chrome.execute_script("return document.documentElement.dataset.mode"))

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        time.sleep(0.3)  # until colours and sidebars have settled
        assert self.chrome.save_screenshot(str(SCREENSHOTS / f"site_{name}.png"))


@pytest.fixture
def window(site: Path) -> Iterator[Window]:
    with chromium("--hide-scrollbars", logs={"performance": "ALL", "browser": "ALL"}) as chrome:
        yield Window(chrome, site)


@needs_sphinx
@needs_browser
def test_one_gets_from_the_first_page_to_a_lesson_and_on(window: Window) -> None:
    window.open("index.html")
    for link in ('a[href="learn.html"]', 'a[href="lessons/index.html"]', 'a[href="01_text_to_tokens.html"]'):
        window.chrome.execute_script("arguments[0].click()", window.find(link))
    assert window.find("h1").text.startswith("Text to tokens")
    window.chrome.execute_script("arguments[0].click()", window.find("a.right-next"))
    assert window.find("h1").text.startswith("Attention, three ways")


@needs_sphinx
@needs_browser
def test_search_finds_the_prefix(window: Window) -> None:
    from selenium.webdriver import Keys

    window.open("index.html")
    window.find("button.search-button-field, button.search-button").click()
    window.find('input[type="search"]').send_keys("prefix", Keys.ENTER)

    def found() -> bool:  # results come one by one
        return any("Prefix tuning" in result.text for result in window.all("#search-results li a"))

    assert until(found, "search did not find the lesson")
    window.screenshot("search")


@needs_sphinx
@needs_browser
def test_a_lesson_shows_its_figures_and_keeps_its_solution_until_asked(window: Window) -> None:
    window.open("lessons/09_prefix_tuning.html")
    widths = "return [...document.querySelectorAll('.cell_output img')].map(image => image.naturalWidth)"
    assert len(window.chrome.execute_script(widths)) >= 3
    assert min(window.chrome.execute_script(widths)) > 0
    solution = window.all("details.hide")[0]
    code = solution.find_element("css selector", "pre")
    assert not code.is_displayed()
    assert not window.all("details.sd-dropdown .sd-summary-content")[0].is_displayed()
    summary = solution.find_element("css selector", "summary")
    assert summary.text.strip() == "Show the solution"
    window.chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
    window.screenshot("solution_folded")
    summary.click()
    until(code.is_displayed, "there is no solution to be seen")
    assert "def prefix_attention" in code.text
    window.screenshot("solution")
    window.open("lessons/09_prefix_tuning.html", PHONE)
    figure = window.all(".cell_output img")[0]
    window.chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    assert figure.size["width"] > PHONE[0]  # so that its labels can be read: a finger moves it
    window.screenshot("figure_phone")


@needs_sphinx
@needs_browser
def test_light_and_dark(window: Window) -> None:
    window.open("lessons/02_attention_three_ways.html")
    backgrounds = []
    for mode in ("light", "dark"):
        while window.theme() != mode or window.mode() != mode:
            before = window.mode()
            window.find("button.theme-switch-button").click()  # a menu, or in older themes a step to the next mode
            if choice := window.all(f"button.dropdown-item[data-mode={mode}]"):
                choice[0].click()
            until(lambda before=before: window.mode() != before, "there is no change of colours")
        backgrounds.append(window.chrome.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert backgrounds[0] != backgrounds[1]
    window.chrome.refresh()
    assert window.theme() == "dark"  # and remembered


@needs_sphinx
@needs_browser
def test_every_page_fits_a_phone(window: Window, pages: dict[Path, Page]) -> None:
    too_wide = {}
    for path in sorted(path for path in pages if "_modules" not in path.parts):
        window.open(str(path.relative_to(window.site)), PHONE)
        wide = window.chrome.execute_script("return document.documentElement.scrollWidth")
        if wide > PHONE[0]:
            too_wide[path.name] = wide
    assert len(pages) > 40
    assert too_wide == {}


@needs_sphinx
@needs_browser
@pytest.mark.parametrize(
    "page", ["index", "lessons/09_prefix_tuning", "how_to/your_data", "api/model", "methods", "speed", "command_line"]
)
def test_pages_fit_a_desk_and_a_phone_and_ask_nobody(window: Window, page: str) -> None:
    name = page.replace("/", "_")
    for size, where in ((DESKTOP, "desk"), (PHONE, "phone")):
        for theme in ("light", "dark"):
            window.chrome.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            )
            window.open(f"{page}.html", size)
            until(lambda theme=theme: window.theme() == theme, f"{page} does not turn {theme}")
            wide = window.chrome.execute_script("return document.documentElement.scrollWidth")
            assert wide <= size[0], f"{page} is {wide} wide on a screen of {size[0]}"
            window.screenshot(f"{name}_{where}_{theme}")
    asked = re.findall(r'"url":"(\w+)://', "".join(entry["message"] for entry in window.chrome.get_log("performance")))
    assert "file" in asked
    assert set(asked) <= {"file", "data", "chrome"}
    errors = [entry["message"] for entry in window.chrome.get_log("browser") if entry["level"] == "SEVERE"]
    # The theme for Python 3.10 loads its font of icons a second time in a way that files do not allow.
    assert [error for error in errors if "webfonts" not in error] == []

"""A learner's hour, in a real browser: JupyterLab opens a lesson, its check is red, then green; a control is moved.

Needs Chromium and its driver (Debian: `apt install chromium chromium-driver`), and skips where they are not.
Screenshots are left in `build/screenshots`.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minipeft.course.notebooks import for_learners, read_lessons, solved, tags, text_of
from tests.browser import SCREENSHOTS, chromium, needs_browser, until

ROOT = Path(__file__).parents[2]
_until = partial(until, seconds=120)
NOT_RUN = ("", "[ ]:", "[*]:")
"""What stands before a cell that has not run to its end; JupyterLab may draw a cell anew, so it is looked up again."""

pytestmark = [needs_browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that shows the learner's notebooks, and nothing of this machine's own settings."""
    home = tmp_path_factory.mktemp("lab")
    (home / "lessons").mkdir()
    for lesson in read_lessons(ROOT / "lessons" / "src"):
        (home / "lessons" / f"{lesson.name}.ipynb").write_text(text_of(for_learners(lesson)), encoding="utf-8")
    for extension, name, settings in (
        ("notebook", "tracker", {"windowingMode": "none"}),  # all cells are there at once
        ("apputils", "notification", {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}),
    ):
        folder = home / ".settings" / "@jupyterlab" / f"{extension}-extension"
        folder.mkdir(parents=True)
        (folder / f"{name}.jupyterlab-settings").write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "MINIPEFT_LESSONS_STILL"} | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / ".settings"),
        "JUPYTER_CONFIG_DIR": str(home / ".config"),
        "JUPYTER_RUNTIME_DIR": str(home / ".runtime"),
        "MINIPEFT_PROGRESS": str(home / "progress.json"),
        "OMP_NUM_THREADS": "1",
    }
    options = [
        f"--port={port}",
        "--ip=127.0.0.1",
        "--no-browser",
        "--allow-root",
        f"--ServerApp.root_dir={home / 'lessons'}",
    ]
    options.append("--IdentityProvider.token=lesson")
    log = open(home / "jupyter.log", "w")  # noqa: SIM115, open until the server is gone
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *options], stdout=log, stderr=log, env=environment, cwd=home
    )
    address = f"http://127.0.0.1:{port}"
    try:
        log_file = home / "jupyter.log"
        _until(lambda: _answers(f"{address}/api/status?token=lesson"), "JupyterLab does not answer", log=log_file)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium("--window-size=1300,1500") as chrome:
        yield chrome


class Notebook:
    """A notebook in JupyterLab, used with mouse and keyboard."""

    def __init__(self, browser: Any, lab: str, name: str) -> None:
        self.browser = browser
        browser.get(f"{lab}/lab/tree/{name}.ipynb?token=lesson&reset")
        _until(lambda: self._kernel() == "idle", "the notebook's kernel does not start")

    def run_all(self) -> None:
        """The menu: Run, Run All Cells. Then wait until nothing is left to run."""
        _until(self._began_to_run_all, "Run All Cells runs nothing")
        _until(lambda: self._prompt(self.cells()[-1]) not in NOT_RUN, "the last cell was not run")

    def _began_to_run_all(self) -> bool:
        """What is asked while JupyterLab still connects to the kernel is lost, so one looks, and asks again."""
        from selenium.common.exceptions import ElementClickInterceptedException
        from selenium.webdriver import ActionChains, Keys

        try:
            self._click("//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']")
            self._click("//div[contains(@class, 'lm-Menu-itemLabel') and text()='Run All Cells']")
        except ElementClickInterceptedException:  # a menu that is still open from before
            ActionChains(self.browser).send_keys(Keys.ESCAPE).perform()
            return False
        time.sleep(2)
        return self._prompt(self.cells()[0]) != "[ ]:"

    def cells(self) -> list[Any]:
        """The code cells."""
        return self.browser.find_elements("css selector", ".jp-CodeCell")

    def cell(self, text: str) -> Any:
        """The code cell that holds this text, as it is drawn now."""
        return next(cell for cell in self.cells() if text in self._source(cell))

    def paste(self, where: str, text: str) -> None:
        """Replace all that stands in the cell that holds `where`, as by Ctrl-A and Ctrl-V."""
        from selenium.webdriver import ActionChains, Keys

        cell = self.cell(where)
        editor = cell.find_element("css selector", ".cm-content")
        self._into_view(cell)
        editor.click()
        ActionChains(self.browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
        self.browser.execute_script(
            "const data = new DataTransfer(); data.setData('text/plain', arguments[1]);"
            "arguments[0].dispatchEvent(new ClipboardEvent('paste',"
            "{clipboardData: data, bubbles: true, cancelable: true}));",
            editor,
            text,
        )

    def run(self, where: str) -> None:
        """Click into the cell that holds `where`, press Shift and Enter, wait until it has run."""
        from selenium.webdriver import ActionChains, Keys

        cell = self.cell(where)
        before = self._prompt(cell)
        self._into_view(cell)
        cell.find_element("css selector", ".cm-content").click()
        ActionChains(self.browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        _until(lambda: self._prompt(self.cell(where)) not in (before, *NOT_RUN), "the cell was not run")

    def output(self, where: str) -> str:
        """The text below the cell that holds `where`."""
        return str(self.cell(where).find_element("css selector", ".jp-OutputArea").text)

    def colour(self, where: str) -> str:
        """The colour of the first line below that cell, as the browser shows it: "rgba(red, green, blue, 1)"."""
        line = self.cell(where).find_element("css selector", ".jp-OutputArea div[style*='color']")
        return str(line.value_of_css_property("color"))

    def screenshot(self, where: str, name: str) -> None:
        """Leave a picture of the window with that cell in its middle."""
        self._into_view(self.cell(where))
        time.sleep(0.5)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        assert self.browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def _kernel(self) -> str | None:
        found = self.browser.find_elements("css selector", ".jp-NotebookPanel .jp-Notebook-ExecutionIndicator")
        return found[0].get_attribute("data-status") if found else None

    def _prompt(self, cell: Any) -> str:
        return str(cell.find_element("css selector", ".jp-InputPrompt").text)

    def _source(self, cell: Any) -> str:
        lines = cell.find_elements("css selector", ".cm-line")
        return "\n".join(str(line.get_attribute("textContent")) for line in lines)

    def _into_view(self, element: Any) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'});", element)

    def _click(self, path: str) -> None:
        _until(lambda: self.browser.find_elements("xpath", path), f"there is nothing to click: {path}")
        self.browser.find_element("xpath", path).click()


def test_the_check_is_red_on_the_stub_and_green_once_the_solution_is_pasted(lab: str, browser: Any) -> None:
    (lesson,) = (one for one in read_lessons(ROOT / "lessons" / "src") if one.number == "02")
    (solution,) = (cell.source for cell in solved(lesson).cells if "exercise" in tags(cell))
    notebook = Notebook(browser, lab, lesson.name)
    notebook.run_all()
    check = 'check("02", causal_mask)'
    assert "✘ Exercise 02: causal_mask is still empty" in notebook.output(check)
    assert notebook.colour(check) == "rgba(178, 24, 43, 1)"
    notebook.screenshot(check, "lesson_02_stub")

    notebook.paste("def causal_mask", solution)
    notebook.run("def causal_mask")
    notebook.run(check)
    assert notebook.output(check) == "✔ Exercise 02: right."
    assert notebook.colour(check) == "rgba(27, 120, 55, 1)"
    notebook.screenshot(check, "lesson_02_solved")


def test_a_control_can_be_moved(lab: str, browser: Any) -> None:
    """The temperature of lesson 05, to its lowest: what is written below changes."""
    from selenium.webdriver import ActionChains, Keys

    notebook = Notebook(browser, lab, "05_writing_text")
    notebook.run_all()
    control = "explore("
    _until(lambda: "Once upon a time" in notebook.output(control), "the control shows no text")
    before = notebook.output(control)
    assert "temperature" in before
    cell = notebook.cell(control)
    notebook._into_view(cell)
    ActionChains(browser).click(cell.find_element("css selector", ".noUi-handle")).send_keys(Keys.HOME).perform()
    _until(lambda: notebook.output(control) not in ("", before), "moving the control changed nothing")
    _until(lambda: "Once upon a time" in notebook.output(control), "the control shows no text any more")
    notebook.screenshot(control, "lesson_05_control")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

"""Chromium, which tests drive (Debian: `apt install chromium chromium-driver`), and waiting for what it shows."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser: install chromium and chromium-driver"
)


@contextmanager
def chromium(*arguments: str, logs: dict[str, str] | None = None) -> Iterator[Any]:
    """Its driver, without a window; `logs`: what is to be logged, and from which level on."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    if logs is not None:
        options.set_capability("goog:loggingPrefs", logs)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield chrome
    finally:
        chrome.quit()


def until(holds: Callable[[], Any], otherwise: str, seconds: float = 180, log: Path | None = None) -> Any:
    """What `holds` gives, once it gives something; after so many seconds fail with `otherwise`, and the log's end."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := holds():
                return found
        except StaleElementReferenceException:
            pass
        time.sleep(0.1)
    pytest.fail(otherwise + ("" if log is None else f":\n{log.read_text(encoding='utf-8')[-2000:]}"))

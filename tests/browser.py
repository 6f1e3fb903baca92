"""A page in a real browser, for tests of what it looks like."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def opened(page: Path, width: int = 1280) -> Iterator[Any]:
    """The page in headless Chromium, of this width in pixels; skips the test where there is none outside of CI."""
    if not (BROWSER and DRIVER):
        assert os.environ.get("CI") != "true", "CI has to install chromium and chromium-driver"
        pytest.skip("no page was opened in a browser: needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.set_window_size(width, 900)
        browser.get(page.as_uri())
        yield browser
    finally:
        browser.quit()

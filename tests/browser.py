"""Debian's Chromium, for tests of pages in a real browser."""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright; skips the test where none is installed."""
    if CHROMIUM is None or importlib.util.find_spec('playwright') is None:
        pytest.skip('needs Chromium (apt-get install chromium) and playwright, see .ci/run')
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, place: Path | str, **options) -> Iterator[Any]:
    """A page; fails if it prints an error or asks for anything beyond its own file or server.

    Args:
      place: the file, or the address of the server.
      options: of the browser's context, such as color_scheme='dark'.
    """
    context = browser.new_context(**{'viewport': {'width': 1280, 'height': 900}} | options)
    page = context.new_page()
    errors, requests = [], []
    page.on('console', lambda message: message.type == 'error' and errors.append(message.text))
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('request', lambda request: requests.append(request.url))
    address = place.as_uri() if isinstance(place, Path) else place
    page.goto(address)
    yield page
    context.close()
    assert not errors, errors
    elsewhere = [url for url in requests if not url.startswith(('data:', 'blob:', address))]
    assert not elsewhere, elsewhere

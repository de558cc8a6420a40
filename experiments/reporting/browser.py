"""A real browser for a report: its tests, and its picture for the documents.

Needs Chromium and Playwright for Python (pip install playwright), which a
report does not.
"""

import contextlib
import importlib.util
import pathlib
import shutil
from collections.abc import Iterator

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
_QUIET = (  # nothing that reaches for the network by itself
  '--disable-gpu',
  '--disable-quic',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--no-first-run',
  '--no-sandbox',  # for root; the page is our own
)


def missing() -> str:
  """What is not installed; '' where all is."""
  if importlib.util.find_spec('playwright') is None:
    return 'needs Playwright: pip install playwright'
  if _executable() is None:
    return f'needs a browser: {", ".join(BROWSERS)} in the path'
  return ''


def _executable() -> str | None:
  return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def opened(
  *, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator:
  """A page of a headless browser with a profile of its own.

  Args:
    width: of the window, in pixels.
    height: of the window.
    dark: whether it asks for dark pages.

  Yields:
    Playwright's `Page`, nothing loaded.
  """
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=_executable(), args=list(_QUIET)
    )
    try:
      yield browser.new_page(
        viewport={'width': width, 'height': height},
        color_scheme='dark' if dark else 'light',
      )
    finally:
      browser.close()


def address(path: str) -> str:
  """Of a file."""
  return pathlib.Path(path).resolve().as_uri()


def screenshot(
  report: str, picture: str, *, section: str = '', event: int = -1, **window
):
  """Takes a picture of what a window shows of a report.

  Args:
    report: report.html.
    picture: the PNG file.
    section: that is scrolled to: 'results', 'timelines' ...
    event: of the first timeline, that is pointed at.
    **window: see `opened`.
  """
  with opened(**window) as page:
    page.goto(address(report))
    if section:
      page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
    if event >= 0:
      page.locator('.timeline').first.locator('rect').nth(event).hover()
    page.screenshot(path=picture)

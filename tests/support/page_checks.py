"""Checks of every page in a browser: nothing is cut off, and no text is a programming mistake."""

from __future__ import annotations

import re
from typing import Final

from playwright.sync_api import Page

WIDTHS: Final = (1200, 400)

MISTAKES: Final = re.compile(
    r"<built-in|<function|<bound method|object at 0x|\bNone\b(?! of )|\bnan\b|\bNaN\b|\binf\b"
    r"|\[object Object\]|\bundefined\b(?! [a-z])|\{'|: \{\}",
)
"""What stands in a page where a template took a method, a null or an object for a text."""

_CUT_OFF: Final = """
(scrolling) => {
  const cut = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) cut.push(`page: ${root.scrollWidth}`);
  for (const element of document.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    const inSvg = element.closest("svg");
    if (!inSvg && !scrolling && ["auto", "scroll", "hidden", "clip"].includes(style.overflowX)
        && element.clientWidth && element.scrollWidth > element.clientWidth + 1)
      cut.push(`${element.tagName} of ${element.clientWidth}: ${element.scrollWidth}`);
    if (inSvg && element.tagName === "text" && element.textContent.trim()) {
      const [box, frame] = [element.getBoundingClientRect(), inSvg.getBoundingClientRect()];
      if (box.left < frame.left - 1 || box.right > frame.right + 1
          || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        cut.push(`text of a plot: ${element.textContent}`);
    }
  }
  return cut;
}
"""


def assert_whole(page: Page, *, scrolling: bool = False) -> None:
    """Assert that nothing of a page is cut off.

    Args:
        page: Loaded.
        scrolling: Whether parts may scroll sideways; the page itself may not.
    """
    cut = page.evaluate(_CUT_OFF, scrolling)
    assert not cut, cut


def assert_words(page: Page) -> None:
    """Assert that no shown text is a programming mistake."""
    shown = page.evaluate("document.body.innerText")
    shown += page.evaluate(
        "[...document.querySelectorAll('svg text')].map((text) => text.textContent).join('\\n')"
    )
    assert shown.strip()
    assert not MISTAKES.search(shown), MISTAKES.findall(shown)

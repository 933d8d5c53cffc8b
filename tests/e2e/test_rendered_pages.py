"""What people read, in a real Chromium: nothing is cut off, and no text is a programming mistake.

The service's page has tests of its own (test_page.py), which use the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import REPORT_HTML, Workspace
from reki_ray.evaluation import plots
from reki_ray.stages import report as report_stage
from reki_ray.tuning.sweep import Point, SideFigures
from tests.conftest import TinyConfig
from tests.support import report_workspace
from tests.support.page_checks import WIDTHS, assert_whole, assert_words
from tests.support.report_workspace import arm, control

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = [*sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("*.md")]
BACKBONES: Final = ("din", "dien", "dcnv1", "dcnv2", "deepfm", "xdeepfm", "autoint", "fibinet")
ARMS: Final = ("base", "fair_base", "title_text", "history_text", "reki_c", "reki_c_shuffled")


def small(workspace: Workspace) -> None:
    report_workspace.fill(workspace)


def as_the_demo(workspace: Workspace) -> None:
    arms = [arm(name, 0.69 + 0.004 * place, 0.61) for place, name in enumerate(ARMS)]
    controls = [control(name, -0.0123, 0.0456) for name in ("reki_c_shuffled", "title_text")]
    report_workspace.fill(workspace, arms, controls)
    report_workspace.add_rerankers(workspace)


def of_eight_backbones(workspace: Workspace) -> None:
    arms = [arm(name, 0.71, 0.59, backbone) for backbone in BACKBONES for name in ARMS]
    controls = [control("reki_c_shuffled", 0.01, 0.02, backbone) for backbone in BACKBONES]
    report_workspace.fill(workspace, arms, controls)


def undefined(workspace: Workspace) -> None:
    arms = [arm("fair_base", 0.7, None), arm("reki_c", None, None)]
    report_workspace.fill(workspace, arms, [])


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    context = browser.new_context()

    def opened(address: str, *, width: int, scheme: Any = "light") -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        return page

    yield opened
    context.close()


@pytest.mark.parametrize("fill", [small, as_the_demo, of_eight_backbones, undefined])
def test_the_report_is_whole_and_says_nothing_strange(
    open_page: Callable[..., Page],
    fill: Callable[[Workspace], None],
    tiny_config: TinyConfig,
    workspace: Workspace,
    reporter: Reporter,
    tmp_path: Path,
) -> None:
    fill(workspace)
    config: RekiConfig = tiny_config()
    report_stage.run(config, workspace, reporter)
    address = workspace.local_path(REPORT_HTML).as_uri()
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            page = open_page(address, width=width, scheme=scheme)
            page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
            assert_whole(page)
            assert_words(page)
            if fill is as_the_demo:  # it has all parts
                found = Axe().run(page)
                assert found.violations_count == 0, found.generate_report()


def test_the_plot_of_a_sweep_is_whole(open_page: Callable[..., Page], tmp_path: Path) -> None:
    side = SideFigures(
        ids=943,
        clusters=60,
        calls_saved=0.94,
        mean_similarity=0.91,
        smallest=4,
        median=9,
        largest=80,
    )
    settings = [f"cluster.users.min_cluster_size={size}" for size in (4, 8, 16)]
    points = [
        Point(
            changes={},
            workspace="ws",
            users=side.model_copy(update={"clusters": 90 - 20 * place}),
            items=side,
            arms=[arm("fair_base", 0.7, 0.6), arm("reki_c", None if place else 0.71, None)],
        )
        for place in range(len(settings))
    ]
    file = tmp_path / "sweep.svg"
    file.write_text(plots.sweep(list(zip(settings, points, strict=True))), encoding="utf-8")
    page = open_page(file.as_uri(), width=1200)
    page.screenshot(path=tmp_path / "sweep.png")
    assert_whole(page)
    shown = page.evaluate("document.documentElement.textContent")
    assert all(setting in shown for setting in settings)
    assert not re.search(r"None|\bnan\b", shown)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_documentation_is_whole(
    open_page: Callable[..., Page], file: Path, tmp_path: Path
) -> None:
    # The site's theme scrolls wide code and tables, and breaks long words; so does this.
    style = (
        "body { font: 16px/1.5 sans-serif; overflow-wrap: anywhere; }"
        "pre, table { display: block; overflow-x: auto; }"
    )
    html = MarkdownIt("commonmark").enable("table").render(file.read_text(encoding="utf-8"))
    target = tmp_path / "page.html"
    target.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{file.name}</title>"
        f"<meta name=viewport content='width=device-width'><style>{style}</style>{html}",
        encoding="utf-8",
    )
    for width in WIDTHS:
        page = open_page(target.as_uri(), width=width)
        assert_whole(page, scrolling=True)
        if file.name != "python.md":  # signatures name None
            assert_words(page)
        assert page.locator("p", has_text=re.compile(r"^\|.*\|")).count() == 0, "a broken table"


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_row_of_a_table_has_the_cells_of_its_heading(file: Path) -> None:
    bars = None
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("|"):
            bars = None
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        bars = bars or found
        assert found == bars, f"{file.name}:{number}: {line}"

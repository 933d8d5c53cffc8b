"""What the documentation says is what the code does."""

from __future__ import annotations

import itertools
import re
import runpy
import unicodedata
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from markdown_it import MarkdownIt

from reki_ray.cli.main import BENCHMARKS

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(set(DOCS.rglob("*.md")) - {DOCS / "plan.md"})
DOCUMENTS: Final = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
GENERATED: Final = ("cli", "config", "http", "metrics", "python", "workspace")
MARKDOWN: Final = MarkdownIt("commonmark").enable("table")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_reference_pages_are_current(name: str) -> None:
    page = runpy.run_path(str(DOCS / f"render_{name}.py"))["render"]()
    committed = (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")
    assert committed == page, f"run: python docs/render_{name}.py"


def test_the_header_of_the_benchmarks_page_is_current() -> None:
    header = runpy.run_path(str(DOCS / "render_benchmarks.py"))["HEADER"]
    assert (DOCS / "results" / "benchmarks.md").read_text(encoding="utf-8").startswith(header)


def test_make_bench_runs_every_benchmark() -> None:
    called = re.findall(r"reki bench (\w+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert sorted(called) == sorted(BENCHMARKS)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_relative_links_lead_to_a_file_and_a_heading(file: Path) -> None:
    for link in links(file):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{file.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{file.name}: {link}"


def test_every_page_is_in_the_navigation_once() -> None:
    # The site's own tags (!!python/name) are not for the safe loader.
    text = re.sub(r"!!python/name:\S+", "x", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = sorted(leaves(yaml.safe_load(text)["nav"]))
    assert named == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_decision_is_in_the_index_of_decisions() -> None:
    folder = DOCS / "adr"
    pages = [page for page in folder.glob("*.md") if page.name != "index.md"]
    listed = {link for link in links(folder / "index.md") if re.match(r"\d{4}-", link)}
    assert listed == {page.name for page in pages}
    numbers = sorted(int(page.name[:4]) for page in pages)
    assert numbers == list(range(1, len(numbers) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for heading in ("Context", "Decision", "Rejected", "Measurement", "Consequences"):
            assert f"\n## {heading}\n" in text, page.name
        assert re.search(r"^\*\*Status:\*\* .*\d{4}-\d{2}-\d{2}", text, re.MULTILINE), page.name


@pytest.mark.parametrize("package", ["reki_ray", "actors", "deployments", "configs", "benchmarks"])
def test_pages_that_code_and_configurations_name_exist(package: str) -> None:
    for file in (ROOT / package).rglob("*"):
        if file.suffix in {".py", ".yaml"}:
            for page in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
                assert (ROOT / page).exists(), f"{file}: {page}"


def test_the_architecture_page_names_modules_that_exist() -> None:
    text = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(?:reki_ray/)?((?!extract/)[a-z_]+/[a-z_]+)`", text):  # not tables
        places = [folder / name for folder in (ROOT / "reki_ray", ROOT, ROOT / "deployments")]
        assert any(p.exists() or p.with_suffix(".py").exists() for p in places), name


def links(file: Path) -> list[str]:
    """Targets of all links of a page."""
    blocks = MARKDOWN.parse(file.read_text(encoding="utf-8"))
    return [
        str(token.attrs["href"])
        for block in blocks
        for token in block.children or ()
        if token.type == "link_open"
    ]


def anchors(file: Path) -> set[str]:
    """Anchors of a page's headings, as the site and GitHub make them."""
    blocks = MARKDOWN.parse(file.read_text(encoding="utf-8"))
    return {
        slug("".join(part.content for part in following.children or ()))
        for heading, following in itertools.pairwise(blocks)
        if heading.type == "heading_open"
    }


def slug(heading: str) -> str:
    """Anchor of a heading."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def leaves(nav: Any) -> list[str]:
    """Pages of a navigation, whatever their depth."""
    if isinstance(nav, str):
        return [nav]
    nested = nav.values() if isinstance(nav, dict) else nav
    return [page for part in nested for page in leaves(part)]

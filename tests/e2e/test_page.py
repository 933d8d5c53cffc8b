"""The page in a real Chromium: clicked through, by mouse and by keyboard, and checked by axe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from reki_ray.config.edge import EdgeSettings
from tests.support import page_server
from tests.support.page_checks import assert_whole, assert_words
from tests.support.page_server import HOSTILE, FakeService

TOKEN: Final = "caller-0123456789abcdef"
ADMIN: Final = "operator-0123456789abcdef"
VARIANTS: Final = {"base": 1, "reki": 3}

Open = Callable[..., Page]


@pytest.fixture
def service() -> FakeService:
    return FakeService(variants=dict(VARIANTS))


@pytest.fixture
def open_page(
    browser: Browser, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens the page of the fake service; afterwards asserts that the browser complained not."""
    monkeypatch.setenv("REKI_TOKEN", TOKEN)
    monkeypatch.setenv("REKI_ADMIN_TOKEN", ADMIN)
    complaints: list[str] = []
    anyone = EdgeSettings(allow_anonymous=True, request_logs=False)
    callers = EdgeSettings(host="0.0.0.0", request_logs=False)
    with (
        page_server.running(page_server.build(service, anyone)) as anonymous,
        page_server.running(page_server.build(service, callers)) as closed,
    ):
        context = browser.new_context(viewport={"width": 1100, "height": 900})

        def opened(*, with_token: bool = False, width: int = 1100) -> Page:
            page = context.new_page()
            page.set_viewport_size({"width": width, "height": 900})
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text))
            page.goto(closed if with_token else anonymous)
            return page

        yield opened
        context.close()
    refused = "Failed to load resource"  # how a browser tells an answer of 4xx and 5xx
    assert [text for text in complaints if refused not in text] == []


def ready(page: Page) -> Page:
    expect(page.get_by_role("status").first).to_have_text("Ready.")
    return page


def recommend(page: Page, user: str) -> None:
    page.get_by_label("User id").fill(user)
    page.get_by_role("button", name="Recommend").click()


def show_versions(page: Page, token: str = ADMIN) -> None:
    page.get_by_label("Operator token").fill(token)
    page.get_by_role("button", name="Show versions").click()


def confirm(page: Page, answer: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=answer, exact=True).click()


def served(page: Page) -> str:
    row = page.locator("#version-rows tr[aria-current=true]")
    return row.get_by_role("rowheader").inner_text()


def test_a_user_of_the_samples_sees_both_lists_side_by_side(open_page: Open) -> None:
    page = ready(open_page())
    page.get_by_label("Sample users").select_option("u1")
    page.get_by_label("Items", exact=True).select_option("5")
    page.get_by_role("button", name="Recommend").click()
    cards = page.locator("#lists article")
    expect(cards).to_have_count(2)
    expect(cards.nth(0).get_by_role("heading")).to_have_text("base: fair_base, without knowledge")
    expect(cards.nth(1).get_by_role("heading")).to_have_text("reki: reki_c, with knowledge")
    for card, version, source in (
        (cards.nth(0), "v1", ""),  # without knowledge nothing comes from somewhere
        (cards.nth(1), "v3", "user cluster · "),
    ):
        expect(card.get_by_role("listitem")).to_have_count(5)
        expect(card).to_contain_text(
            re.compile(rf"store {version} · model [0-9a-f]{{12}} · {source}\d+ ms")
        )
    expect(cards.nth(0).get_by_role("listitem").first).to_contain_text("Film 1")
    expect(cards.nth(0)).to_contain_text("only here")
    expect(cards.nth(0).get_by_role("listitem").nth(3)).to_contain_text("rank 1 there")
    expect(page.locator("#status")).to_have_text("10 recommendations in 2 lists.")
    boxes = [cards.nth(index).bounding_box() for index in range(2)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]


def test_calls_are_told_with_version_and_time(open_page: Open) -> None:
    page = ready(open_page())
    recommend(page, "u1")
    row = page.locator("#calls tr").filter(has_text="recommend, reki")
    expect(row).to_contain_text(re.compile(r"200\s*\d+\.\d\s*v3\s*[0-9a-f]{32}"))


def test_the_served_version_is_compared_with_the_one_that_is_kept_beside_it(
    open_page: Open, service: FakeService
) -> None:
    service.variants, service.compared = {}, 1
    page = ready(open_page())
    page.get_by_label("Items", exact=True).select_option("5")
    recommend(page, "u1")
    cards = page.locator("#lists article")
    expect(cards.get_by_role("heading")).to_have_text(
        ["fair_base: without knowledge", "reki_c: with knowledge"]
    )
    expect(cards.nth(0)).to_contain_text("store v1")
    expect(cards.nth(1)).to_contain_text("store v3")
    expect(page.locator("#compared")).to_have_text(
        "The same user, with fair_base (v1) and reki_c (v3). Callers get v3."
    )
    # Differences of the lists are marked, in words and not by colour alone.
    expect(cards.nth(0).locator("li.only")).to_contain_text(["only here"] * 4)
    expect(cards.nth(0).locator("li.moved")).to_contain_text(["rank 1 there"])
    # The same items, scored by both; the largest gain first.
    scored = page.locator("#scored")
    expect(scored.locator("thead th")).to_have_text(["Item", "fair_base", "reki_c", "Difference"])
    rows = scored.locator("tbody tr")
    expect(rows).to_have_count(9)
    expect(rows.first).to_have_text("Film 10.01000.2550+0.2450")
    expect(rows.last).to_have_text("Film 190.19000.3450+0.1550")
    # The knowledge is that of the version which has some.
    expect(page.locator("#user-text")).to_contain_text("store v3")
    expect(page.locator("#user-text blockquote")).to_have_count(2)
    cards.nth(0).get_by_role("button").first.click()
    expect(page.locator("#item-text")).to_contain_text("written by a-small-model")
    expect(page.locator("#item-text")).to_contain_text("store v3")


def test_a_promotion_meanwhile_is_compared_from_its_other_side(
    open_page: Open, service: FakeService
) -> None:
    service.variants, service.compared = {}, 1
    page = ready(open_page())
    service.promoted.append(1)
    service.compared = 3
    recommend(page, "u1")
    cards = page.locator("#lists article")
    expect(cards.get_by_role("heading")).to_have_text(
        ["fair_base: without knowledge", "reki_c: with knowledge"]
    )
    expect(page.locator("#compared")).to_contain_text("Callers get v1.")
    expect(page.locator("#served")).to_have_text("Served now: v1.")
    expect(page.locator("#user-text")).to_contain_text("store v3")


def test_without_an_experiment_one_list_is_shown_and_says_so(
    open_page: Open, service: FakeService
) -> None:
    service.variants = {}
    page = ready(open_page())
    recommend(page, "somebody new")
    expect(page.locator("#compared")).to_contain_text("There is nothing to compare with")
    expect(page.locator("#compared")).to_contain_text("publish.compare")
    expect(page.locator("#scored")).to_be_hidden()
    expect(page.locator("#lists article")).to_have_count(1)
    expect(page.locator("#lists")).to_contain_text("user fallback")


def test_without_a_retriever_the_best_of_the_sample_is_shown_and_says_so(
    open_page: Open, service: FakeService
) -> None:
    service.retrieves = False
    service.variants = {}
    page = ready(open_page())
    recommend(page, "u1")
    lists = page.locator("#lists")
    expect(lists).to_contain_text("these are the best of 30 sample items")
    expect(lists.get_by_role("listitem")).to_have_count(10)
    expect(lists.get_by_role("listitem").first).to_contain_text("Film 30")


def test_the_knowledge_of_user_and_item_is_shown_as_text(open_page: Open) -> None:
    page = ready(open_page())
    recommend(page, "<b>u3</b>")
    expect(page.locator("#user-title")).to_have_text("User <b>u3</b>")
    user = page.locator("#user-text")
    expect(user.get_by_role("heading")).to_have_text(["Factor: genre", "Factor: director"])
    expect(user).to_contain_text("of cluster u0007, written by a-small-model on 2025-10-09")
    expect(user).to_contain_text("gender")
    expect(user.locator("blockquote").last).to_contain_text(HOSTILE)
    item = page.locator("#lists button").filter(has_text="Film 7").first
    item.click()
    title = page.locator("#item-title")
    expect(title).to_have_text("Film 7 (m7)")
    expect(title).to_be_focused()
    expect(item).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Back to the list").click()
    expect(item).to_be_focused()
    expect(page).to_have_title(re.compile("reki-ray"))
    assert page.locator("img, b, i").count() == 0


def test_a_failure_is_told_as_text(open_page: Open) -> None:
    page = ready(open_page())
    recommend(page, "broken")
    told = page.locator("#problem")
    expect(told).to_have_text("No scorer can be reached; ask again. (scorer_unavailable)")
    assert told.get_attribute("role") == "alert"
    recommend(page, "u1")
    expect(told).to_be_empty()
    expect(page.locator("#lists article")).to_have_count(2)


def test_an_unknown_user_has_no_knowledge_but_a_list(open_page: Open) -> None:
    page = ready(open_page())
    recommend(page, "nobody")
    expect(page.locator("#user-text")).to_contain_text("The store knows no such id")
    expect(page.locator("#lists li")).to_have_count(20)


def test_a_service_with_a_token_asks_for_it_once(open_page: Open) -> None:
    page = open_page(with_token=True)
    expect(page.locator("#problem")).to_contain_text("(token_needed)")
    field = page.get_by_label("Service token")
    expect(field).to_be_focused()
    field.fill(TOKEN)
    recommend(page, "u1")
    expect(page.locator("#lists article")).to_have_count(2)
    expect(page.locator("#problem")).to_be_empty()


def test_an_operator_promotes_and_rolls_back_with_confirmation(
    open_page: Open, service: FakeService
) -> None:
    page = ready(open_page())
    show_versions(page)
    expect(page.locator("#version-rows tr")).to_have_count(3)
    assert served(page) == "v3"
    page.get_by_role("button", name="Promote v2").click()
    expect(page.get_by_role("dialog")).to_contain_text("Promote v2?")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    confirm(page, "Cancel")
    assert service.current == 3
    page.get_by_role("button", name="Promote v2").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert service.current == 3
    page.get_by_role("button", name="Promote v2").click()
    confirm(page, "Promote")
    expect(page.locator("#admin-status")).to_have_text("v2 is promoted and served.")
    assert (served(page), service.current) == ("v2", 2)
    expect(page.locator("#served")).to_have_text("Served now: v2.")
    page.get_by_role("button", name="Roll back").click()
    confirm(page, "Roll back")
    expect(page.locator("#admin-status")).to_have_text("Rolled back to v3 and served.")
    assert (served(page), service.current) == ("v3", 3)


def test_what_an_operator_may_not_is_told(open_page: Open, service: FakeService) -> None:
    page = ready(open_page())
    show_versions(page, "wrong-0123456789abcdef")
    expect(page.locator("#admin-problem")).to_contain_text("(invalid_token)")
    expect(page.locator("#versions")).to_be_hidden()
    show_versions(page)
    expect(page.locator("#admin-problem")).to_be_empty()
    page.get_by_role("button", name="Promote v1").click()
    confirm(page, "Promote")
    expect(page.locator("#admin-problem")).to_contain_text("v1 is damaged")
    assert service.current == 3


def test_tokens_are_stored_nowhere(open_page: Open) -> None:
    page = ready(open_page())
    show_versions(page)
    expect(page.locator("#versions")).to_be_visible()
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert ADMIN not in kept
    page.reload()
    expect(page.get_by_label("Operator token")).to_have_value("")


def test_the_keyboard_alone_is_enough(open_page: Open) -> None:
    page = ready(open_page())
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert order[0] == "skip"
    assert order[2:] == ["sample", "user", "count", "recommend", ""]  # and the summary
    page.get_by_label("User id").focus()
    page.keyboard.type("u1")
    page.keyboard.press("Enter")
    expect(page.locator("#lists li")).to_have_count(20)
    page.locator("#lists button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#item-title")).to_be_focused()
    page.get_by_label("Operator token").focus()
    page.keyboard.type(ADMIN)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Promote v2").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#admin-status")).to_have_text("v2 is promoted and served.")
    expect(page.locator("#rollback")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400, 360])
def test_axe_finds_nothing_and_nothing_is_cut_off(
    open_page: Open, service: FakeService, tmp_path: Path, scheme: str, width: int
) -> None:
    service.variants, service.compared = {}, 1
    page = open_page(width=width)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    recommend(ready(page), "u1")
    page.locator("#lists button").nth(3).click()
    expect(page.locator("#item-title")).to_be_focused()
    expect(page.locator("#scored")).to_be_visible()
    page.screenshot(path=tmp_path / "compared.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert_whole(page, scrolling=True)
    assert_words(page)
    scored = page.locator(".scored")
    assert scored.evaluate("(table) => table.scrollWidth <= table.parentElement.clientWidth")
    recommend(page, "broken")
    expect(page.locator("#problem")).not_to_be_empty()
    show_versions(page)
    expect(page.locator("#versions")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    page.get_by_role("button", name="Roll back").click()
    found = Axe().run(page, context="dialog")
    assert found.violations_count == 0, found.generate_report()

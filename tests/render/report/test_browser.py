"""The report in a real browser: it draws without errors; sorting, hovering, keys and printing work."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import ignore_patterns
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.checkout import ROOT
from support.installing import require
from support.made_attribution import additive, made
from support.made_report import traced, trial

from qlora_repeat.render.report.page import report_html
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.published import read_published
from qlora_repeat.results.trial_result import Response

HOSTILE = "<script>window.hacked = true</script><img src=x onerror='window.hacked = true'>"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require(["chromium"], ["chromium"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of two arms, with hostile texts, a trace, an experiment and the paper's numbers."""
    results = [
        trial(
            number,
            "abcd"[number] * 64 if optimizer == "adamw-8bit" else "same" * 16,
            optimizer=optimizer,
            counterpart="llama2-7b",
            model_title=f"Neo {HOSTILE}",
            perplexity=(9.0 + number) * (100 if number == 3 else 1),
            responses=[Response(f"Say {HOSTILE}", 1, 1, f"{HOSTILE} {number}")],
        )
        for optimizer in ("adamw-8bit", "adamw-32bit")
        for number in (1, 2, 3)
    ]
    results[-1] = replace(results[-1], status="failed", adapter_digest=None, perplexity=None)
    path = tmp_path_factory.mktemp("report") / "report.html"
    text = report_html(
        group_arms(results),
        study_name=f"mine {HOSTILE}",
        files=traced({1: [3.0, 2.0, 1.0], 2: [3.0, 2.0, 1.5], 3: [3.0, 2.5, 1.0]}),
        published=group_arms(read_published(Path("paper/published"))),
        experiments=[made(additive)],
    )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """Open the report; fail if the browser prints messages or loads other addresses."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    messages: list[str] = []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    requests: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(f"file://{report}")
    opened.wait_for_function(
        "[...document.querySelectorAll('figure.chart')].every(each => each.querySelector('svg.marks'))"
    )
    yield opened
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    opened.close()


def test_the_libraries_match_the_lock_file(tmp_path: Path) -> None:
    require(["npm"], ["npm"])
    shutil.copytree(
        ROOT / "lockfiles/web", tmp_path / "lockfiles/web", ignore=ignore_patterns("node_modules")
    )
    static = tmp_path / "src/qlora_repeat/render/report/static"
    static.mkdir(parents=True)
    for command in (["npm", "ci", "--silent"], ["npm", "run", "--silent", "build"]):
        done = subprocess.run(command, cwd=tmp_path / "lockfiles/web", capture_output=True, text=True)
        if done.returncode and command[1] == "ci":
            pytest.skip(f"npm cannot install the libraries: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
    for path in static.iterdir():
        there = ROOT / "src/qlora_repeat/render/report/static" / path.name
        assert there.read_bytes() == path.read_bytes(), f"{path.name}: `make web` writes another file"


def points(page: Page, section: str) -> Any:
    return page.locator(f"{section} figure.chart").first.locator('svg [aria-roledescription="point"]')


def test_everything_is_drawn_and_hostile_texts_do_not_run(page: Page) -> None:
    assert page.locator("figure.chart svg.marks").count() >= 5
    assert points(page, "#spread").count() == 5
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in (page.locator("#responses .response").first.text_content() or "")


def test_steps_are_whole_and_titles_are_beside_their_labels(page: Page) -> None:
    axis = page.locator("#losses figure.chart").first.locator(".role-axis", has_text="step")
    assert axis.locator(".role-axis-label text").all_text_contents() == ["1", "2", "3"]
    overlaps = page.evaluate("""[...document.querySelectorAll("figure.chart .role-axis")].some((axis) => {
      const title = axis.querySelector(".role-axis-title text")?.getBoundingClientRect();
      return title && [...axis.querySelectorAll(".role-axis-label text")].some((label) => {
        const box = label.getBoundingClientRect();
        return box.width && box.left < title.right && box.right > title.left && box.top < title.bottom
          && box.bottom > title.top;
      });
    })""")
    assert not overlaps


def test_the_policy_of_the_page_blocks_an_unescaped_script(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    """Put a script in the page; its content security policy must block it."""
    broken = tmp_path / "report.html"
    broken.write_text(report.read_text().replace("<main>", f"<main>{HOSTILE}"))
    page = browser.new_page()
    page.goto(f"file://{broken}")
    page.wait_for_function("document.querySelector('figure.chart svg.marks')")
    assert page.evaluate("window.hacked") is None


def test_a_point_shows_its_values_under_the_pointer(page: Page) -> None:
    points(page, "#spread").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    shown = page.locator("#vg-tooltip-element").inner_text()
    assert "perplexity" in shown and "10" in shown and "bbbbbbbb" in shown


def test_points_can_be_reached_by_keys_and_are_announced(page: Page) -> None:
    figure = page.locator("#spread figure.chart").first
    figure.locator(".drawing").focus()
    read = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End"):
        page.keyboard.press(key)
        read.append(figure.locator("output").text_content())
    assert read[0] == read[2] != read[1]
    assert all("perplexity" in (each or "") for each in read)


def test_trials_can_be_sorted_and_filtered(page: Page) -> None:
    table = page.locator("#again table")

    def trials() -> list[str]:
        return table.locator("tbody tr:visible th").all_inner_texts()

    before = trials()
    heading = table.locator("thead th", has_text="Perplexity")
    heading.click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    numbers = table.locator("tbody tr td:nth-child(3)").all_inner_texts()
    values = [float(each.replace(",", "")) for each in numbers if each != "—"]
    assert values == sorted(values) and trials() != before
    page.locator("#again").get_by_label("Filter").fill("32bit")
    expect(table.locator("tbody tr:visible")).to_have_count(3)
    assert [name.split("/")[1] for name in trials()] == ["adamw-32bit"] * 3


def test_a_command_can_be_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    row = page.locator("#again tbody tr").first
    command = row.locator("td code").last.inner_text()
    assert command.startswith("qlora-repeat verify neox/adamw-8bit/1 --study")
    row.locator("button.copy").click()
    row.get_by_text("copied").or_(row.get_by_text("selected")).wait_for()


def test_dark_mode_and_printing_are_readable(page: Page) -> None:
    def lightness(what: str) -> float:
        style = "getComputedStyle(document.body)"
        numbers = page.evaluate(f"{style}.{what}.match(/\\d+/g).slice(0, 3).map(Number)")
        return sum(numbers) / 3

    for media, scheme, dark in (
        ("screen", "light", False),
        ("screen", "dark", True),
        ("print", "dark", False),
    ):
        page.emulate_media(media=media, color_scheme=scheme)  # type: ignore[arg-type]
        assert (lightness("backgroundColor") < lightness("color")) == dark, (media, scheme)
        axis = page.locator("#spread svg .role-axis-label text").first
        assert axis.evaluate("(text) => getComputedStyle(text).fill") == page.evaluate(
            "getComputedStyle(document.body).color"
        )
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details:not([open])").count() > 0

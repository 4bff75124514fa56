"""The report's page in a real browser: no errors, no network, figures drawn, hover, themes, phone.

Needs Chromium (`apt-get install chromium`) and playwright, which is part of the extra `dev`.
"""

import json
import os
import re
import shutil

import pytest
from made_up_runs import ARMS, make_run, make_sweep

from robo_razor.core.settings.config import CompareConfig
from robo_razor.report.build import run_compare
from robo_razor.report.charts import figures

CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
TIMEOUT_MS = 120_000  # the page is large, and test machines are busy

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="Chromium is missing: apt-get install chromium, or set CHROMIUM"
    ),
    pytest.mark.slow,
]


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Leave out the figures, which take seconds and are not part of the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_figures", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compare")
    sweep = make_sweep(directory / "sweep")
    run_compare(CompareConfig(runs=(sweep,), out=str(directory / "report")))
    return directory / "report" / "index.html"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: .[dev]")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=TIMEOUT_MS
        )
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Return a function that opens a file and returns (page, what went wrong, what was fetched)."""
    contexts = []

    def open_page(file, **options):
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        errors, fetched = [], []
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(file.as_uri(), timeout=TIMEOUT_MS)
        page.wait_for_selector("html[data-drawn]", timeout=TIMEOUT_MS)
        return page, errors, fetched

    yield open_page
    for context in contexts:
        context.close()


def test_the_page_draws_everything_without_errors_or_network(page_file, show):
    page, errors, fetched = show(page_file)
    assert errors == []
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    charts = page.evaluate("charts.map(chart => chart.id)")
    training = [f"training-{name}" for name in ("new", "prior", "kl", "entropy")]
    assert set(charts) == {"matched", "frontier", "law", "skills", *training}
    for name in charts:
        assert page.locator(f"#{name} .main-svg").count() > 0, name
    points = page.locator("#frontier .scatterlayer .points path.point").count()
    assert points == 18 * 5 + 1  # checkpoints of all runs, and the base once
    heading = page.locator("h1").inner_text()
    assert re.match(r"At \d+% success on PlaceCanInBin, oracle keeps \d+%\s\[\d+,\s\d+\]", heading)


def test_hovering_tells_run_step_and_setting(page_file, show):
    page, errors, _ = show(page_file)
    page.locator("#frontier").scroll_into_view_if_needed()
    box = page.locator("#frontier .scatterlayer .points path.point").nth(3).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#frontier .hoverlayer .hovertext")
    text = page.locator("#frontier .hoverlayer .hovertext").first.text_content()
    assert "seed=" in text
    assert re.search(r"update \d+", text)
    assert re.search(r"new task \d+%", text)
    assert errors == []


def test_controls_switch_levels_predictors_and_axes(page_file, show):
    page, errors, _ = show(page_file)
    for control, chart, pick in (("matched", "matched", 0), ("training", "training-new", 1)):
        title = f"document.getElementById('{chart}').data[0].x[0]"
        before = page.evaluate(title)
        buttons = page.locator(f'[data-group="{control}"] button')
        assert buttons.nth(pick).get_attribute("aria-pressed") == "false"
        buttons.nth(pick).click()
        assert buttons.nth(pick).get_attribute("aria-pressed") == "true"
        assert page.evaluate(title) != before
    menu = page.locator('[data-group="law"] select')
    axis = "document.getElementById('law').layout.xaxis.title.text"
    assert page.evaluate(axis) == "KL(base ‖ tuned), nats per decision"
    menu.select_option(index=1)
    page.wait_for_function(f"{axis} !== 'KL(base ‖ tuned), nats per decision'")
    assert errors == []


def test_the_legend_hides_an_arm_everywhere(page_file, show):
    page, errors, _ = show(page_file)
    arms = page.locator(".legend button")
    assert arms.all_inner_texts() == list(ARMS)
    count = (
        "charts.map(c => document.getElementById(c.id).data.filter(t => t.meta.arm === 0).length)"
    )
    assert all(n > 0 for n in page.evaluate(count))
    arms.first.click()
    assert arms.first.get_attribute("aria-pressed") == "false"
    page.wait_for_function(f"{count}.every(n => n === 0)")
    arms.first.click()
    page.wait_for_function(f"{count}.every(n => n > 0)")
    assert errors == []


def test_the_legend_shows_one_arm_alone_and_brings_it_forward(page_file, show):
    page, errors, _ = show(page_file)
    arms = page.locator(".legend button")
    others = "document.getElementById('frontier').data.filter(t => ![null, 1].includes(t.meta.arm))"
    arms.nth(1).hover()
    page.wait_for_function(f"{others}.every(t => t.opacity < 1)")
    arms.nth(1).dblclick()
    page.wait_for_function(f"{others}.length === 0")
    assert arms.nth(1).get_attribute("aria-pressed") == "true"
    assert arms.first.get_attribute("aria-pressed") == "false"
    arms.nth(1).dblclick()
    page.wait_for_function(f"{others}.length > 0")
    assert errors == []


def test_dark_and_light_follow_the_system_and_the_button(page_file, show):
    page, errors, _ = show(page_file, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    axis_colour = "document.getElementById('law').layout.font.color"
    assert page.evaluate(background) == "rgb(20, 23, 26)"
    dark = page.evaluate(axis_colour)
    page.locator(".theme").click()
    assert page.evaluate(background) == "rgb(252, 252, 250)"
    page.wait_for_function(f"{axis_colour} !== '{dark}'")
    page.locator(".theme").click()
    page.wait_for_function(f"{axis_colour} === '{dark}'")
    assert errors == []


def test_a_phone_shows_all_of_it(page_file, show):
    page, errors, _ = show(
        page_file, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out
    assert page.evaluate(
        "[...document.querySelectorAll('.legend button')].every("
        "b => b.getBoundingClientRect().right <= 390)"
    )  # the legend wraps
    widths = page.evaluate("charts.map(c => document.getElementById(c.id).offsetWidth)")
    assert all(300 < width <= 390 for width in widths)
    box = page.locator("#frontier .scatterlayer .points path.point").nth(3)
    box.scroll_into_view_if_needed()
    where = box.bounding_box()
    page.touchscreen.tap(where["x"] + where["width"] / 2, where["y"] + where["height"] / 2)
    page.wait_for_selector("#frontier .hoverlayer .hovertext")
    assert errors == []


def test_downloads_come_out_of_the_page(page_file, show):
    page, errors, _ = show(page_file)
    names = page.locator(".downloads a").all_inner_texts()
    assert names == ["checkpoints.csv", "matched.csv", "predictors.csv", "report.json"]
    for name in names:
        with page.expect_download() as download:
            page.locator(f'.downloads a:text-is("{name}")').click()
        written = page_file.parent / name
        with open(download.value.path(), encoding="utf-8") as file:
            if name.endswith(".json"):
                assert json.load(file) == json.loads(written.read_text())
            else:
                assert file.read() == written.read_text()
    assert errors == []


def test_names_that_are_markup_leave_the_page_whole(tmp_path, show):
    skills = {"<!--<script>": 1.0, "</script><b>x</b>": 0.9, "<a href='http://a.b'>y</a>": 0.8}
    runs = [
        make_run(
            tmp_path / method, [(0.2, 1.0, 0.0), (0.7, 0.8, 1.0)], method=method, skills=skills
        )
        for method in ("ppo", "bc")
    ]
    run_compare(CompareConfig(runs=tuple(runs), out=str(tmp_path / "report")))
    page, errors, _ = show(tmp_path / "report" / "index.html")
    assert errors == []
    names = page.evaluate("charts.map(chart => chart.id)")
    assert "skills" in names
    assert all(page.locator(f"#{name} .main-svg").count() > 0 for name in names)
    assert page.locator("#skills a").count() == 0
    assert "<!--<script>" in page.locator("#skills .ytick").all_text_contents()


def test_two_plain_runs_without_kl_and_seeds(tmp_path, show):
    ppo = make_run(tmp_path / "ppo", [(0.2, 1.0, None), (0.6, 1.0, None), (0.9, 0.9, None)])
    bc = make_run(tmp_path / "<b>c", [(0.2, 1.0, None), (0.7, 0.5, None)], method="bc")
    run_compare(CompareConfig(runs=(ppo, bc), out=str(tmp_path / "report")))
    page, errors, _ = show(tmp_path / "report" / "index.html")
    assert errors == []
    assert re.fullmatch(
        r"At 70% success on PlaceCanInBin, ppo keeps 97% \[\d+,\s\d+\] of the prior skills and bc "
        r"keeps 50% \[\d+,\s\d+\] \(single runs, intervals over episodes\)\.",
        page.locator("h1").inner_text(),
    )
    assert "<b>c" in page.locator("main").text_content()  # names are text, never markup
    assert page.locator("#law").count() == 0

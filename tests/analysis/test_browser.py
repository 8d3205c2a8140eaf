"""The report in headless Chromium: sorting, filtering, toggling, no error, no request; and axe-core where it is."""

import os
import shutil

import pytest
from helpers import ROOT

from hoard.analysis import report

pytestmark = pytest.mark.slow
AXE = ROOT / "build" / "axe" / "package" / "axe.min.js"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), "")
SIZES = {"desktop": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light")}


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        if os.environ.get("HOARD_BROWSER") == "required":
            pytest.fail("there is no chromium")
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """The report of a folder in a window, with all that it said and asked for."""

    def __init__(self, browser, folder, size="desktop", **options):
        width, height, scheme = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        self.page = context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = report.build(folder).html.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector(".u-legend")

    def column(self, name):
        heads = self.page.locator("#leaderboard thead th").all_inner_texts()
        place = next(n for n, head in enumerate(heads) if head.startswith(name)) + 1
        rows = self.page.locator(f"#leaderboard tbody tr:not([hidden]) td:nth-child({place})")
        return rows.all_inner_texts()

    def click(self, head):
        self.page.locator("#leaderboard th button", has_text=head).first.click()


def test_tables_sort_by_number_and_by_word(chromium, quick):
    one = Page(chromium, quick.folder)
    one.click("mean ±")
    rising = [float(text.split()[0]) for text in one.column("mean ±") if text[0] != "–"]
    assert rising == sorted(rising)
    one.click("mean ±")
    falling = [float(text.split()[0]) for text in one.column("mean ±") if text[0] != "–"]
    assert falling == sorted(falling, reverse=True)
    assert one.page.locator('#leaderboard th[aria-sort="descending"]').count() == 1
    one.click("method")
    assert one.column("method") == sorted(one.column("method"))
    assert one.said == []


def test_rows_are_filtered_by_words_dataset_and_method(chromium, quick):
    one = Page(chromium, quick.folder)
    everything = len(one.column("method"))
    one.page.fill("#words", "maze iql")
    assert one.column("method") == ["iql"]
    assert one.page.inner_text("#count") == f"1 of {everything} rows"
    one.page.fill("#words", "")
    one.page.select_option("#dataset", "hoard/pendulum/mixed-v0")
    assert set(one.column("dataset")) == {"hoard/pendulum/mixed-v0"}
    one.page.select_option("#dataset", "")
    one.page.locator('button.method[data-method="bc"]').press("Enter")  # by keyboard
    assert "bc" not in one.column("method")
    assert one.page.locator('button.method[data-method="bc"]').get_attribute("aria-pressed") == "false"
    one.page.locator('button.method[data-method="bc"]').press("Enter")
    assert len(one.column("method")) == everything
    assert one.said == []


def test_curves_show_values_and_can_be_switched_off(chromium, quick):
    one = Page(chromium, quick.folder)
    chart = one.page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    one.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 100)
    legend = chart.locator(".u-legend .u-series:visible")
    assert legend.count() == 1 + 3
    assert "iql" in " ".join(legend.all_inner_texts())
    ink = "place => place.querySelector('canvas').toDataURL()"
    before = chart.evaluate(ink)
    one.page.locator('button.method[data-method="iql"]').click()
    assert chart.evaluate(ink) != before
    one.page.select_option("#axis", "time")
    assert "seconds" in chart.inner_text()
    assert one.said == []


def test_a_number_leads_to_its_runs(chromium, quick):
    one = Page(chromium, quick.folder)
    one.page.locator("#leaderboard tbody a").first.click()
    row = one.page.locator("details[open] tr:target")
    assert row.is_visible()
    assert "hoard train" in row.inner_text()


def test_a_film_plays_when_asked_to_and_stops(chromium, filmed):
    one = Page(chromium, filmed.folder, reduced_motion="reduce")
    one.page.locator("#leaderboard tbody a").first.click()
    figure = one.page.locator("#film-1")
    image, button = figure.locator("img"), figure.locator("button")
    assert image.get_attribute("src").startswith("data:image/png")  # nothing moves by itself
    assert button.get_attribute("aria-label") == "Play: Film of bc, seed 0"
    button.focus()
    one.page.keyboard.press("Enter")
    assert image.get_attribute("src").startswith("data:image/gif")
    assert button.inner_text() == "■ Stop"
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    one.page.keyboard.press("Space")
    assert image.get_attribute("src").startswith("data:image/png")
    assert button.get_attribute("aria-label") == "Play: Film of bc, seed 0"
    assert one.said == []


@pytest.mark.parametrize("size", SIZES)
def test_films_and_paths_fit_the_window_and_axe_finds_nothing(chromium, filmed, size):
    one = Page(chromium, filmed.folder, size, bypass_csp=True)
    for details in one.page.locator("section details").all():
        details.locator("summary").click()
    assert one.page.locator(".pictures img").count() == 3
    assert one.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert one.said == []
    assert violations(one) == []


@pytest.mark.parametrize("size", SIZES)
def test_no_error_no_request_and_nothing_wider_than_the_window(chromium, quick, size):
    one = Page(chromium, quick.folder, size)
    one.page.wait_for_timeout(300)
    assert one.said == []
    assert {url for url in one.asked if not url.startswith("data:")} == {one.url}
    assert one.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def violations(one: Page) -> list[tuple[str, str, str]]:
    """What axe-core finds in the page as it is now."""
    if not AXE.is_file():
        if os.environ.get("HOARD_BROWSER") == "required":
            pytest.fail("there is no axe-core")
        pytest.skip("axe-core is not here; .ci/browser fetches it")
    one.page.evaluate(AXE.read_text())
    found = one.page.evaluate("axe.run()")["violations"]
    return [(rule["id"], rule["impact"], rule["nodes"][0]["html"]) for rule in found]


@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing(chromium, quick, size):
    assert violations(Page(chromium, quick.folder, size, bypass_csp=True)) == []

"""The report in headless Chromium: images load, tables sort by mouse and keyboard, dark and narrow screens work."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from analyses.paired_study.page import make_report

webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory, planted):
    folder = planted(tmp_path_factory.mktemp("study"), seeds=3)
    path, _ = make_report(folder)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1100,900",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
    driver.get(path.resolve().as_uri())
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    yield driver
    driver.quit()


def column(page, table, number):
    return page.execute_script(
        f"return Array.from(document.querySelectorAll('#{table} tbody tr')).map(r => r.cells[{number}].textContent)"
    )


def test_no_console_message_and_every_image_has_loaded(page):
    assert page.get_log("browser") == []
    loaded = page.execute_script(
        "return Array.from(document.images).map(i => i.complete && i.naturalWidth > 100)"
    )
    assert len(loaded) >= 7
    assert all(loaded)


def test_tables_sort_by_number_and_by_text(page):
    heads = page.find_elements("css selector", "#table-models th button")
    names = [head.text for head in heads]
    sigma = next(i for i, name in enumerate(names) if name.startswith("σ features"))
    heads[sigma].click()
    rising = [float(v) for v in column(page, "table-models", sigma)]
    assert rising == sorted(rising)
    heads[sigma].click()
    assert [float(v) for v in column(page, "table-models", sigma)] == rising[::-1]
    assert page.execute_script(
        f"return document.querySelectorAll('#table-models th')[{sigma}].getAttribute('aria-sort')"
    ) == ("descending")
    heads[0].click()
    runs = column(page, "table-models", 0)
    assert runs == sorted(runs, key=str.lower)


def test_a_heading_sorts_by_the_keyboard(page):
    head = page.find_elements("css selector", "#table-models th button")[0]
    head.click()
    first = column(page, "table-models", 0)
    head.send_keys(Keys.ENTER)
    assert column(page, "table-models", 0) == first[::-1]
    reached = page.execute_script(
        "return Array.from(document.querySelectorAll('th button, summary, nav a')).every(e => e.tabIndex === 0)"
    )
    assert reached


def test_figures_follow_the_ground(page):
    for scheme in ("light", "dark"):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
        figure = page.find_element("css selector", "figure img")
        pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot_as_png)).convert("L"))
        assert pixels[0, 0] == {"light": 255, "dark": 16}[scheme]
        ink = {"light": pixels < 60, "dark": pixels > 200}[scheme]
        assert 0.002 < ink.mean() < 0.2


@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_is_cut_off_or_scrolls_sideways(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    widths = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    beyond = page.execute_script(
        "return Array.from(document.querySelectorAll('td, th, img, p, figcaption, svg')).filter(e => "
        "!e.closest('thead') && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.textContent)"
    )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert widths[0] <= widths[1]
    assert beyond == []


def test_verdicts_come_with_their_drawings_and_a_text_for_each(page):
    rows = page.execute_script(
        "return Array.from(document.querySelectorAll('#verdicts tbody tr')).map(r => "
        "[r.querySelector('.chip').textContent, r.querySelector('svg')?.getAttribute('aria-label')])"
    )
    assert 4 <= len(rows) <= 6
    assert all(chip and label for chip, label in rows)

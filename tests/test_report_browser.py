"""The page in a real browser: it draws, answers to pointing and sorting, and asks for nothing."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from critical_batch_cases import add_gradient, add_search, add_variants, trial
from noise_cases import CHOICES, write_tiny
from spectrum_cases import make_record, store_made_up, store_record

from vivit_bench.measure import Outcome

pytest.importorskip("altair", reason="needs altair: pip install 'vivit-bench[report]'")
pytest.importorskip("vl_convert", reason="needs vl-convert: pip install 'vivit-bench[report]'")
pytest.importorskip("selenium", reason="needs selenium: make setup")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from vivit_bench.report.page import collect, html_of
from vivit_bench.report.page.parts import Chart, Charts

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60
Browser = Any


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of section."""
    from vivit_bench.noise.runner import run_noise
    from vivit_bench.quadratic.records import run_experiment
    from vivit_bench.quadratic.settings import Settings

    folder = tmp_path_factory.mktemp("report")
    results = folder / "results"
    add_variants(results, (10, 20, 30, 40))
    add_variants(results, (1, 2, 3, 4), engine="vivit-for-pytorch")
    add_gradient(results, 900)
    add_search(
        results,
        problem="mnist_mlp",
        critical_batch_size=236,
        facts={"predicted": {"critical_batch_size": 240, "low": 91, "high": 256}},
        ran=[trial(16), trial(236), trial(237, Outcome.OUT_OF_MEMORY)],
    )
    for problem in ("cifar10_3c3d", "mnist_2c2d"):
        store_made_up(results, problem=problem)
        store_made_up(results, problem=problem, curvature="mc", eigenvalues=(2.0, 0.1))
    shutil.copytree(Path(__file__).parents[1] / "results/comparison", results / "comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_tiny(folder)
        run_noise(CHOICES, results)
    run_experiment(Settings(repeats=2, steps=4, dampings=(0.1, 10.0)), results)
    path = folder / "report.html"
    path.write_text(html_of(collect(results)))
    return path


@pytest.fixture(scope="module", params=[360, 1440])
def browser(request: pytest.FixtureRequest, page: Path) -> Iterator[Browser]:
    """The page, drawn; two widths."""
    with _opened(page, request.param) as chromium:
        yield chromium


@contextlib.contextmanager
def _opened(page: Path, width: int) -> Iterator[Browser]:
    """Chromium without a window, with a page that is drawn."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "Chromium" if binary is None else "chromedriver"
        pytest.skip(f"needs {missing} on the PATH (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    try:
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get(page.as_uri())
        _wait(lambda: chromium.execute_script("return document.documentElement.dataset.ready"))
        yield chromium
    finally:
        chromium.quit()


def _wait(holds: Callable[[], object]) -> None:
    """Until it holds; fails where it never does."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def _run(browser: Browser, script: str, *arguments: object) -> Any:
    return browser.execute_script(script, *arguments)


def test_every_chart_is_drawn_with_its_marks(browser: Browser) -> None:
    empty = _run(
        browser,
        """return [...document.querySelectorAll("[data-chart]")].filter((place) =>
            !place.querySelector("svg :is(.mark-symbol, .mark-rect, .mark-line) path") ||
            !place.querySelector("[role=graphics-document][aria-label]")
        ).map((place) => place.dataset.chart)""",
    )
    count = _run(browser, "return document.querySelectorAll('[data-chart]').length")
    assert empty == []
    assert count >= 18


def test_the_console_is_silent_and_nothing_leaves_the_page(browser: Browser, page: Path) -> None:
    # Logs are handed out once: this test is the only one that reads them.
    assert [line["message"] for line in browser.get_log("browser")] == []
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}


def test_nothing_is_wider_than_the_window(browser: Browser) -> None:
    wide = _run(
        browser,
        """const most = document.documentElement.clientWidth;
        return [...document.querySelectorAll("main *")].filter((each) =>
            !each.closest(".scroll *, .unseen, .unseen *, svg *, details *") &&
            each.getBoundingClientRect().right > most + 1
        ).map((each) => each.outerHTML.slice(0, 90))""",
    )
    assert wide == []


def _point_at(browser: Browser, key: str, mark_of: str = ".mark-symbol path") -> None:
    """Put the pointer onto a mark of a chart, its first point."""
    mark = browser.find_element(By.CSS_SELECTOR, f"#{key} {mark_of}")
    _run(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark)
    ActionChains(browser).move_to_element(mark).perform()


def _tooltip(browser: Browser) -> str:
    script = "return document.querySelector('#vg-tooltip-element.visible')?.innerText ?? ''"
    return str(_run(browser, script))


def test_pointing_at_a_direction_shows_its_values_and_marks_it_everywhere(browser: Browser) -> None:
    _point_at(browser, "directions_0_gamma")
    _wait(lambda: "SNR(λ)" in _tooltip(browser))
    told = _tooltip(browser)
    assert all(name in told for name in ("direction k", "λ", "|γ|", "SNR(γ)"))
    direction = int(told.split("direction k")[1].split()[0])
    drawn = _run(browser, "return data.directions_0").splitlines()[1:]
    values = next(line.split(",") for line in drawn if line.startswith(f"{direction},"))
    assert f"{float(values[1]):.3g}" in told or f"{float(values[1]):.2e}"[:4] in told
    marked = """return ["gamma", "alignment", "snr_lambda", "snr_gamma"].map((name) =>
        views.get(`directions_0_${name}`).signal("pointed"))"""
    _wait(lambda: _run(browser, marked) == [direction] * 4)


def test_pointing_at_a_trial_shows_n_and_peak(browser: Browser) -> None:
    _point_at(browser, "growth_0_peak_mib")
    _wait(lambda: "peak (MiB)" in _tooltip(browser))
    assert "16" in _tooltip(browser)


def test_a_finger_that_taps_beside_a_mark_sees_its_values_until_it_taps_elsewhere(
    browser: Browser,
) -> None:
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        for key, name in (("growth_0_peak_mib", "peak (MiB)"), ("eigenvalues", "eigenvalue")):
            x, y = _run(
                browser,
                """const mark = document.querySelector(arguments[0]);
                mark.scrollIntoView({block: "center", behavior: "instant"});
                const {x, y, width, height} = mark.getBoundingClientRect();
                return [x + width / 2, y + height / 2]""",
                f"#{key} .role-mark.mark-symbol path",
            )
            _tap(browser, x + 5, y - 4)
            _wait(lambda name=name: name in _tooltip(browser))
            _tap(browser, 5, 450)
            _wait(lambda: _tooltip(browser) == "")
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def _tap(browser: Browser, x: float, y: float) -> None:
    for event, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        given = {"type": event, "touchPoints": points}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", given)
    time.sleep(0.5)  # two in a shorter time would be a double tap


def test_a_slider_moves_by_keys_and_all_its_charts_follow(browser: Browser) -> None:
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    before = _run(browser, "return document.querySelector('#directions_0_gamma svg').innerHTML")
    _run(browser, "arguments[0].focus()", slider)
    slider.send_keys(Keys.ARROW_RIGHT)
    label = browser.find_element(By.CSS_SELECTOR, ".control output")
    _wait(lambda: label.text.startswith("step 1,"))
    assert slider.get_attribute("aria-valuetext") == label.text
    chosen = """return ["gamma", "snr_lambda"].map((name) =>
        views.get(`directions_0_${name}`).signal("chosen"))"""
    assert _run(browser, chosen) == [1, 1]
    after = "return document.querySelector('#directions_0_gamma svg').innerHTML"
    _wait(lambda: _run(browser, after) != before)


def test_a_list_chooses_which_spectra_are_compared(browser: Browser) -> None:
    field = browser.find_element(By.CSS_SELECTOR, "#eigenvalues_group select")
    lines = "return document.querySelectorAll('#eigenvalues .mark-line path').length"
    assert _run(browser, lines) == 2
    _run(browser, "arguments[0].focus()", field)
    field.send_keys(Keys.END)
    _wait(lambda: _run(browser, "return views.get('eigenvalues').signal('chosen')") == 3)
    text = "return document.querySelector('#eigenvalues .chart').textContent"
    _wait(lambda: "mc, full" in _run(browser, text))


def test_tables_are_sorted_by_value_with_the_keyboard(browser: Browser) -> None:
    column = """const rows = document.querySelectorAll("#table-searches tbody tr");
        return [...rows].map((row) => row.cells[4].dataset.sort)"""
    button = browser.find_elements(By.CSS_SELECTOR, "#table-searches thead button")[4]
    _run(browser, "arguments[0].focus()", button)
    numbers = sorted(map(int, _run(browser, column)))
    button.send_keys(Keys.ENTER)
    assert list(map(int, _run(browser, column))) == numbers
    header = _run(browser, "return arguments[0].closest('th').getAttribute('aria-sort')", button)
    assert header == "ascending"
    button.send_keys(Keys.ENTER)
    assert list(map(int, _run(browser, column))) == numbers[::-1]


def test_charts_have_colours_of_light_and_dark_pages(browser: Browser) -> None:
    ink = "return getComputedStyle(document.querySelector('#figure_3_0 svg text')).fill"
    found = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found.append(_run(browser, ink))
    assert found == ["rgb(27, 31, 35)", "rgb(232, 232, 228)"]


def test_a_chart_that_cannot_be_drawn_says_so_and_the_others_live(tmp_path: Path) -> None:
    """Beside one whose spectra have names that Vega-Lite would read as paths."""
    for number, name in enumerate(("a.b", "c[d")):
        store_record(tmp_path, make_record(cutoff=1e-4 * (1 + number)), name=name)
    made = collect(tmp_path)
    broken = Charts([Chart("broken", "Broken", {"nothing": "to draw"}, "nothing")])
    made.sections[0].blocks.insert(0, broken)
    path = tmp_path / "report.html"
    path.write_text(html_of(made))
    with _opened(path, 800) as browser:
        said = browser.find_element(By.CSS_SELECTOR, "#broken .chart .warning").text
        assert said.startswith("This chart cannot be drawn: Invalid specification")
        drawn = "return [...document.querySelectorAll('[data-drawn]')].map((e) => e.dataset.chart)"
        assert _run(browser, drawn) == ["eigenvalues", "density_0"]
        _point_at(browser, "density_0", ".mark-rect path:last-of-type")  # that of 3.0
        _wait(lambda: "c[d" in _tooltip(browser))
        told = " ".join(_tooltip(browser).split())
        assert "exact, full, a.b 1 exact, full, c[d 1" in told

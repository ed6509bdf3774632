"""The report in a real browser, with the network blocked."""

import copy
import json
import re
import sys

import pytest

import param_features as pf
from param_features.audit import Audit, AuditRow
from param_features.errors import MissingExtraError
from param_features.problem import read_inputs
from param_features.report import contents, write, write_report
from param_features.report.document import audit_section
from param_features.report.write import page_of

HOSTILE = (
    "<b>bold</b>",
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<a href='javascript:window.pwned=1'>",
    "&amp;",
)


@pytest.fixture(scope="module")
def found(tiny_features, tiny_tokens):
    inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens, None)
    curve = tiny_features.errors_by_l0(tiny_tokens, n_samples=200)
    return contents(tiny_features, inputs, curve, n_examples=5)


@pytest.fixture
def opened(found, page, tmp_path):
    path = write_report(tmp_path / "report.html", "Six features", found)
    page.goto(path.as_uri())
    page.wait_for_selector("#errors .main-svg")
    return page


def rows(page) -> list[str]:
    return page.locator("#table tbody tr td:first-child").all_inner_texts()


def heading(page) -> str:
    return page.inner_text("#feature h2")


def test_renders_and_asks_nobody(opened, traffic):
    assert opened.inner_text("h1") == "Six features"
    assert rows(opened) == list("012345")
    assert heading(opened) == "Feature 0"
    for plot in ("errors", "curve", "density"):
        assert opened.locator(f"#{plot} .main-svg").first.is_visible()
    assert opened.locator("#feature .plot .main-svg").first.is_visible()
    assert traffic.requests == traffic.errors == []


def test_tokens_and_the_marked_one(opened, found):
    first = found["features"][0]["examples"][0]
    line = opened.locator("#feature .example").first
    assert line.locator(".token").all_inner_texts() == [found["vocabulary"][token] for token in first["tokens"]]
    assert line.locator(".token.at").inner_text() == found["vocabulary"][first["tokens"][first["at"]]]
    colour = line.locator(".token.at").evaluate("element => element.style.background")
    assert ("--down" if first["act"] < 0 else "--up") in colour


def test_search_narrows_the_table(opened):
    opened.fill("#search", "#4")
    assert rows(opened) == ["4"]
    assert opened.inner_text("#count") == "1 of 6 features"
    opened.fill("#search", "no such token")
    assert rows(opened) == []
    opened.fill("#search", "")
    assert len(rows(opened)) == 6


def test_sorting(opened, found):
    densities = [feature["density"] for feature in found["features"]]
    opened.click("th button:has-text('density')")
    assert [densities[int(row)] for row in rows(opened)] == sorted(densities, reverse=True)
    opened.click("th button:has-text('density')")
    assert [densities[int(row)] for row in rows(opened)] == sorted(densities)
    assert opened.locator("th[aria-sort='ascending']").inner_text().startswith("density")


def test_a_click_shows_the_feature(opened, found):
    opened.click("#table tbody tr:nth-child(4)")
    assert heading(opened) == "Feature 3"
    shown = opened.locator("#feature .example").count()
    assert shown == len(found["features"][3]["examples"])
    assert opened.url.endswith("#feature-3")
    opened.locator("#feature a.chip").first.click()
    assert heading(opened) == f"Feature {found['features'][3]['nearest'][0][0]}"


def test_keys(opened):
    opened.keyboard.press("j")
    opened.keyboard.press("j")
    opened.keyboard.press("k")
    assert heading(opened) == "Feature 1"
    opened.keyboard.press("/")
    opened.keyboard.type("jk")
    assert opened.input_value("#search") == "jk"
    assert heading(opened) == "Feature 1"


def test_an_address_with_a_feature_opens_it(found, page, tmp_path):
    path = write_report(tmp_path / "report.html", "t", found)
    page.goto(f"{path.as_uri()}#feature-5")
    page.wait_for_selector("#errors .main-svg")
    assert heading(page) == "Feature 5"


def test_light_and_dark(opened):
    def background() -> str:
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    before = background()
    opened.click("#theme")
    assert background() != before
    opened.emulate_media(color_scheme="dark")
    opened.wait_for_timeout(50)
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_phone_shows_it_without_sideways_scrolling(opened):
    opened.set_viewport_size({"width": 390, "height": 844})
    opened.wait_for_timeout(300)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.is_visible("#back")


def test_hostile_tokens_run_nothing(found, page, traffic, tmp_path):
    hostile = copy.deepcopy(found)
    n_strings = len(hostile["vocabulary"])
    hostile["vocabulary"] = [HOSTILE[number % len(HOSTILE)] for number in range(n_strings)]
    for number, feature in enumerate(hostile["features"]):
        feature["label"] = HOSTILE[number % len(HOSTILE)]
    page.goto(write_report(tmp_path / "report.html", HOSTILE[1], hostile).as_uri())
    page.wait_for_selector("#errors .main-svg")
    assert page.inner_text("h1") == HOSTILE[1]
    assert page.locator("#table tbody tr td:nth-child(2)").all_inner_texts() == [HOSTILE[k % len(HOSTILE)] for k in range(6)]
    shown = set(page.locator("#feature .token").all_inner_texts())
    assert shown <= set(HOSTILE)
    assert len(shown) > 1
    assert page.evaluate("window.pwned") is None
    assert page.locator("#feature b, #feature img").count() == 0
    assert traffic.requests == traffic.errors == []


def test_images_are_drawn(page, traffic, tmp_path, classifier, images):
    features = pf.decompose(classifier, "*weight", inputs=images, n_features=3, l0=1, steps=5, progress=False)
    path = features.report(tmp_path / "report.html", inputs=images[:20])
    page.goto(path.as_uri())
    page.wait_for_selector("#errors .main-svg")
    pixels = "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"
    drawn = page.locator("#feature canvas").first.evaluate(pixels)
    assert len(set(drawn)) > 10
    assert traffic.errors == []


def test_data_cannot_end_their_script(found):
    data = copy.deepcopy(found)
    data["vocabulary"][0] = "</script><!-- <script>"
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page_of("t", data), re.DOTALL)[1]
    assert "<" not in text
    assert json.loads(text) == json.loads(json.dumps(data))


def test_a_missing_plotly_is_named(found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    write._plotly.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'param_features\[plots\]'"):
        write_report(tmp_path / "report.html", "t", found)
    assert not list(tmp_path.iterdir())


def test_the_file_is_small(tiny_features, tiny_tokens, tmp_path):
    path = tiny_features.report(tmp_path / "deep" / "report.html", tokens=tiny_tokens, n_rows=10)
    assert path.stat().st_size < 3e6


def test_without_an_audit_there_is_no_such_section(opened):
    assert opened.locator("#audit").is_hidden()
    assert opened.locator("#audit-link").is_hidden()


def test_an_audit_has_its_table_and_plots(found, page, traffic, tmp_path):
    rows = (
        AuditRow("one <b>claim</b>", 0.9, {"random": 0.5}, 0.8, True, "an area", ("random",)),
        AuditRow("another", 0.1, {"random": 0.5}, 0.8, True, "a share"),
        AuditRow("third", None, {}, 0.8, True, "not asked for"),
    )
    curves = {f"{start} {who}": (0.9, 0.5) for start in ("auroc", "ratio", "linearity") for who in ("features", "random")}
    audit = Audit(rows, curves, (0.01, 0.1), 2.0)
    path = write_report(tmp_path / "report.html", "t", found | {"audit": audit_section(audit)})
    page.goto(path.as_uri())
    for plot in ("auroc", "ratio", "linearity"):
        page.wait_for_selector(f"#audit-{plot} .main-svg")
    lines = page.locator("#audit-table tbody tr")
    assert lines.evaluate_all("rows => rows.map(row => row.dataset.verdict)") == ["pass", "FAIL", "not run"]
    assert lines.first.inner_text().split("\t")[1:4] == ["one <b>claim</b>", "0.9", "random 0.5"]
    assert page.inner_text("#audit-title").startswith("1 of 3 claims pass, 1 fail, 1 not run.")
    assert page.locator("#audit-link").is_visible()
    assert traffic.requests == traffic.errors == []

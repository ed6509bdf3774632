"""A notebook with views, executed, converted to HTML and opened in Chromium without a network."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from param_features.views import TokenRow, View
from param_features.views.circuitsvis_page import script

nbclient, nbconvert, nbformat = (pytest.importorskip(name) for name in ("nbclient", "nbconvert", "nbformat"))

SETUP = """
import torch
from param_features.views import TokenRow, View, choice_view, neuron_view, show

SCRIPT, IMAGE = "</script><script>window.pwned = 1</script>", "<img src=x onerror=window.pwned=2>"
HOSTILE = ("<b>", SCRIPT, IMAGE, " a&amp;b", "\\n", "<!--<script>")
VALUES = (1.0, -2.0, 0.0, 0.5, 0.1, -0.7)
"""
CELLS = (
    'show(View("one", (TokenRow("first <i>", HOSTILE, VALUES, 1),)))',
    'View("two", (TokenRow("second", ("x", "y"), (3.0, -1.0), 0), TokenRow("third", ("z",), (1.0,))))',
    'show(choice_view([HOSTILE], torch.tensor([[[v, -v, 2 * v] for v in VALUES]]), n=3, measured="nats"))',
    'acts = torch.tensor([[[[v, 2 * v], [0.0, -v]] for v in VALUES]] * 2)\n'
    'show(neuron_view([HOSTILE, HOSTILE], acts, params=["<u>a", "b"], features=[1, 0], measured="nats"))',
)  # fmt: skip
COLOUR = "span => getComputedStyle(span).backgroundColor"
TEXT = "".join(("<b>", "</script><script>window.pwned = 1</script>", "<img src=x onerror=window.pwned=2>", " a&amp;b"))


@pytest.fixture(scope="module")
def notebook():
    """The executed notebook; in a thread of its own, since the browser's loop runs in this one."""
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *CELLS)]
    book = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3")
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, client.async_execute()).result()


def converted(book, **options) -> str:
    """The page that nbconvert writes, without the libraries that its template takes from other hosts."""
    hosts = dict.fromkeys(("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"), "")
    return nbconvert.HTMLExporter(template_name="lab", **hosts, **options).from_notebook_node(book)[0]


def shown(page) -> str:
    """What is to be read on a page, without the joiners and with ordinary spaces."""
    return page.inner_text("body").replace("\u2060", "").replace("\xa0", " ")


@pytest.fixture
def opened(notebook, page, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(converted(notebook), encoding="utf-8")
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.colored-tokens').length === 6")
    return page


def test_the_script_is_in_the_first_output_alone(notebook):
    every = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    outputs = [data["text/html"] for data in every if "text/html" in data]
    assert [output.count(script()) for output in outputs] == [1, 0, 0, 0]
    assert max(map(len, outputs[1:])) < 20_000


def test_views_are_drawn_and_ask_for_nothing(opened, traffic):
    assert opened.locator("select").count() == 4
    assert TEXT in shown(opened)
    assert "first <i>" in shown(opened)
    assert traffic.errors == []
    assert traffic.requests == []


def test_the_marked_token_is_outlined_in_the_drawn_view(opened):
    styles = "spans => spans.map(span => getComputedStyle(span).outlineStyle)"
    found = opened.locator(".colored-tokens").nth(0).locator("> span > span").evaluate_all(styles)
    assert found == ["none", "solid", "none", "none", "none", "none"]
    assert opened.locator(".colored-tokens").nth(1).locator("> span > span").evaluate_all(styles) == ["solid", "none"]


def test_hostile_tokens_run_nothing_even_where_the_pointer_rests(opened):
    for block in range(6):
        for token in opened.locator(".colored-tokens").nth(block).locator("> span").all()[:3]:
            token.hover()
        assert opened.evaluate("window.pwned") is None
        assert "&lt;" not in shown(opened).replace("a&amp;b", "")
    assert opened.locator("img, .colored-tokens b, .colored-tokens script").count() == 0


def test_the_tooltip_shows_the_token_as_it_is(opened):
    before = shown(opened).count("<b>")
    opened.locator(".colored-tokens").nth(0).locator("> span").nth(0).hover()
    opened.wait_for_selector(".colored-tokens > div")
    assert shown(opened).count("<b>") == before + 1


def test_colours_are_signed(opened):
    tokens = opened.locator(".colored-tokens").nth(0).locator("> span > span")
    assert tokens.nth(1).evaluate(COLOUR) == "rgb(255, 0, 0)"
    assert opened.locator(".colored-tokens").nth(1).locator("> span > span").nth(0).evaluate(COLOUR) == "rgb(0, 0, 255)"
    assert tokens.nth(2).evaluate(COLOUR) == "rgb(255, 255, 255)"


def test_another_feature_and_another_parameter_can_be_chosen(opened):
    token = opened.locator(".colored-tokens").nth(3).locator("> span > span").nth(1)
    assert token.evaluate(COLOUR) == "rgb(255, 0, 0)"
    opened.locator("div[style*='cursor: pointer']").get_by_text("1", exact=True).click()  # has the others' negatives
    opened.wait_for_timeout(300)
    assert token.evaluate(COLOUR) == "rgb(175, 137, 255)"  # blue, half as strong as the most active feature's
    part = opened.locator(".colored-tokens").nth(4).locator("> span > span").nth(1)
    assert part.evaluate(COLOUR) == "rgb(255, 0, 0)"
    opened.locator("select").nth(0).select_option("b")
    opened.wait_for_timeout(300)
    assert part.evaluate(COLOUR) == "rgb(0, 0, 255)"
    assert opened.locator("select").nth(0).locator("option").all_inner_texts() == ["<u>a", "b"]
    assert opened.locator("select").nth(1).locator("option").all_inner_texts() == ["1", "0"]


def test_a_view_waits_for_a_script_that_comes_later(notebook, page, traffic, tmp_path):
    """A front end may draw the outputs that are in sight before the first one."""
    book = nbformat.from_dict(notebook)
    book.cells = [*notebook.cells[2:], *notebook.cells[:2]]
    path = tmp_path / "late.html"
    path.write_text(converted(book), encoding="utf-8")
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.colored-tokens').length === 6")
    assert traffic.errors == traffic.requests == []


@pytest.mark.parametrize("is_sanitised", [False, True])
def test_without_the_script_the_tokens_stand(notebook, page, traffic, tmp_path, is_sanitised):
    """The first output was cleared, or the viewer runs no scripts."""
    path = tmp_path / "still.html"
    path.write_text(converted(notebook, sanitize_html=is_sanitised).replace(script(), ""), encoding="utf-8")
    page.goto(path.as_uri())
    assert page.locator(".colored-tokens").count() == 0
    assert TEXT in shown(page)
    assert page.evaluate("window.pwned") is None
    assert traffic.errors == traffic.requests == []
    if not is_sanitised:
        marked = page.locator("span[title='-2']").nth(0)
        assert marked.evaluate("span => getComputedStyle(span).outlineStyle") == "solid"
        assert marked.evaluate("span => getComputedStyle(span).backgroundColor") == "rgb(255, 0, 0)"


def test_a_saved_page_stands_alone(page, traffic, tmp_path):
    path = View("Äther", (TokenRow("<i>", ("héllo", " 世界"), (1.0, -1.0), 1),)).save(tmp_path / "page.html")
    page.goto(path.as_uri())
    page.wait_for_selector(".colored-tokens")
    assert page.title() == "Äther"
    assert "héllo 世界" in shown(page)
    assert traffic.errors == traffic.requests == []

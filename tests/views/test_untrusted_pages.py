"""Pages made of a stranger's features, opened in a browser: whatever text they hold, no script of theirs runs."""

import html
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import param_features as pf
from param_features.report.write import page_of
from param_features.views.circuitsvis_page import block, literal
from param_features.views.terminal import visible
from tests.circuits_made import small_circuit
from tests.fuzz.readers import READERS, files_of
from tests.golden.make import IMAGES, TOKENS
from tests.golden.test_golden import FOLDERS, models_of

GOLDEN = FOLDERS[-1]
HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "\"><svg onload=window.pwned=1>",
    "'-window.pwned=1-'${window.pwned=1}`",
    "</style><style>@import 'https://example.com/pwned.css';</style>",
    "<!--<script>",
    "<a href='javascript:window.pwned=1'>a</a>",
    "\u2028window.pwned=1\u2028",
    "]]><iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "{{script}}",
)  # fmt: skip
ALL = "".join(text for text in HOSTILE if text.isprintable())


def tokenizer():
    """Tokens that mean harm."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    vocabulary = {text: number for number, text in enumerate(HOSTILE)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=HOSTILE[0]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words)


def harmful(name: str, folder):
    """Golden features whose every text is another, with checksums that are right."""
    files = files_of(GOLDEN / name)
    record = json.loads(files["config.json"])
    record["config"] |= {key: ALL for key in ("method", "format", "model")}
    record["metrics"] |= {f"control_{ALL}": 0.5, ALL: 0.5}
    files["config.json"] = json.dumps(record).encode()
    for file, data in READERS["features"].restamp(files).items():
        (folder / file).write_bytes(data)
    return folder


@pytest.fixture
def stranger(tmp_path):
    """Features with hostile texts and tokens, bound to their model."""
    return pf.load(harmful("tied", tmp_path), model=models_of(GOLDEN)[TOKENS], tokenizer=tokenizer())


@pytest.fixture
def harmless(page, traffic):
    """Open a page and see that nothing of a stranger's runs or is asked for."""
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))

    def check(path, ready: str = "body"):
        page.goto(path.as_uri())
        page.wait_for_selector(ready, state="attached")
        page.mouse.move(200, 300)
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned") is None
        assert page.locator("img[src=x], svg[onload], iframe, a[href^='javascript:']").count() == 0
        assert dialogs == traffic.requests == []
        return page

    return check


def test_a_report(stranger, harmless, tmp_path):
    rows = torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(0))
    page = harmless(stranger.report(tmp_path / "report.html", tokens=rows), "#errors .main-svg")
    assert "window.pwned" in page.inner_text("#facts")
    assert "window.pwned" in page.locator("#feature").inner_text()


def test_a_view_of_a_feature_and_of_texts(stranger, harmless, tmp_path):
    assert "window.pwned" in harmless(stranger.view(0).save(tmp_path / "a.html")).inner_text("body")
    rows = stranger.examples.tokens
    assert "window.pwned" in harmless(stranger.view(0, rows).save(tmp_path / "b.html")).inner_text("body")


def test_plots_of_parameters_with_such_names(harmless, tmp_path):
    found = pf.load(GOLDEN / "untied")
    names = dict(zip(found.params, HOSTILE, strict=False))
    renamed = replace(
        found,
        dictionary=found.dictionary.placed(names, dict.fromkeys(names.values(), torch.device("cpu"))),
        params={names[name]: record for name, record in found.params.items()},
    )
    harmless(pf.plot.save(pf.plot.direction(renamed, 0), tmp_path / "direction.html"), ".main-svg")


def test_a_circuit_with_such_names(harmless, tmp_path):
    circuit = small_circuit()
    number = iter(range(10**6))
    names = {
        node.name: f"{node.group}/{HOSTILE[next(number) % len(HOSTILE)]}{place}" for place, node in enumerate(circuit.nodes)
    }
    nodes = [
        replace(
            node,
            name=names[node.name],
            label=HOSTILE[place % len(HOSTILE)],
            examples=tuple(replace(one, tokens=tuple(HOSTILE * 2)[: len(one.tokens)]) for one in node.examples),
        )
        for place, node in enumerate(circuit.nodes)
    ]
    edges = [replace(edge, source=names[edge.source], target=names[edge.target]) for edge in circuit.edges]
    changed = replace(circuit, nodes=tuple(nodes), edges=tuple(edges), metric=ALL, record={ALL: ALL})
    found = pf.circuits.Circuit.load(changed.save(tmp_path / "circuit.json"))
    harmless(found.view().save(tmp_path / "view.html"))
    harmless(pf.plot.save(pf.plot.circuit(found), tmp_path / "plot.html"), ".main-svg")


def test_names_that_command_a_terminal_are_refused(tmp_path):
    harmful("untied", tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["params"]["\x1b]0;pwned\x07"] = record["params"].pop("out.weight")
    files = {
        "config.json": json.dumps(record).encode(),
        "features.safetensors": (tmp_path / "features.safetensors").read_bytes(),
    }
    for file, data in READERS["features"].restamp(files).items():
        (tmp_path / file).write_bytes(data)
    with pytest.raises(pf.errors.StoreError, match=r"the name '\\x1b\]0;pwned\\x07'; accepted: a text"):
        pf.load(tmp_path, model=models_of(GOLDEN)[IMAGES])


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=40))
def test_what_is_escaped_ends_no_element_and_says_the_same(text):
    data = page_of("t", {"text": text}).partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data) == {"text": text}
    drawn = block("ColoredTokens", {"tokens": [literal(text)]}, html.escape(text))
    script = drawn.partition("<script>")[2].removesuffix("</script>")
    assert "<" not in script.replace("</script>", "")
    assert all(character.isprintable() for character in visible(text))

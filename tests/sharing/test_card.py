"""The card: what it says, that controls stand beside every claim, and that no token or name breaks out of it."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import param_features as pf
from param_features.errors import SettingError
from param_features.fitted.metrics import Metrics
from param_features.params import ParamRecord
from param_features.sharing.base_model import base_model_name
from param_features.sharing.card import card_text
from param_features.sharing.text import code, fenced, visible
from param_features.sharing.verdicts import metrics_table, verdict
from tests.sharing.stand_in import TOKEN, Repository

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
PLAIN = pf.CardSettings()
SIGNS = [*"`~|<>\\*_[]!&$ \n#-", "```", "````", "\n```\n"]
TEXT = st.lists(st.one_of(st.sampled_from(SIGNS), st.characters()), max_size=20).map("".join)
SECTIONS = ["What was decomposed", "Metrics", "How to load them", "How to read them", "How they can mislead", "Citation"]


def parts_of(text):
    """Every element of rendered Markdown, those inside lines too."""
    for token in MARKDOWN.parse(text.partition("\n---\n")[2]):
        yield token
        yield from token.children or ()


def headings(text):
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_the_first_lines_are_read_by_the_hubs_own_library(features):
    library = pytest.importorskip("huggingface_hub")
    said = pf.CardSettings("gpt2", ("owner/texts",), 'stories: "short" ones', "mit", ("colours: no", "- x"))
    data = library.ModelCard(card_text(features, said)).data.to_dict()
    assert data["library_name"] == "param_features"
    assert {"param-features", "interpretability", "mechanistic-interpretability", "colours: no", "- x"} <= set(data["tags"])
    assert (data["license"], data["base_model"], data["datasets"]) == ("mit", "gpt2", ["owner/texts"])
    bare = library.ModelCard(card_text(features, PLAIN)).data.to_dict()
    assert set(bare) == {"library_name", "tags"}


def test_sections_and_facts(features):
    text = card_text(features, replace(PLAIN, data="stories of owls"), repo="somebody/features")
    assert headings(text) == [*SECTIONS[:2], "Top examples of the first 10 features", *SECTIONS[2:]]
    for fact in ("`mix.weight` (6 × 6)", "`stories of owls`", "`kl` from", "`n_features=12`", "`l0=2.0`", "`steps=20`"):
        assert fact in text
    assert f"held-out rows inside `features.safetensors`: {len(features.examples)}" in text
    assert 'pf.load("somebody/features")' in text
    assert "need not sum to W" in text
    assert "2504.00194" in text
    assert text.count("\nfeature ") == 10
    assert text.count("«") == 31  # three examples of ten features, and the words that say what the marks mean


def test_components_have_their_own_words_and_score(tiny_components):
    text = card_text(tiny_components, PLAIN)
    assert text.partition("\n---\n")[2].startswith("\n# 7 components of `blocks.0.attn.W_K`, `blocks.0.mlp.W_in`")
    assert "**As good as these features: needed components, rotated at random among each other.**" in text
    assert "2506.20790" in text and "2504.00194" not in text and "need not sum" not in text
    assert "the importance, 0 to 1, the token at which it acts" in text and text.count("\ncomponent ") == 7
    rows = [row.split("`")[1] for row in text.splitlines() if row.startswith("| `")]
    assert rows[:3] == ["rounded", "control_svd_w", "control_rotated"] and "| `alive` | 5 |" in text


def test_the_metrics_stand_beside_their_controls(features):
    text = card_text(features, PLAIN)
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert list(rows)[:4] == ["reconstruction_error", "control_pca", "control_random", "control_svd_w"]
    assert set(rows) == set(features.metrics.listed)
    for name in ("reconstruction_error", "control_pca"):
        assert f"| {features.metrics[name]:.3f} |" in rows[name]


def metrics(error, **controls):
    return Metrics({"reconstruction_error": error, **{f"control_{name}": value for name, value in controls.items()}})


def test_a_control_that_does_as_well_is_named_first():
    assert verdict(metrics(0.5, pca=0.5, random=1.0)) == (
        "**As good as these features: principal directions of the gradients.** Beyond those, which cost nothing to find, "
        "the features have shown nothing. Their error on held-out samples is lower than that of random directions of the "
        "same rank (50%)."
    )
    assert verdict(metrics(0.4, pca=0.5, svd_w=0.8)) == (
        "Their error on held-out samples is lower than that of principal directions of the gradients (20%) and singular "
        "directions of W (50%)."
    )
    assert "No control was measured" in verdict(metrics(0.4))
    assert "No control was measured" in verdict(Metrics({}))
    assert verdict(metrics(float("nan"), pca=0.5)).startswith("**As good as these features: principal")


class Odd(Metrics):
    """What a file of a stranger may hold."""

    def __getitem__(self, name):
        return self._values[name]


def test_metrics_of_strangers_are_numbers_under_plain_names():
    odd = {"<b>": 1.0, "a|b": 2.0, "l0": "<script>", "control_x": [1], "fine_name": 3.0, "n_bad": float("inf")}
    table = metrics_table(Odd({"reconstruction_error": 0.5, **odd}))
    assert re.findall("`(.*?)`", table) == ["reconstruction_error", "fine_name", "n_bad"]
    assert "<" not in table


@given(TEXT)
def test_a_code_span_ends_where_its_text_ends(text):
    [line] = [token for token in MARKDOWN.parse(f"see {code(text)} here") if token.type == "inline"]
    kinds = [child.type for child in line.children]
    assert kinds == ["text", "code_inline", "text"]
    assert line.children[1].content.strip() == visible(text).strip()


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_a_block_ends_where_its_lines_end(lines):
    [block] = MARKDOWN.parse(fenced(lines))
    assert block.type == "fence"
    assert block.content == "".join(f"{visible(line)}\n" for line in lines)


@given(st.text(max_size=400))
def test_visible_text_is_one_printable_line_of_bounded_length(text):
    assert visible(text).isprintable()
    assert len(visible(text, 50)) <= 51


def test_nasty_tokens_names_and_settings_stay_text(features, language):
    name = "a`b``|<img src=x onerror=alert(1)>\n# heading\n---\n"
    config = {**features.config, "model": name, "method": name}
    record = next(iter(features.params.values()))
    plain = card_text(features, PLAIN)
    bad = replace(features, engine=None, params={name: ParamRecord(record.shape, record.fold, "x")}, config=config)
    for text in (plain, card_text(bad, replace(PLAIN, data=name))):
        found = list(parts_of(text))
        assert not [part for part in found if part.type in ("html_block", "html_inline", "image")]
        links = {part.attrs["href"] for part in found if part.type == "link_open"}
        assert links <= {"#metrics", "https://arxiv.org/abs/2504.00194"}
        titles = [after.content for part, after in zip(found, found[1:], strict=False) if part.type == "heading_open"]
        assert [title for title in titles if "features of" not in title] == headings(text)
        assert "heading" not in headings(text)
    shown = next(part.content for part in parts_of(plain) if part.type == "fence" and part.content.startswith("feature 0"))
    for token in ("<!--", "](javascript:alert(1", "</pre>", "\\x00"):
        assert token in shown  # it is there, as text
    assert all(len(line) <= 301 for line in shown.splitlines())


def test_nasty_first_lines_are_refused():
    for wrong in (
        {"base_model": "/home/me/model"},
        {"base_model": "x\ny"},
        {"datasets": ("a b",)},
        {"license": "MIT\nx: y"},
    ):
        with pytest.raises(SettingError, match="no name on the hub|no abbreviation"):
            pf.CardSettings(**wrong)
    for wrong in ({"tags": "one"}, {"datasets": "one"}):
        with pytest.raises(SettingError, match="is one string. Give a list"):
            pf.CardSettings(**wrong)
    for wrong in ({"n_features": -1}, {"n_examples": 0}):
        with pytest.raises(SettingError, match="Give 0 or more and 1 or more"):
            pf.CardSettings(**wrong)


def test_the_picture_stands_any_token(features, tmp_path):
    card = features.save_card(tmp_path)
    assert (tmp_path / "features.png").read_bytes().startswith(b"\x89PNG")
    assert "](features.png)" in card.read_text(encoding="utf-8")
    assert "param_features" not in sys.modules.get("matplotlib.pyplot", SimpleNamespace()).__dict__


def test_without_a_model_there_are_bars_and_no_examples(features, tmp_path):
    features.save_pretrained(tmp_path)
    text = pf.load(tmp_path).save_card(tmp_path).read_text(encoding="utf-8")
    assert headings(text) == SECTIONS
    assert (tmp_path / "features.png").read_bytes().startswith(b"\x89PNG")
    assert pf.load(tmp_path).n_features == 12  # the card and its picture are no part of what is read


def test_without_matplotlib_there_is_a_notice_and_no_picture(features, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(pf.errors.Notice, match=r'pip install "param_features\[plots\]"'):
        text = features.save_card(tmp_path).read_text(encoding="utf-8")
    assert "features.png" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_cards_python_runs(hub, features, tmp_path, capsys):
    features.save_pretrained(tmp_path)
    hub.repositories["somebody/features"] = Repository()
    hub.repositories["somebody/features"].add("main", {path.name: path.read_bytes() for path in tmp_path.glob("*.*")})
    blocks = re.findall(r"```python\n(.*?)```", card_text(features, PLAIN, repo="somebody/features"), re.DOTALL)
    found = {}
    exec(blocks[0], found)
    assert torch.equal(found["direction"]["mix.weight"], features.direction(0)["mix.weight"])
    assert "control_pca" in capsys.readouterr().out
    assert len(blocks) == 2
    compile(blocks[1], "card", "exec")


def of_engine(engine):
    """Features that hold an engine and nothing else."""
    features = object.__new__(pf.ParamFeatures)
    object.__setattr__(features, "engine", engine)
    return features


def named(name, tokenizer=None):
    """Features of a model that says it was loaded by that name."""
    module = SimpleNamespace(config=SimpleNamespace(name_or_path=name))
    return of_engine(SimpleNamespace(adapter=SimpleNamespace(module=module, tokenizer=tokenizer)))


def test_the_base_model_is_a_name_on_the_hub_and_never_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_model_name(named("EleutherAI/pythia-70m")) == "EleutherAI/pythia-70m"
    (tmp_path / "runs" / "model").mkdir(parents=True)
    for name in ("runs/model", "runs/gone", "/home/me/model", "./model", "model", "", None, "x/model.bin"):
        assert base_model_name(named(name)) is None
    assert base_model_name(of_engine(None)) is None


@pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # the client's own upload
def test_the_card_goes_with_the_push(owner, features):
    features.push_to_hub("somebody/features", card=pf.CardSettings(license="mit", n_features=2), token=TOKEN)
    repository = owner.repositories["somebody/features"]
    text = repository.commits[repository.commit("main")]["README.md"].decode()
    assert 'license: "mit"' in text
    assert 'pf.load("somebody/features")' in text
    assert text.count("\nfeature ") == 2

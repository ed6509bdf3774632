"""The shipped demo model loads offline, reads and writes the stories, and is as good as its config.json says."""

import json
import random
import sys
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy

from param_features import demo
from param_features.demo.vocabulary import CONFIG_FILE, MODEL_DIR, TOKENIZER_FILE, WEIGHTS_FILE
from param_features.errors import MissingExtraError

N_ROWS = 256


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("transformer_lens")
    return demo.load_model()


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((MODEL_DIR / CONFIG_FILE).read_text())


@pytest.fixture(scope="module")
def losses(model) -> dict[int, torch.Tensor]:
    """-log p of the next token by the model, for the held-out rows of two seeds."""
    with torch.no_grad():
        return {seed: next_token_losses(model, demo.tokens(N_ROWS, seed=seed)) for seed in (0, 1)}


def next_token_losses(model, rows: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(rows)[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none")


def test_model_is_plain_and_ready(model, record: dict) -> None:
    assert not model.training
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}
    assert model.cfg.default_prepend_bos
    assert model.cfg.normalization_type == "LN"
    assert all((block.ln1.w != 1).any() for block in model.blocks)
    assert model.cfg.d_vocab == len(record["vocabulary"]) == len(model.tokenizer)
    named = {key: value for key, value in record["architecture"].items() if key != "model_name"}
    assert {key: getattr(model.cfg, key) for key in named} == named


def test_loading_repeats_and_leaves_generators_and_warnings_alone(model) -> None:
    before, torch_before = random.getstate(), torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = demo.load_model()
    assert random.getstate() == before
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_text_and_tokens_round_trip(model) -> None:
    assert model.to_str_tokens("Once upon a time") == ["<bos>", "Once", " upon", " a", " time"]
    long_rows = demo.tokens(40, n_ctx=90, seed=9)
    for row, story in zip(long_rows, demo.stories(40, seed=9), strict=True):
        encoded = model.to_tokens(story, truncate=False)[0]
        assert torch.equal(encoded, row[: len(encoded)])
        assert row[len(encoded)] == model.tokenizer.eos_token_id
        assert model.to_string(encoded[1:]) == story
        assert "".join(model.to_str_tokens(encoded)[1:]) == story
        assert torch.equal(model.to_tokens(model.to_string(row), prepend_bos=False, truncate=False)[0], row)


def test_config_vocabulary_is_that_of_the_tokenizer(record: dict) -> None:
    tokenizer = json.loads((MODEL_DIR / TOKENIZER_FILE).read_text())
    assert {token: index for index, token in enumerate(record["vocabulary"])} == tokenizer["model"]["vocab"]


def test_stated_figures_belong_to_the_stated_rows(record: dict) -> None:
    stated = record["held_out"]
    rows = {"n": stated["n"], "n_ctx": stated["n_ctx"], "seed": stated["seed"]}
    assert demo.entropy(**rows)[:, :-1].double().mean().item() == pytest.approx(stated["entropy"], abs=1e-6)
    assert demo.surprisal(**rows)[:, :-1].double().mean().item() == pytest.approx(stated["surprisal"], abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_loss_is_as_stated_and_near_the_entropy(seed: int, losses, record: dict) -> None:
    measured = losses[seed].mean().item()
    assert measured == pytest.approx(record["held_out"]["cross_entropy"], rel=0.03)
    floor = demo.surprisal(N_ROWS, seed=seed)[:, :-1].mean().item()
    assert floor < measured < 1.05 * floor
    stated_excess = record["held_out"]["cross_entropy"] - record["held_out"]["surprisal"]
    assert measured - floor == pytest.approx(stated_excess, abs=0.0005)


def test_loss_agrees_with_transformer_lens(model, losses) -> None:
    with torch.no_grad():
        assert model(demo.tokens(N_ROWS), return_type="loss").item() == pytest.approx(losses[0].mean().item(), rel=1e-4)


def test_every_rule_was_learned(losses) -> None:
    excess = losses[0] - demo.surprisal(N_ROWS)[:, :-1]
    for name, mask in demo.rules(N_ROWS).items():
        assert excess[mask[:, :-1]].mean() < 0.1, name


def test_shuffled_stories_are_not_predicted(model) -> None:
    rows = demo.tokens(32)
    order = 1 + torch.randperm(63, generator=torch.Generator().manual_seed(0))
    shuffled = torch.cat([rows[:, :1], rows[:, order]], dim=1)
    with torch.no_grad():
        assert next_token_losses(model, shuffled).mean() > 3


def test_files_are_small_and_plain_data() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_DIR.iterdir()}
    assert set(files) == {WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE}
    assert sum(files.values()) < 3_000_000


@pytest.mark.parametrize("missing", ["transformer_lens", "transformers"])
def test_a_missing_library_names_the_install_command(missing: str, monkeypatch) -> None:
    for name in [missing, *(name for name in sys.modules if name.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r'pip install "param_features\[lens\]"'):
        demo.load_model()


def test_the_same_model_as_gpt2_says_the_same(model) -> None:
    pytest.importorskip("transformers")
    before = torch.random.get_rng_state()
    gpt2, tokenizer = demo.load_hf()
    assert torch.equal(torch.random.get_rng_state(), before)
    rows = demo.tokens(8)
    with torch.no_grad():
        assert (gpt2(rows).logits - model(rows)).abs().max() < 1e-4
    assert tokenizer(demo.stories(1)[0])["input_ids"] == model.tokenizer(demo.stories(1)[0])["input_ids"]

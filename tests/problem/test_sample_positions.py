"""Which positions of an output are samples: every model whose outputs have positions, every way to choose among them."""

import json
from functools import cache

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.cli.options import positions_of
from param_features.errors import InputError, OutputError, SettingError, StoreError
from param_features.gradients import GradientEngine
from param_features.params import adapter_for
from param_features.problem import KL, ModelInputs, SamplePositions, inspect_output
from tests.models import integers, normal, randomised

D_VOCAB = 11
QUICK = {"n_features": 3, "l0": 1, "progress": False, "fit": pf.FitSettings(steps=3, batch_size=32)}


class Decoder(nn.Module):
    """An encoder and a decoder: tokens on either side, logits at the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(D_VOCAB, 6), nn.Linear(6, 6), nn.Linear(6, D_VOCAB)

    def forward(self, input_ids, decoder_input_ids, attention_mask=None, decoder_attention_mask=None):
        source = self.embed(input_ids)
        source = source if attention_mask is None else source * attention_mask.unsqueeze(-1)
        mixed = torch.tanh(self.mix(source)).mean(1, keepdim=True)
        return self.lm_head(torch.tanh(self.embed(decoder_input_ids).cumsum(1) + mixed))


class Frames(nn.Module):
    """Sound to logits of frames, two numbers a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.lm_head = nn.Linear(2, 6), nn.Linear(6, D_VOCAB)

    def forward(self, sound):
        return self.lm_head(torch.tanh(self.mix(sound.unflatten(1, (-1, 2)))).cumsum(1))


class Language(nn.Module):
    """Tokens to logits, each position of those up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(D_VOCAB, 6), nn.Linear(6, 6), nn.Linear(6, D_VOCAB)

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.mix(self.embed(tokens))).cumsum(1))


ROWS = 24
# The module, its arguments, how many positions its outputs have, and what else `decompose` is told.
CASES = {
    "encoder-decoder": (
        Decoder, {"input_ids": integers(D_VOCAB, ROWS, 7), "decoder_input_ids": integers(D_VOCAB, ROWS, 4)}, 4, {},
    ),
    "its arguments in order": (Decoder, (integers(D_VOCAB, ROWS, 7), integers(D_VOCAB, ROWS, 4)), 4, {}),
    "encoder-decoder of equal lengths": (
        Decoder, {"input_ids": integers(D_VOCAB, ROWS, 4), "decoder_input_ids": integers(D_VOCAB, ROWS, 4).flip(0)}, 4, {},
    ),
    "frames": (Frames, normal(ROWS, 10), 5, {"divergence": "kl"}),
    "output cut": (Language, integers(D_VOCAB, ROWS, 8), 5, {"output": lambda out: out[:, 2:-1]}),
}  # fmt: skip


@cache
def model_of(name: str) -> nn.Module:
    return randomised(CASES[name][0]().double())


def decomposed(name: str, positions="all") -> pf.ParamFeatures:
    _, inputs, _, call = CASES[name]
    return pf.decompose(model_of(name), "mix.weight", inputs=inputs, positions=positions, **call, **QUICK)


@cache
def fitted(name: str) -> pf.ParamFeatures:
    return decomposed(name)


def by_autograd(model, features, name, row, position):
    """⟨∇ KL, v⟩ of one sample, averaged over the references."""
    _, inputs, _, call = CASES[name]
    args = tuple(inputs.values()) if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    output = call.get("output", lambda out: out)(model(*(tensor[[row]] for tensor in args)))[0, position]
    value = torch.stack([KL().value(output[None], reference[None].double())[0] for reference in features.references]).mean()
    (gradient,) = torch.autograd.grad(value, model.mix.weight)
    return torch.einsum("foi,oi->f", features.v_in.materialize()["mix.weight"].double(), gradient)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("route", ["vjp", "jvp"])
def test_every_position_of_an_output_is_a_sample_of_its_own(name, route):
    model, features = model_of(name), fitted(name)
    inputs, n_pos = CASES[name][1:3]
    assert (features.divergence.name, features.references.shape[1]) == ("kl", D_VOCAB)
    found = features.activations(inputs=inputs, route=route)
    assert found.shape == (ROWS, n_pos, 3)
    for row, position in ((0, 0), (3, n_pos - 1), (5, 1)):
        expected = by_autograd(model, features, name, row, position).float()
        torch.testing.assert_close(found[row, position].float(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("positions", ["last", 1, -2, slice(1, -1)], ids=str)
def test_only_chosen_positions_are_samples(name, positions, monkeypatch):
    harvested = []
    each_slot = GradientEngine.each_slot

    def watched(engine, inputs, positions, cotangent_of, consume):
        harvested.append((inputs, positions))
        return each_slot(engine, inputs, positions, cotangent_of, consume)

    inputs, n_pos = CASES[name][1:3]
    wanted = (
        list(range(n_pos))[positions]
        if isinstance(positions, slice)
        else [{"last": n_pos - 1, -2: n_pos - 2}.get(positions, 1)]
    )
    every = fitted(name)
    monkeypatch.setattr(GradientEngine, "each_slot", watched)
    features = decomposed(name, positions)
    sampled = {int(p) for rows, places in harvested if len(rows) > 2 for p in places.flatten()}
    assert sampled == set(wanted)
    monkeypatch.undo()
    assert features.metrics["n_samples"] + features.metrics["n_held_out"] == ROWS * len(wanted)
    for route in ("vjp", "jvp"):
        found = features.activations(inputs=inputs, route=route)
        unlike = [position for position in range(n_pos) if position not in wanted]
        assert not found[:, unlike].any()
        same = every.with_directions(features.v_out, features.v_in).activations(
            inputs=inputs, route=route, reference="uniform"
        )
        at_same = features.activations(inputs=inputs, route=route, reference="uniform")
        torch.testing.assert_close(at_same[:, wanted], same[:, wanted], rtol=1e-4, atol=1e-7)
    assert {example.position for example in features.top_examples(0, 4)} <= set(wanted)
    assert len(features.samples()[0]) == len(features.examples) * len(wanted)
    assert features.densities().shape == (3,)


LENGTHS = (3, 5, 1)
RAGGED = [list(range(1, length + 1)) for length in LENGTHS]


def encoded(side: str) -> ModelInputs:
    """The ragged rows, padded."""
    tokens, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.bool)
    for row, ids in enumerate(RAGGED):
        where = slice(6 - len(ids), None) if side == "left" else slice(0, len(ids))
        tokens[row, where], mask[row, where] = torch.tensor(ids), True
    return ModelInputs((tokens,), {}, mask)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "chosen",
    ["all", "last", 0, 2, -1, -3, slice(1, None), slice(-2, None), slice(None, None, 2), slice(None, None, -2)],
    ids=str,
)
def test_positions_are_counted_as_a_list_counts_them_without_padding(side, chosen):
    spec = {"all": slice(None), "last": slice(-1, None)}.get(chosen) if isinstance(chosen, str) else chosen
    found = SamplePositions(chosen).located(adapter_for(Language()), encoded(side))
    for row, ids in enumerate(RAGGED):
        expected = (
            ids[spec] if isinstance(spec, slice) else ids[spec : spec + 1 or None] if -len(ids) <= spec < len(ids) else []
        )
        mask = found.mask if found.samples is None else found.samples
        assert sorted(found.tokens[row, mask[row]].tolist()) == sorted(expected)
    assert [[ids[place] for own, place in found.sample_places.tolist() if own == row] for row, ids in enumerate(RAGGED)] == [
        found.tokens[row, mask[row]].tolist() for row in range(3)
    ]


def of_tokens(tokens):
    """A function of the tokens: at those above 4."""
    return tokens > 4


TOKENS = integers(D_VOCAB, ROWS, 8)
MASK = torch.zeros(ROWS, 8, dtype=torch.bool).index_fill(1, torch.tensor([2, 5]), True)


@pytest.mark.parametrize(
    "positions", ["last", 3, slice(1, -2), MASK, of_tokens], ids=["last", "3", "slice", "mask", "function"]
)
def test_a_fit_remembers_its_positions(positions, tmp_path):
    model = randomised(Language().double())
    features = pf.decompose(model, "mix.weight", TOKENS, positions=positions, **QUICK)
    features.save_pretrained(tmp_path)
    function = positions if positions is of_tokens else None
    if function is not None:
        with pytest.raises(SettingError, match="positions=of_tokens, which is code and was not saved"):
            pf.load(tmp_path, model=model)
    loaded = pf.load(tmp_path, model=model, positions=function)
    assert torch.equal(loaded.examples.samples, features.examples.samples)
    assert loaded.top_examples(0, 3) == features.top_examples(0, 3)
    for one in (features, loaded):
        is_sample = one.activations(TOKENS).ne(0).any(-1)
        if positions is MASK:
            assert is_sample.all()  # truth values speak of the data that they were given with
        else:
            expected = of_tokens(TOKENS) if function else torch.zeros(8, dtype=torch.bool).index_fill(
                0, torch.arange(8)[positions if positions != "last" else -1].reshape(-1), True).expand(ROWS, 8)  # fmt: skip
            assert torch.equal(is_sample, expected)
    assert pf.load(tmp_path).v_out.n_features == 3
    record = json.loads((tmp_path / "config.json").read_text())["config"]["positions"]
    assert record == {"last": "last", "3": 3, "slice(1, -2, None)": {"slice": [1, -2, None]}}.get(str(positions), record)


def test_all_positions_leave_no_entry_so_that_every_version_reads_it(tmp_path):
    features = pf.decompose(randomised(Language()), "mix.weight", TOKENS, **QUICK)
    assert "positions" not in features.config
    assert features.examples.samples is None


RECORDS = [
    "first", True, 1.5, {}, {"slice": [0, 1]}, {"slice": [0, 1, 0]}, {"mask": []}, {"mask": ["012"]}, {"function": 1},
    {"mask": ["01"], "slice": [0, 1, 1]},
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_record_that_says_no_positions_is_refused(record, tmp_path):
    features = pf.decompose(randomised(Language()), "mix.weight", TOKENS, positions="last", **QUICK)
    object.__setattr__(features, "config", {**features.config, "positions": record})
    features.save_pretrained(tmp_path)
    with pytest.raises(StoreError, match="positions"):
        pf.load(tmp_path)


@pytest.mark.parametrize("positions", ["last", slice(2, 6), of_tokens, MASK], ids=["last", "slice", "function", "mask"])
def test_stores_sweeps_and_estimates_take_the_same_samples(positions, tmp_path):
    model = randomised(Language().double())
    call = {"positions": positions, "n_samples": 40}
    in_memory = pf.decompose(model, "mix.weight", TOKENS, **call, **QUICK)
    store = pf.harvest(model, "mix.weight", TOKENS, directory=tmp_path / "store", progress=False, **call)
    given = {"positions": positions} if positions is of_tokens or positions is MASK else {}
    if given:
        with pytest.raises(SettingError, match="with your own positions="):
            pf.decompose(model, store=store, **QUICK)
    from_store = pf.decompose(model, store=store, **given, **QUICK)
    assert torch.equal(from_store.v_out.tensors[0], in_memory.v_out.tensors[0])
    assert dict(from_store.metrics) == dict(in_memory.metrics)
    assert torch.equal(from_store.examples.samples, in_memory.examples.samples)
    with pytest.raises(StoreError, match="positions="):
        pf.decompose(model, store=store, positions=slice(0, 1), **QUICK)
    sizes = {"n_features": 3, "l0": 1}
    swept = pf.sweep(model, store=store, **given, **sizes, fit=QUICK["fit"], progress=False, directory=tmp_path / "sweep")
    assert torch.equal(swept.fits[0].v_out.tensors[0], in_memory.v_out.tensors[0])
    estimated = pf.estimate(model, "mix.weight", TOKENS, **call, **sizes, fit=QUICK["fit"])
    assert estimated.n_samples == in_memory.metrics["n_samples"] + in_memory.metrics["n_held_out"]


def test_rows_without_a_sample_are_left_out_with_a_notice():
    model, tokens = randomised(Language()), TOKENS.clone()
    tokens[:5] = 1
    with pytest.warns(pf.errors.Notice, match="5 of 24 rows are left out"):
        features = pf.decompose(model, "mix.weight", tokens, positions=of_tokens, **QUICK)
    assert of_tokens(features.examples.tokens).any(1).all()
    assert not features.activations(tokens)[:5].any()
    assert features.errors_by_l0(tokens, n_samples=20).n_samples > 0
    with pytest.raises(InputError, match="leaves no samples: none of the 5 rows"):
        pf.decompose(model, "mix.weight", tokens[:5], positions=of_tokens, **QUICK)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("lst", "Accepted: 'all', 'last'.*nearest: 'last'"),
        (1.0, "positions=1.0"),
        (True, "positions=True"),
        (slice(0, 1, 0), "positions=slice"),
        (slice("a"), "positions=slice"),
        (torch.ones(3, 4), r"float32 of shape \(3, 4\)"),
    ],
)
def test_what_is_no_choice_of_positions_is_refused_before_the_model_runs(positions, message):
    with pytest.raises(SettingError, match=message):
        pf.decompose(Language(), "mix.weight", TOKENS, positions=positions, **QUICK)


def test_a_mask_of_another_shape_is_refused_and_so_is_a_function_that_gives_one():
    for positions in (MASK[:, 1:], lambda tokens: tokens[:, 1:] > 4, lambda tokens: tokens):
        with pytest.raises(InputError, match=r"truth values of shape \[24, 8\]"):
            pf.decompose(Language(), "mix.weight", TOKENS, positions=positions, **QUICK)


def test_outputs_without_positions_have_none_to_choose():
    with pytest.raises(SettingError, match="positions='last', but the output of shape .2, 4. has no positions"):
        pf.decompose(nn.Linear(6, 4), "weight", inputs=normal(20, 6).float(), positions="last", **QUICK)
    with pytest.raises(SettingError, match="pairs of prompts are compared at their last"):
        pairs = pf.Pairs(TOKENS, TOKENS.flip(0))
        pf.decompose(Language(), "mix.weight", reference=pairs, positions="last", **QUICK)
    with pytest.raises(InputError, match="function of the tokens, and no tokens"):
        pf.decompose(Frames(), "mix.weight", inputs=normal(20, 10).float(), positions=of_tokens, **QUICK)


def test_an_output_with_more_axes_than_can_be_read_is_refused_with_the_way_out():
    model, images = nn.Conv2d(1, 4, 3), normal(20, 1, 6, 6).float()
    for call in ({"divergence": "kl"}, {"positions": slice(None)}):
        with pytest.raises(OutputError, match=r"shape \(2, 4, 4, 4\).*flatten\(2\)\.mT makes every place a sample"):
            pf.decompose(model, "weight", inputs=images, **call, **QUICK)
    assert pf.decompose(model, "weight", inputs=images, **QUICK).activations(inputs=images).shape == (20, 3)
    features = pf.decompose(model, "weight", inputs=images, divergence="kl", output=lambda o: o.flatten(2).mT, **QUICK)
    assert features.activations(inputs=images).shape == (20, 16, 3)


def test_squared_error_of_numbers_takes_an_input_as_a_sample_unless_positions_are_chosen():
    model, series = nn.Linear(3, 2), normal(20, 5, 3).float()
    assert pf.decompose(model, "weight", inputs=series, **QUICK).activations(inputs=series).shape == (20, 3)
    features = pf.decompose(model, "weight", inputs=series, positions=slice(None), **QUICK)
    assert features.activations(inputs=series).shape == (20, 5, 3)
    assert inspect_output(adapter_for(model), ModelInputs((series,), {})).per_position is False


def test_a_decoders_own_mask_says_what_is_padding():
    ids, tokens = integers(D_VOCAB, ROWS, 7), integers(D_VOCAB, ROWS, 7).flip(0)
    encoder, decoder = torch.ones(ROWS, 7, dtype=torch.long), torch.ones(ROWS, 7, dtype=torch.long)
    encoder[:, 2:], decoder[:, 5:] = 0, 0
    given = {"input_ids": ids, "decoder_input_ids": tokens, "attention_mask": encoder, "decoder_attention_mask": decoder}
    features = pf.decompose(randomised(Decoder()), "mix.weight", inputs=given, **QUICK)
    found = features.activations(inputs=given)
    assert torch.equal(found.ne(0).any(-1), decoder.bool())
    assert features.examples.token_rows[0] == features.examples.tokens[0, :5].tolist()


def test_padding_of_unknown_place_is_refused():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lm_head = nn.Embedding(D_VOCAB, 6), nn.Linear(6, D_VOCAB)

        def forward(self, input_ids, attention_mask):
            return self.lm_head((self.embed(input_ids) * attention_mask.unsqueeze(-1)).unflatten(1, (-1, 2)).mean(2))

    given = {"input_ids": TOKENS, "attention_mask": torch.ones(ROWS, 8, dtype=torch.long)}
    given["attention_mask"][:, 6:] = 0
    with pytest.raises(InputError, match=r"not known which of these are padding.*shape \[24, 4\]"):
        pf.decompose(randomised(Pooled()), "lm_head.weight", inputs=given, **QUICK)
    own = torch.ones(ROWS, 4, dtype=torch.bool)
    own[:, 3] = False
    features = pf.decompose(randomised(Pooled()), "lm_head.weight", inputs=given, positions=own, **QUICK)
    assert not features.examples.samples[:, 3].any()


def test_steering_speaks_of_the_positions_that_activations_have():
    model, inputs = randomised(Language().double()), TOKENS
    features = pf.decompose(model, "mix.weight", inputs, positions="last", **QUICK)
    where = features.activations(inputs)[..., 0] != 0
    plain = model(inputs)
    with features.steer({0: 1.0}, where=where):
        moved = (model(inputs) - plain).norm(dim=-1)
    assert torch.equal(moved > 1e-9, where)


def test_reports_and_comparisons_read_chosen_positions(tmp_path):
    pytest.importorskip("plotly")
    for name in ("encoder-decoder", "frames"):
        features = decomposed(name, "last")
        page = features.report(tmp_path / "page.html", inputs=CASES[name][1], n_examples=2)
        assert page.stat().st_size > 1000
    assert pf.match(features, features, inputs=CASES["frames"][1]).mean_cosine > 0.99


@pytest.mark.parametrize(
    ("text", "positions"),
    [("all", "all"), ("last", "last"), ("3", 3), ("-1", -1), ("10:-1", slice(10, -1)), ("::2", slice(None, None, 2))],
)
def test_the_command_line_reads_positions(text, positions):
    assert positions_of(text) == positions


@pytest.mark.parametrize("text", ["first", "", "1:2:3:4", "a:b", "::0"])
def test_the_command_line_refuses_other_words(text):
    with pytest.raises(SettingError, match="positions="):
        positions_of(text)


def test_a_track_fits_and_measures_chosen_positions():
    model = randomised(Language())
    steps = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(2)]
    steps[0]["mix.weight"] *= 0.5
    call = {"n_features": 3, "l0": 1, "fit": QUICK["fit"], "positions": "last"}
    track = pf.track(steps, model, TOKENS, params="mix.weight", fit=call, n_samples=20, progress=False)
    assert track.features.config["positions"] == "last"
    assert track.features.metrics["n_samples"] + track.features.metrics["n_held_out"] == ROWS
    assert track.impact.isfinite().all()


def test_an_audit_reads_chosen_positions():
    features = pf.decompose(randomised(Language()), "mix.weight", TOKENS, positions=slice(2, 4), **QUICK)
    settings = pf.AuditSettings(n_features=2, n_rows=6, n_starts=1, n_climbs=1, n_sets=1, n_deletions=2)
    audit = features.audit(TOKENS[:6], refit=TOKENS, settings=settings)
    assert {row.name for row in audit.rows} >= {"additivity", "deletion", "stability"}

"""Finding a saved parameter in a model that may call it, and store it, otherwise."""

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import FingerprintError, UnknownParameterError
from param_features.params import ParamRecord, adapter_for, fingerprint, matching_views, select
from tests.models import normal, randomised

QUICK = {"n_features": 4, "l0": 1, "fit": pf.FitSettings(steps=4, rank=2), "progress": False}
TOKENS = torch.randint(7, (60, 5), generator=torch.Generator().manual_seed(0))


class Original(nn.Module):
    """Tokens to logits, by linear layers that store [d_out, d_in]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.up, self.lm_head = nn.Linear(4, 6), nn.Linear(6, 7, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        mixed = torch.softmax(self.query(x) @ self.key(x).mT, -1).tril() @ x
        return self.lm_head(torch.tanh(self.up(mixed)))


class Table(nn.Module):
    """y = x W + b, as TransformerLens and GPT-2 store it: [d_in, d_out]."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(d_in, d_out)), nn.Parameter(torch.zeros(d_out))

    def forward(self, x):
        return x @ self.weight + self.bias


Table.__module__, Table.__name__ = "transformers.pytorch_utils", "Conv1D"  # so that its fold and its rule are those


class Renamed(nn.Module):
    """The same function under other names, the matrix of `up` stored transposed."""

    def __init__(self, original: Original) -> None:
        super().__init__()
        self.wte, self.q_proj, self.k_proj = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.c_fc, self.head = Table(4, 6), nn.Linear(6, 7, bias=False)
        self.double()
        pairs = ((self.wte, "embed"), (self.q_proj, "query"), (self.k_proj, "key"), (self.head, "lm_head"))
        for layer, name in pairs:
            layer.load_state_dict(getattr(original, name).state_dict())
        with torch.no_grad():
            self.c_fc.weight.copy_(original.up.weight.T)
            self.c_fc.bias.copy_(original.up.bias)

    def forward(self, tokens):
        x = self.wte(tokens)
        mixed = torch.softmax(self.q_proj(x) @ self.k_proj(x).mT, -1).tril() @ x
        return self.head(torch.tanh(self.c_fc(mixed)))


class FusedAttention(nn.MultiheadAttention):
    """Queries and keys of the original in one tensor; values and output are the identity."""

    def scores(self, x):
        q, k, _ = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return torch.softmax(q @ k.mT, -1).tril()


class Fused(Renamed):
    def __init__(self, original: Original) -> None:
        super().__init__(original)
        self.attention = FusedAttention(4, 1, dtype=torch.float64)
        with torch.no_grad():
            for kind in ("weight", "bias"):
                held = (getattr(self.q_proj, kind), getattr(self.k_proj, kind))
                getattr(self.attention, f"in_proj_{kind}")[:8].copy_(torch.cat(held))
        del self.q_proj, self.k_proj

    def forward(self, tokens):
        x = self.wte(tokens)
        return self.head(torch.tanh(self.c_fc(self.attention.scores(x) @ x)))


@pytest.fixture(scope="module")
def original():
    return randomised(Original().double())


@pytest.fixture
def renamed(original):
    return Renamed(original).eval()


@pytest.fixture
def fused(original):
    return Fused(original).eval()


def records_of(model, params) -> dict[str, ParamRecord]:
    adapter = adapter_for(model)
    subset = select(adapter.views(), params, adapter.aliases(), adapter.parts())
    return {view.name: ParamRecord.of(view, fingerprint(view)) for view in subset.views}


def found_in(model, records) -> list[str]:
    return [view.name for view in matching_views(adapter_for(model), records)]


def test_a_name_with_the_same_weights_is_taken_though_others_hold_the_same(original):
    model = Original().double()
    model.load_state_dict(original.state_dict())
    model.query.load_state_dict(original.key.state_dict())
    assert found_in(model, records_of(original, "key.weight")) == ["key.weight"]
    assert found_in(model, records_of(model, ["key.weight", "query.weight"])) == ["query.weight", "key.weight"]


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ("key.weight", ["k_proj.weight"]),
        ("up.weight", ["c_fc.weight"]),
        ("embed.weight", ["wte.weight"]),
        ("key.bias", ["k_proj.bias"]),
        (["key.*", "up.weight"], ["k_proj.weight", "k_proj.bias", "c_fc.weight"]),
    ],
    ids=str,
)
def test_weights_are_found_under_another_name(original, renamed, saved, names):
    records = records_of(original, saved)
    assert found_in(renamed, records) == names
    assert found_in(renamed, dict(reversed(records.items()))) == names[::-1]


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ("key.weight", ["attention.in_proj_weight[k]"]),
        (["query.bias", "key.weight"], ["attention.in_proj_bias[q]", "attention.in_proj_weight[k]"]),
    ],
    ids=str,
)
def test_weights_are_found_in_part_of_a_fused_matrix_and_back(original, fused, saved, names):
    assert found_in(fused, records_of(original, saved)) == names
    records = records_of(fused, names)
    assert set(found_in(original, records)) == set(records_of(original, saved))


def test_aliases_are_names_too(original):
    model = Original().double()
    model.load_state_dict(original.state_dict())
    model.again = model.key
    record = records_of(original, "key.weight")["key.weight"]
    assert found_in(model, {"again.weight": record}) == ["key.weight"]


def test_a_name_with_other_weights_gives_way_to_the_same_weights_elsewhere(original):
    model = Original().double()
    model.load_state_dict(original.state_dict())
    model.query, model.key = model.key, model.query
    assert found_in(model, records_of(original, ["key.weight", "query.bias"])) == ["key.bias", "query.weight"]


class TestRefusals:
    def test_several_with_the_same_weights(self, original, renamed):
        renamed.q_proj.load_state_dict(renamed.k_proj.state_dict())
        with pytest.raises(FingerprintError, match=r"'key.weight' could be 'q_proj.weight', 'k_proj.weight': they hold"):
            found_in(renamed, records_of(original, "key.weight"))

    def test_other_weights_under_the_name(self, original):
        model = Original().double()
        model.load_state_dict(original.state_dict())
        with torch.no_grad():
            model.key.weight[0, 0] += 1e-12
        with pytest.raises(FingerprintError, match=r"'key.weight' has other weights.*same processing"):
            found_in(model, records_of(original, "key.weight"))

    def test_another_dtype(self, original):
        model = Original()
        model.load_state_dict(original.state_dict())
        with pytest.raises(FingerprintError, match=r"'key.weight' has other weights.*another dtype"):
            found_in(model, records_of(original, "key.weight"))

    def test_another_shape_under_the_name(self, original):
        model = Original().double()
        model.up = nn.Linear(4, 5)
        with pytest.raises(FingerprintError, match=r"'up.weight' has shape \(5, 4\) in this model.*found on \(6, 4\)"):
            found_in(model, records_of(original, "up.weight"))

    def test_neither_name_nor_weights(self, original, renamed):
        with torch.no_grad():
            renamed.k_proj.weight.add_(1)
        message = r"no 'key.weight', and none of its 2 parameters of that size.*Nearest names: .*weight'"
        with pytest.raises(UnknownParameterError, match=message):
            found_in(renamed, records_of(original, "key.weight"))

    @pytest.mark.parametrize("is_tied", [True, False])
    def test_a_weight_tied_in_one_model_only(self, original, is_tied):
        tied = Original().double()
        tied.load_state_dict(original.state_dict())
        tied.query.weight = tied.key.weight
        tied.key.load_state_dict(original.key.state_dict())
        models, counts = ((original, tied), (1, 2)) if not is_tied else ((tied, original), (2, 1))
        name = "key.weight" if not is_tied else "query.weight"
        refused = rf"held by {counts[0]} module\(s\).* is held by {counts[1]} here"
        with pytest.raises(FingerprintError, match=refused):
            found_in(models[1], records_of(models[0], name))


def test_two_saved_parameters_are_never_bound_to_one(original):
    both, one = (Original().double() for _ in range(2))
    both.load_state_dict(original.state_dict())
    both.query.load_state_dict(original.key.state_dict())
    one.load_state_dict(original.state_dict())
    with pytest.raises(FingerprintError, match=r"'query.weight'"):
        found_in(one, records_of(both, ["key.weight", "query.weight"]))


@pytest.mark.parametrize("target", ["renamed", "fused"])
@pytest.mark.parametrize("saved", [["key.weight", "up.weight", "up.bias"], ["up.weight", "query.weight"]], ids=str)
def test_features_move_to_another_model_and_mean_the_same(original, target, saved, request, tmp_path):
    model = request.getfixturevalue(target)
    torch.testing.assert_close(model(TOKENS), original(TOKENS))
    features = pf.decompose(original, saved, TOKENS, **QUICK)
    features.save_pretrained(tmp_path)
    moved = pf.load(tmp_path, model=model)
    names = dict(zip(features.params, moved.params, strict=True))
    assert names["up.weight"] == "c_fc.weight"
    assert list(moved.v_in.factors) == list(moved.v_out.factors) == list(moved.params) == list(moved.engine.subset.names)
    for old, new in names.items():
        for before, after in ((features.v_in, moved.v_in), (features.v_out, moved.v_out)):
            assert all(torch.equal(one, two) for one, two in zip(before.factors[old], after.factors[new], strict=True))
        assert moved.params[new].fingerprint == features.params[old].fingerprint
        assert moved.params[new].shape == tuple(moved.engine.subset[new].shape)
    old, new = features.direction(2), moved.direction(2)
    torch.testing.assert_close(new["c_fc.weight"], old["up.weight"].T)
    assert {name: tuple(tensor.shape) for name, tensor in new.items()} == {
        name: record.shape for name, record in moved.params.items()
    }
    for route in ("vjp", "jvp"):
        torch.testing.assert_close(
            moved.activations(TOKENS[:3], route=route), features.activations(TOKENS[:3], route=route), rtol=1e-6, atol=1e-9
        )
    moved.save_pretrained(tmp_path / "again")
    back = pf.load(tmp_path / "again", model=original)
    assert list(back.params) == list(features.params)
    assert back.params == features.params


def test_a_tied_fit_stays_tied(original, renamed):
    fit = pf.FitSettings(steps=4, selection="l1")
    features = pf.decompose(original, "key.weight", TOKENS, **QUICK | {"fit": fit})
    assert features.v_in is features.v_out
    from param_features.run import bind

    moved = bind(features, renamed)
    assert moved.v_in is moved.v_out
    assert list(moved.v_in.factors) == ["k_proj.weight"]


def test_inputs_that_are_no_tokens_serve_as_examples_too(tmp_path):
    first, second = (randomised(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()) for _ in range(2))
    second = nn.Sequential(second)
    second.load_state_dict({f"0.{name}": value for name, value in first.state_dict().items()})
    features = pf.decompose(first, "0.weight", inputs=normal(40, 4), **QUICK)
    features.save_pretrained(tmp_path)
    moved = pf.load(tmp_path, model=second)
    assert list(moved.params) == ["0.0.weight"]
    for mine, theirs in zip(moved.top_examples(0, 3), features.top_examples(0, 3), strict=True):
        assert mine.row == theirs.row
        assert mine.activation == pytest.approx(theirs.activation)

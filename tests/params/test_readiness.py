"""Models as users bring them: what is refused with the way out, and what is run and left as it was."""

import copy

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import ModelStateError, NoGradientError, NonFiniteError, Notice, OutputError, SettingError
from param_features.gradients import Harvester
from tests.adapters.zoo import assert_same, hf_gpt2, snapshot, tokenizer
from tests.models import Classifier, Recurrent, normal, randomised
from tests.oracle import assert_equal_gradients, assert_every_route_agrees, case_of

QUICK = {"n_features": 3, "l0": 1, "steps": 4, "progress": False}
X = normal(40, 4).float()


def decomposed(model, params="layer.weight", *, inputs=X, **changes) -> pf.ParamFeatures:
    return pf.decompose(model, params, inputs=inputs, **QUICK | changes)


class Layer(nn.Module):
    """One linear layer whose output a function changes."""

    def __init__(self, make=lambda y: y) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 5), make

    def forward(self, x):
        return self.make(self.layer(x))


class Normed(nn.Module):
    """A linear layer followed by another."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__()
        self.layer, self.after = nn.Linear(4, 4), nn.Sequential(*after)

    def forward(self, x):
        return self.after(self.layer(x))


class TestWeightsThatAreNotThere:
    def test_a_module_on_the_meta_device(self):
        model = Layer()
        model.layer.bias = nn.Parameter(torch.empty(5, device="meta"))
        with pytest.raises(ModelStateError, match=r"'layer.bias' is on the meta device.*Load the checkpoint.*to_empty"):
            decomposed(model)

    def test_a_hugging_face_model_made_on_the_meta_device(self):
        config = pytest.importorskip("transformers").GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8)
        with torch.device("meta"):
            model = type(hf_gpt2())(config)
        with pytest.raises(ModelStateError, match=r"'transformer.wte.weight' is on the meta device.*from_pretrained does"):
            pf.decompose(model, "transformer.h.0.attn.c_attn.weight", torch.zeros(40, 8, dtype=torch.long), **QUICK)

    def test_an_nnsight_wrapper_that_was_never_dispatched(self, real_folder):
        nnsight = pytest.importorskip("nnsight")
        wrapped = nnsight.TransformersModel(str(real_folder / "stories260K"), tokenizer=tokenizer(), task="text-generation")
        call = (wrapped, "model.layers.0.self_attn.k_proj.weight", torch.zeros(40, 8, dtype=torch.long))
        refused = pytest.raises(ModelStateError, match=r"nnsight loads weights on first use: call model.dispatch\(\)")
        with refused:
            pf.decompose(*call, **QUICK)

    def test_an_nnsight_wrapper_over_a_module_on_the_meta_device(self):
        wrapped = pytest.importorskip("nnsight").NNsight(nn.Linear(4, 4, device="meta"))
        with pytest.raises(ModelStateError, match=r"'weight' is on the meta device.*dispatch=True"):
            decomposed(wrapped, "weight")

    def test_loading_features_into_such_a_model(self, tmp_path):
        decomposed(Layer()).save_pretrained(tmp_path)
        with pytest.raises(ModelStateError, match="meta device"):
            pf.load(tmp_path, model=Layer().to("meta"))


class TestRowsThatInfluenceEachOther:
    @pytest.mark.parametrize(
        "model",
        [
            Normed(nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2, track_running_stats=False)),
            Normed(nn.BatchNorm1d(4, track_running_stats=False)),
            Layer(lambda y: y - y.mean(0)),
            Layer(lambda y: y / y.norm()),
            Layer(lambda y: y + y.flip(0)),
            Layer(lambda y: y.mean(0, keepdim=True).expand_as(y)),
        ],
        ids=["batch norm on sequences", "batch norm", "less the mean", "over the norm", "reversed", "mean"],
    )
    def test_are_refused(self, model):
        with pytest.raises(ModelStateError, match=r"(first input is another one|not on one alone).*running statistics"):
            decomposed(model)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("model", [Layer, lambda: Normed(nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 7)), Classifier])
    def test_ordinary_models_are_not(self, model, dtype):
        x = normal(40, 1, 6, 6) if model is Classifier else normal(40, 4)
        name = "conv.weight" if model is Classifier else "layer.weight"
        decomposed(randomised(model()).to(dtype), name, inputs=x.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_nor_are_language_models(self, dtype, tiny_tokens):
        pytest.importorskip("transformers")
        pf.decompose(hf_gpt2(dtype=dtype), "transformer.h.0.attn.c_attn.weight", tiny_tokens, **QUICK)


class TestTrainingMode:
    @pytest.fixture
    def model(self):
        model = randomised(Normed(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))).train()
        model.after[0].running_mean.fill_(0.5)
        model.after[0].running_var.fill_(2.0)
        model.layer.eval()
        return model

    def test_is_told_and_put_back_and_results_are_those_of_evaluation(self, model):
        before = snapshot(model)
        told = r"in training mode, in which BatchNorm1d, Dropout act otherwise. It is run in evaluation mode throughout"
        with pytest.warns(Notice, match=told) as notices:
            features = decomposed(model)
        assert {notice.filename for notice in notices} == {__file__}
        assert_same(before, snapshot(model))
        acts, logits = features.activations(inputs=X[:3]), features.top_logits(0)
        assert_same(before, snapshot(model))
        evaluated = decomposed(model.eval())
        assert torch.equal(features.v_out.tensors[0], evaluated.v_out.tensors[0])
        assert dict(features.metrics) == dict(evaluated.metrics)
        assert torch.equal(acts, evaluated.activations(inputs=X[:3]))
        assert logits == evaluated.top_logits(0)

    @pytest.mark.filterwarnings("error:.*training mode:param_features.errors.Notice")
    def test_says_nothing_where_it_makes_no_difference(self, capsys):
        decomposed(Layer().train())
        assert capsys.readouterr().err == ""


class Counting(nn.Module):
    """Counts its calls in a buffer, by changing it or by putting another in its place, and fails at a given call."""

    def __init__(self, how: str, fails_at: int | None = None) -> None:
        super().__init__()
        self.layer, self.how, self.fails_at = nn.Linear(4, 5), how, fails_at
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("last", None)
        self.n_calls = 0

    def forward(self, x):
        self.n_calls += 1
        if self.how == "in place":
            self.calls.add_(1)
        else:
            self.calls, self.last = self.calls + 1, x.detach().sum()
        if self.n_calls == self.fails_at:
            raise ZeroDivisionError
        return self.layer(x)


@pytest.mark.parametrize("how", ["in place", "by another"])
class TestBuffersThatTheModelChanges:
    def test_are_put_back_by_every_call(self, how):
        model = randomised(Counting(how))
        before = snapshot(model)
        features = decomposed(model)
        assert model.n_calls > 3
        assert_same(before, snapshot(model))
        features.activations(inputs=X[:3], route="vjp")
        features.top_examples(0)
        assert_same(before, snapshot(model))

    def test_are_put_back_by_forward_mode(self, how):
        model = randomised(Counting(how))
        before, features = snapshot(model), decomposed(model)
        try:
            forward, backward = (features.activations(inputs=X[:3], route=route) for route in ("jvp", "vjp"))
            features.top_logits(0)
        finally:
            assert_same(before, snapshot(model))
        torch.testing.assert_close(forward, backward)

    @pytest.mark.parametrize("fails_at", [1, 2, 4, 8])
    def test_are_put_back_after_an_error(self, how, fails_at):
        model = randomised(Counting(how, fails_at))
        before = snapshot(model)
        with pytest.raises(ZeroDivisionError):
            decomposed(model)
        assert_same(before, snapshot(model))


class Quantised(torch.Tensor):
    """A weight that keeps its values as bytes, as quantising libraries do."""

    @staticmethod
    def __new__(cls, values, scale):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values, scale) -> None:
        self.values, self.scale = values, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        plain = [arg.values * arg.scale if isinstance(arg, Quantised) else arg for arg in args]
        return func(*plain, **kwargs or {})


class TestWeightsWithoutGradients:
    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            (lambda: torch.ones(5, 4, dtype=torch.int8), r"'layer.weight' is torch\.int8.*without quantisation"),
            (lambda: Quantised(torch.ones(5, 4, dtype=torch.int8), 0.5), r"'layer.weight' is a Quantised.*plain weights"),
        ],
        ids=["int8", "subclass"],
    )
    def test_quantised_ones_are_refused_by_name_and_others_beside_them_are_not(self, weight, message):
        model = Layer()
        model.layer.weight = nn.Parameter(weight(), requires_grad=False)
        with pytest.raises(NoGradientError, match=message):
            decomposed(model)
        with pytest.raises(NoGradientError, match=message):
            decomposed(model, "*")
        if isinstance(model.layer.weight, Quantised):
            decomposed(model, "layer.bias")

    def test_those_made_under_inference_mode_are_refused(self):
        with torch.inference_mode():
            model = Layer()
        with pytest.raises(NoGradientError, match=r"'layer.weight' was made under torch.inference_mode"):
            decomposed(model)

    @pytest.mark.parametrize("params", ["after.0.weight", "*"])
    def test_lazy_ones_are_refused(self, params):
        with pytest.raises(ModelStateError, match=r"'after.0.weight' has no shape yet.*Run the model once"):
            decomposed(Normed(nn.LazyLinear(3)), params)


class TestOutput:
    MADE = {
        "tuple": (lambda y: (y, None), lambda out: out[0]),
        "dict": (lambda y: {"y": y}, lambda out: out["y"]),
        "tensor": (lambda y: torch.stack([y, 0 * y], 1), lambda out: out[:, 0]),
    }

    @pytest.mark.parametrize("kind", MADE)
    def test_the_users_function_gives_the_tensor(self, kind):
        make, take = self.MADE[kind]
        model = Layer(make)
        found = decomposed(model, output=take)
        model.make = lambda y: y
        plain = decomposed(model)
        assert torch.equal(found.v_out.tensors[0], plain.v_out.tensors[0])
        expected = plain.activations(inputs=X[:3])
        model.make = make
        for route in ("vjp", "jvp"):
            torch.testing.assert_close(found.activations(inputs=X[:3], route=route), expected)

    def test_other_answers_are_refused(self):
        model = Layer(lambda y: {"y": y})
        with pytest.raises(OutputError, match=r"output= gave a dict.*must give the tensor"):
            decomposed(model, output=lambda out: out)
        with pytest.raises(OutputError, match=r"Layer returned a dict.*output=lambda out"):
            decomposed(model)

    def test_it_is_code_and_must_be_given_again(self, tmp_path):
        def first(out):
            return out[0]

        model = randomised(Layer(lambda y: (y, None)))
        features = decomposed(model, output=first)
        features.save_pretrained(tmp_path)
        with pytest.raises(SettingError, match=r"found with output=first, which is code.*Pass it"):
            pf.load(tmp_path, model=model)
        loaded = pf.load(tmp_path, model=model, output=first)
        assert torch.equal(loaded.activations(inputs=X[:3]), features.activations(inputs=X[:3]))
        assert pf.load(tmp_path).n_features == 3


@pytest.mark.parametrize("route", ["vjp", "jvp"])
def test_outputs_that_are_not_finite_are_refused_by_either_route(route):
    features = decomposed(Layer(lambda y: y))
    features.engine.adapter.module.make = torch.sqrt
    with pytest.raises(NonFiniteError, match=r"output of shape .* holds NaN"):
        features.activations(inputs=X[:3], route=route)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(2, 5)

    def forward(self, x, y, *, scale=1.0):
        return scale * torch.tanh(self.left(x) * self.right(y))


Y = normal(41, 2)[1:].float()
SEQUENCES = normal(40, 5, 4)


@pytest.mark.parametrize(
    ("model", "params", "inputs"),
    [
        (TwoInputs(), ["left.weight", "right.weight"], (X, Y)),
        (TwoInputs(), ["left.bias", "right.weight"], {"y": Y, "x": X, "scale": 2.0}),
        (Recurrent().double(), "lstm.weight_hh_l0", SEQUENCES),
        (Recurrent().double(), ["lstm.weight_ih_l0[i|o]", "out.weight"], SEQUENCES),
        (Recurrent(), "lstm.weight_hh_l0", SEQUENCES.float()),
    ],
    ids=["tuple", "dict", "lstm", "parts of an lstm", "lstm in float32"],
)  # fmt: skip
def test_models_of_other_shapes(model, params, inputs):
    before = snapshot(randomised(model))
    features = decomposed(model, params, inputs=inputs)
    three = (
        {key: value[:3] if key != "scale" else value for key, value in inputs.items()}
        if isinstance(inputs, dict)
        else tuple(value[:3] for value in inputs)
        if isinstance(inputs, tuple)
        else inputs[:3]
    )
    forward, backward = (features.activations(inputs=three, route=route) for route in ("jvp", "vjp"))
    assert forward.norm() > 0
    torch.testing.assert_close(forward, backward, rtol=1e-4, atol=1e-7)
    assert len(features.top_examples(0, 2)) == 2
    features.top_logits(1)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
def test_gradients_in_half_precision_are_stored_in_float32_near_the_true_ones(dtype, tolerance, monkeypatch):
    model = randomised(Normed(nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 7))).to(dtype)
    exact = copy.deepcopy(model).double()
    stores, store = [], Harvester.store
    monkeypatch.setattr(Harvester, "store", lambda *a, **k: stores.append(store(*a, **k)) or stores[-1])
    for one in (model, exact):
        kind = dtype if one is model else torch.float64
        features = decomposed(one, ["layer.weight", "after.*"], inputs=X.to(dtype).to(kind), reference="mean")
        assert features.v_out.tensors[0].dtype == (torch.float32 if one is model else torch.float64)
    half, full = (joined(one) for one in (stores[0], stores[2]))
    for name, tensor in full.items():
        assert half[name].dtype == torch.float32
        assert (half[name] - tensor).norm() <= tolerance * tensor.norm(), name


def joined(store) -> dict[str, torch.Tensor]:
    chunks = list(store.chunks())
    return {name: torch.cat([chunk[name].dense().matrix for chunk in chunks]) for name in chunks[0]}


class Tied(nn.Module):
    """A table read by index, whose transpose gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.mix(self.embed(tokens).cumsum(1))))


def test_both_uses_of_a_tied_weight_count():
    model, tokens = randomised(Tied().double()), torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(0))
    case = case_of(model, "lm_head.weight", tokens=tokens)
    assert case.engine.subset.names == ("embed.weight",)
    assert_every_route_agrees(case)
    tied = case.gradients()[0]["embed.weight"]
    model.lm_head.weight = nn.Parameter(model.embed.weight.detach().clone())
    apart = case_of(model, ["embed.weight", "lm_head.weight"], tokens=tokens).gradients()[0]
    assert all(part.norm() > 1e-3 for part in apart.values())
    assert_equal_gradients({"embed.weight": tied}, {"embed.weight": sum(apart.values())})

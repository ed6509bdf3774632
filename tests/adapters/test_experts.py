"""Experts of a mixture: a name and a matrix each, gradients factored and autograd's, zero where no router sends anything."""

import ast
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import AdapterError, ExportError, NoGradientError, UnknownParameterError
from param_features.gradients import Factored
from param_features.params import adapter_for, select, selection
from tests.adapters.zoo import seeded
from tests.models import Between, built, normal
from tests.oracle import assert_equal_gradients, assert_every_route_agrees, case_of

transformers = pytest.importorskip("transformers", minversion="5")

TOKENS = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(1))
MANY = torch.randint(20, (40, 5), generator=torch.Generator().manual_seed(2))
CALL = {"n_features": 4, "l0": 1, "steps": 4, "progress": False}
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
SETTINGS = {
    **dict.fromkeys(COUNTS, 4), "hidden_size": 8, "intermediate_size": 8, "moe_intermediate_size": 8, "moe_hidden_size": 8,
    "hidden_act": "silu", "hidden_activation": "silu", "mlp_hidden_act": "relu2", "swiglu_alpha": 1.7, "swiglu_limit": 7.0,
    "rms_norm_eps": 1e-6, "moe_latent_size": None,
}  # fmt: skip
KINDS = {
    "mixtral": "MixtralExperts",
    "gpt_oss": "GptOssExperts",  # stored [in, out], with biases and a gate of its own
    "aria": "AriaExperts",  # stored [in, out]
    "nemotron_h": "NemotronHExperts",  # without a gate
    "deepseek_v4": "DeepseekV4Experts",  # clamps
}


class Mixture(nn.Module):
    """A plain language model with a router that sends every position to two experts."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.embed, self.router, self.experts, self.lm_head = (
            nn.Embedding(20, 8), nn.Linear(8, 4), experts, nn.Linear(8, 20)
        )  # fmt: skip
        self.never = -1

    def forward(self, tokens):
        x = self.embed(tokens)
        x = torch.tanh(x + 0.3 * x.cumsum(1))
        states = x.flatten(0, 1)
        routed = self.router(states)
        if self.never >= 0:
            routed = routed.index_fill(1, torch.tensor([self.never]), -1e9)
        weights, chosen = routed.softmax(-1).topk(2)
        return self.lm_head((x + self.experts(states, chosen, weights).view_as(x)).cumsum(1))


def mixture(kind: str, name: str, *, implementation: str = "eager", dtype=torch.float64) -> Mixture:
    config = SimpleNamespace(**SETTINGS, _experts_implementation=implementation)
    experts = getattr(import_module(f"transformers.models.{kind}.modeling_{kind}"), name)(config)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.zero_()
    return seeded(Mixture, experts, dtype=dtype)


def mixtral(**settings) -> Mixture:
    return mixture("mixtral", "MixtralExperts", **settings)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_factored_and_autograds(kind, implementation):
    dtype = torch.float32 if implementation == "grouped_mm" else torch.float64
    case = case_of(mixture(kind, KINDS[kind], implementation=implementation, dtype=dtype), "experts.*", tokens=TOKENS)
    assert not case.engine.routes.dense
    assert len(case.engine.subset.views) == 4 * len(list(case.model.experts.parameters()))
    assert_equal_gradients(case.gradients()[0], case.by_autograd(), 1e-4 if dtype == torch.float32 else 1e-9)


def _all_kinds() -> list[tuple[str, str]]:
    """Every layer of experts that transformers runs by its interface, read from the source without importing it."""
    found = []
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        if "use_experts_implementation" in (text := path.read_text()):
            classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
            decorated = [node for node in classes if any("use_experts" in ast.unparse(d) for d in node.decorator_list)]
            found += [(path.parent.name, node.name) for node in decorated]
    return found


@pytest.mark.slow
def test_every_layer_of_experts_of_transformers_has_the_rule():
    n_tried = 0
    for kind, name in _all_kinds():
        try:
            model = mixture(kind, name)
        except (AttributeError, KeyError):
            continue  # wants settings of its own
        case = case_of(model, "experts.*", tokens=TOKENS)
        experts = [name for name in case.engine.subset.names if "[" in name]
        expected, found = case.by_autograd(), case.gradients()[0]
        assert experts
        assert not set(experts) & set(case.engine.routes.dense), name
        assert_equal_gradients({n: found[n] for n in experts}, {n: expected[n] for n in experts}, 1e-5)
        n_tried += 1
    assert n_tried >= 30


def test_samples_that_no_router_sends_there_have_no_gradient():
    model = mixtral()
    case = case_of(model, "experts.down_proj[1]", tokens=MANY)
    chosen = []
    handle = model.experts.register_forward_pre_hook(lambda module, args: chosen.append(args[1]))
    model(MANY)
    handle.remove()
    is_sent = (chosen[0] == 1).any(-1).unflatten(0, MANY.shape)[:, :3].any(1)  # the positions up to the sample's
    found = []
    case.engine.each_slot(case.data, torch.full((40, 1), 2), lambda f, *_: f, lambda _, g: found.append(g))
    gradient = found[0]["experts.down_proj[1]"]
    assert isinstance(gradient, Factored)
    assert torch.equal(gradient.square_norm() > 0, is_sent)
    assert is_sent.any()
    assert not is_sent.all()


def test_an_expert_that_nothing_is_sent_to_is_refused_by_name():
    model = mixtral()
    model.never = 2
    with pytest.raises(NoGradientError, match=r"experts.down_proj\[2\].*zero gradient for every sample"):
        pf.decompose(model, "experts.down_proj[2]", MANY, **CALL)


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        ("experts.gate_up_proj[3]", "3"),
        ("*.gate_up_proj[0|2]", "02"),
        ("experts.gate_up_proj[*]", "0123"),
        ("experts.gate_up_proj", "0123"),  # a stack stands for its experts
        ("*gate_up*", "0123"),
    ],
)
def test_experts_are_chosen_by_name(spec, numbers):
    adapter = adapter_for(mixtral())
    subset = select(adapter.views(), spec, adapter.aliases(), adapter.parts())
    assert subset.names == tuple(f"experts.gate_up_proj[{number}]" for number in numbers)
    stack = adapter.module.experts.gate_up_proj
    for number, view in zip(numbers, subset.views, strict=True):
        assert torch.equal(view.tensor, stack[int(number)])
        assert torch.equal(view.to_matrix(view.tensor), stack[int(number)])


def test_a_matrix_that_is_stored_in_out_is_turned():
    adapter = adapter_for(mixture("gpt_oss", "GptOssExperts"))
    view, bias = adapter.parts()["experts.gate_up_proj[1]"], adapter.parts()["experts.gate_up_proj_bias[1]"]
    assert torch.equal(view.to_matrix(view.tensor), view.stored[1].T)
    assert torch.equal(bias.tensor, bias.stored[1])


def test_names_that_do_not_exist_get_near_ones():
    model = mixtral()
    with pytest.raises(UnknownParameterError, match=r"nearest: .*'experts.gate_up_proj\[3\]'"):
        pf.decompose(model, "experts.gate_up_proj[9]", MANY)
    listed = {info.name: info.parts for info in pf.list_params(model)}
    assert listed["experts.gate_up_proj"] == ("0", "1", "2", "3")
    assert listed["router.weight"] == ()


class Shared(nn.Module):
    """No experts, although it has an axis of that length."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.weight = 4, nn.Parameter(torch.ones(4, 3))


def test_a_router_is_no_stack():
    assert adapter_for(nn.Sequential(Shared())).parts() == {}


@pytest.fixture(scope="module")
def features():
    return pf.decompose(mixtral(implementation="grouped_mm", dtype=torch.float32), "experts.*[1]", MANY, **CALL)


def test_features_of_experts_are_saved_and_loaded(features, tmp_path):
    features.save_pretrained(tmp_path / "saved")
    model = features.engine.adapter.module
    loaded = pf.load(tmp_path / "saved", model=model)
    assert list(loaded.params) == ["experts.gate_up_proj[1]", "experts.down_proj[1]"]
    assert torch.equal(loaded.activations(TOKENS), features.activations(TOKENS))
    torch.testing.assert_close(
        features.activations(TOKENS, route="jvp"), features.activations(TOKENS, route="vjp"), rtol=1e-3, atol=1e-6
    )


def test_steering_moves_the_expert_alone_and_leaves(features):
    model = features.engine.adapter.module
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(TOKENS)
    with features.steer({0: 2.0}):
        moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        step = model.experts.down_proj - before["experts.down_proj"]
        assert not torch.equal(model(TOKENS), output)
    assert moved == {"experts.gate_up_proj", "experts.down_proj"}
    torch.testing.assert_close(step[1], 2 * features.direction(0)["experts.down_proj[1]"], rtol=1e-3, atol=1e-6)
    assert not step[[0, 2, 3]].any()
    assert torch.equal(model(TOKENS), output)
    edited = mixtral(implementation="grouped_mm", dtype=torch.float32)
    features.edit(edited, {0: 2.0})
    torch.testing.assert_close(edited.experts.down_proj - before["experts.down_proj"], step, rtol=1e-3, atol=1e-6)


def test_what_an_expert_cannot_have_is_refused_by_name(features, tmp_path):
    with (
        pytest.raises(AdapterError, match=r"experts.gate_up_proj\[1\].*all experts give together.*Leave where= out"),
        features.steer({0: 1.0}, where=torch.ones(3, dtype=torch.bool)),
    ):
        pass
    with pytest.raises(AdapterError, match=r"Circuits need.*experts.gate_up_proj\[1\]"):
        pf.circuit(features, TOKENS)
    biased = pf.decompose(mixture("gpt_oss", "GptOssExperts"), "experts.down_proj_bias[1]", MANY, **CALL)
    with pytest.raises(ExportError, match=r"'experts.down_proj_bias\[1\]' is the .* no low-rank form"):
        biased.to_lora(tmp_path / "lora", {0: 1.0})
    beside = pf.decompose(mixtral(), ["experts.down_proj[1]", "router.*"], MANY, **CALL)
    with pytest.raises(ExportError, match=r"experts of 'experts', and a bias or the Conv1D of 'router'"):
        beside.to_lora(tmp_path / "lora", {0: 1.0})


@pytest.mark.parametrize("params", ["experts.*[0|2]", ["experts.down_proj[1]", "router.weight"], "experts.gate_up_proj"])
@pytest.mark.parametrize("kind", ["mixtral", "aria"])
def test_peft_gives_the_steered_models_output(kind, params, tmp_path):
    peft = pytest.importorskip("peft")
    features = pf.decompose(mixture(kind, KINDS[kind]), params, MANY, **CALL)
    model, steps = features.engine.adapter.module, {0: 2.0, 3: -3.0}
    features.to_lora(tmp_path / "lora", steps, dtype=torch.float64)
    before = model(TOKENS)
    with features.steer(steps):
        expected = model(TOKENS)
    found = peft.PeftModel.from_pretrained(mixture(kind, KINDS[kind]), tmp_path / "lora")(TOKENS)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_features_of_a_folded_stack_are_still_read(tmp_path, monkeypatch):
    model = mixtral()
    with monkeypatch.context() as folded:
        folded.setattr(selection, "_with_members", lambda chosen, *_: chosen)
        features = pf.decompose(model, "experts.down_proj", MANY, **CALL)
    features.save_pretrained(tmp_path / "old")
    loaded = pf.load(tmp_path / "old", model=model)
    assert loaded.params["experts.down_proj"].fold == "o i1 i2 -> o (i1 i2)"
    assert torch.equal(loaded.activations(TOKENS), features.activations(TOKENS))


class OwnStack(nn.Module):
    """Experts that run in a way of their own: all of them, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.up = 3, nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x):
        return torch.einsum("bpi,eio,e->bpo", x, self.up, torch.arange(1.0, 4.0, dtype=x.dtype))


def test_a_stack_that_runs_in_a_way_of_its_own_takes_the_dense_route():
    case = case_of(built(Between(OwnStack())), "layer.up", inputs=normal(3, 5, 4))
    assert case.engine.routes.dense == ("layer.up[0]", "layer.up[1]", "layer.up[2]")
    assert_every_route_agrees(case)

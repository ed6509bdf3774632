"""Torch's and the libraries' settings under which users run models: each changes nothing, or is refused by name.

For every setting and every use the effect on the outputs equals that of a plain float32 run, and is gone after the block.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import param_features as pf
from param_features.errors import InferenceModeError, ModelStateError
from tests.adapters.zoo import D_VOCAB, hf_gpt2, hooked
from tests.models import randomised

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated and will be removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # the compiler's own, when it looks
]

TOKENS = torch.randint(4, D_VOCAB, (24, 6), generator=torch.Generator().manual_seed(1))
FEW = TOKENS[:3]
STEPS = {0: 4.0, 2: -3.0}

Run = Callable[[Tensor], Tensor]
"""How a user runs the model: tokens to logits."""

On = tuple[Any, Run]
"""What a user has in hand while a setting is on: the model to be decomposed, and how it is run."""


class Checkpointed(nn.Module):
    """A plain language model that checkpoints its middle at every call, in training or not, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(D_VOCAB, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.lm_head, self.use_reentrant = nn.Linear(6, D_VOCAB), None

    def middle(self, x):
        return x + self.second(torch.tanh(self.first(x))).cumsum(1)

    def forward(self, tokens):
        x = self.embed(tokens)
        if self.use_reentrant is None:
            return self.lm_head(self.middle(x))
        return self.lm_head(checkpoint(self.middle, x, use_reentrant=self.use_reentrant))


@dataclass(frozen=True)
class Kind:
    """A model that some settings are tried on: how it is made, what is decomposed, and how it is run."""

    build: Callable[[], nn.Module]
    param: str
    run: Callable[[nn.Module, Tensor], Tensor]


def _gpt2() -> nn.Module:
    return hf_gpt2(dtype=torch.float32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


KINDS = {
    "gpt2": Kind(_gpt2, "transformer.h.0.attn.c_attn.weight[k]", lambda model, tokens: model(tokens).logits),
    "plain": Kind(lambda: randomised(Checkpointed()), "first.weight", lambda model, tokens: model(tokens)),
    "hooked": Kind(lambda: hooked(dtype=torch.float32), "blocks.0.attn.W_K", lambda model, tokens: model(tokens)),
    "grouped": Kind(
        lambda: hooked(dtype=torch.float32, n_heads=4, n_key_value_heads=2),
        "blocks.1.attn._W_V",
        lambda model, tokens: model(tokens),
    ),
    "ln1": Kind(lambda: hooked(dtype=torch.float32), "blocks.0.ln1.b", lambda model, tokens: model(tokens)),
    "W_O": Kind(lambda: hooked(dtype=torch.float32), "blocks.0.attn.W_O", lambda model, tokens: model(tokens)),
    "W_in": Kind(lambda: hooked(dtype=torch.float32), "blocks.0.mlp.W_in", lambda model, tokens: model(tokens)),
}


@dataclass(frozen=True)
class Case:
    """A model in its plain state, features of it, and what they do there."""

    kind: Kind
    model: nn.Module
    features: pf.ParamFeatures
    effects: dict[str, Tensor]

    def run(self, tokens: Tensor) -> Tensor:
        return self.kind.run(self.model, tokens)


def decomposed(model, param: str) -> pf.ParamFeatures:
    return pf.decompose(model, param, TOKENS, n_features=4, l0=2, steps=4, progress=False)


@cache
def case(name: str) -> Case:
    if name not in ("gpt2", "plain"):
        pytest.importorskip("transformer_lens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own notices while they build
        model = KINDS[name].build().requires_grad_(True).eval()
    features = decomposed(model, KINDS[name].param)
    plain = Case(KINDS[name], model, features, {})
    effects = {use: effect(begin(features), plain.run) for use, begin in USES.items()}
    assert all(change.norm() > 0.1 for change in effects.values()), "an effect that is too small shows nothing"
    return Case(KINDS[name], model, features, effects)


# Settings: each is on while its block lasts, and gives the model in hand and how it is run.


@contextmanager
def plain(case: Case) -> Iterator[On]:
    yield case.model, case.run


@contextmanager
def autocast(case: Case) -> Iterator[On]:
    with torch.autocast("cpu", torch.bfloat16):
        case.run(FEW)  # fills autocast's cache of cast weights
        yield case.model, case.run


@contextmanager
def compiled_wrapper(case: Case) -> Iterator[On]:
    compiled = torch.compile(case.model, backend="eager")
    case.kind.run(compiled, FEW)
    yield compiled, lambda tokens: case.kind.run(compiled, tokens)


@contextmanager
def compiled_in_place(case: Case) -> Iterator[On]:
    case.model.compile(backend="eager")
    try:
        case.run(FEW)
        yield case.model, case.run
    finally:
        case.model._compiled_call_impl = None


@contextmanager
def checkpointing(case: Case, *, use_reentrant: bool) -> Iterator[On]:
    case.model.config.use_cache = False
    case.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    case.model.train()
    try:
        yield case.model, case.run
    finally:
        case.model.eval()
        case.model.gradient_checkpointing_disable()


@contextmanager
def checkpointing_always(case: Case, *, use_reentrant: bool) -> Iterator[On]:
    case.model.use_reentrant = use_reentrant
    try:
        yield case.model, case.run
    finally:
        case.model.use_reentrant = None


@contextmanager
def within(case: Case, *, block: Callable[[], Any]) -> Iterator[On]:
    with block():
        yield case.model, case.run


@contextmanager
def input_gradients(case: Case) -> Iterator[On]:
    case.model.enable_input_require_grads()
    try:
        yield case.model, case.run
    finally:
        case.model.disable_input_require_grads()


@contextmanager
def hook_points(case: Case, *, name: str) -> Iterator[On]:
    """TransformerLens' further hook points, some of which give every head an input of its own."""
    switch = getattr(case.model, f"set_use_{name}")
    switch(True)
    try:
        yield case.model, case.run
    finally:
        switch(False)


@contextmanager
def in_peft(case: Case) -> Iterator[On]:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    wrapped = peft.get_peft_model(case.model, config).eval()
    try:
        yield wrapped, lambda tokens: case.kind.run(wrapped, tokens)
    finally:
        wrapped.unload()
        case.model.requires_grad_(True)


@contextmanager
def in_nnsight(case: Case) -> Iterator[On]:
    nnsight = pytest.importorskip("nnsight")
    wrapped = nnsight.NNsight(case.model)

    def run(tokens: Tensor) -> Tensor:
        with wrapped.trace(tokens):
            logits = wrapped.output.logits.save()
        return logits  # noqa: RET504

    yield wrapped, run


@contextmanager
def float64_by_default(case: Case) -> Iterator[On]:
    torch.set_default_dtype(torch.float64)
    try:
        yield case.model, case.run
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, tuple[str, Callable[[Case], Any]]] = {
    "plain": ("gpt2", plain),
    "autocast": ("gpt2", autocast),
    "compiled": ("gpt2", compiled_wrapper),
    "compiled in place": ("gpt2", compiled_in_place),
    "checkpointing": ("gpt2", partial(checkpointing, use_reentrant=False)),
    "reentrant checkpointing": ("gpt2", partial(checkpointing, use_reentrant=True)),
    "checkpointing always": ("plain", partial(checkpointing_always, use_reentrant=False)),
    "reentrant checkpointing always": ("plain", partial(checkpointing_always, use_reentrant=True)),
    "save_on_cpu": ("gpt2", partial(within, block=save_on_cpu)),
    "saved-tensor hooks": ("gpt2", partial(within, block=lambda: saved_tensors_hooks(torch.clone, lambda kept: kept))),
    "no_grad": ("gpt2", partial(within, block=torch.no_grad)),
    "inference_mode": ("gpt2", partial(within, block=torch.inference_mode)),
    "enable_input_require_grads": ("gpt2", input_gradients),
    "split q, k and v inputs": ("hooked", partial(hook_points, name="split_qkv_input")),
    "split inputs of grouped queries": ("grouped", partial(hook_points, name="split_qkv_input")),
    "split inputs after a norm": ("ln1", partial(hook_points, name="split_qkv_input")),
    "attn_in": ("hooked", partial(hook_points, name="attn_in")),
    "attn_result": ("W_O", partial(hook_points, name="attn_result")),
    "hook_mlp_in": ("W_in", partial(hook_points, name="hook_mlp_in")),
    "peft": ("gpt2", in_peft),
    "nnsight": ("gpt2", in_nnsight),
    "float64 by default": ("gpt2", float64_by_default),
}
ROUNDING = {"autocast": 0.03}  # of a run by the user; the library's own passes have that of float32
EXACT = dict.fromkeys(("plain", "autocast", "compiled", "compiled in place", "no_grad"), 1e-12)
REFUSED = {"inference_mode": InferenceModeError, "reentrant checkpointing always": ModelStateError}  # passes of the library


# Uses

USES: dict[str, Callable[[pf.ParamFeatures], Any]] = {
    "steer": lambda features: features.steer(STEPS),
    "steer where": lambda features: features.steer(STEPS, where=[True, False, True]),
    "steer at positions": lambda features: features.steer(STEPS, where=FEW > 11),
    "a circuit's block": lambda features: circuit_of(features).without([f"{name}/error" for name in features.params]),
    "ablate": lambda features: features.ablate([0, 1, 2, 3], rule="noise", scale=3.0),
}

READINGS: dict[str, Callable[[pf.ParamFeatures], Any]] = {
    "activations by vjp": lambda features: features.activations(FEW, route="vjp"),
    "activations by jvp": lambda features: features.activations(FEW, route="jvp"),
    "activations": lambda features: features.activations(FEW),
    "codes": lambda features: features.codes(FEW),
    "parts": lambda features: features.activation_parts(FEW),
    "top examples": lambda features: [example.activation for example in features.top_examples(0, 3)],
    "top logits": lambda features: features.top_logits(0, n_examples=3).up,
    "ablation": lambda features: list(features.ablate([0, 1], rule="search", target=0.99).coefficients.values()),
    "residual": lambda features: features.residual(),
    "direction": lambda features: features.direction(1),
    "errors by l0": lambda features: [*features.errors_by_l0(TOKENS, n_samples=32).errors["reconstruction_error"]],
}
WITHOUT_A_RUN = ("residual", "direction", "top examples")  # the last are remembered


def effect(block: Any, run: Run) -> Tensor:
    """The change of the outputs in a block, which must be gone after it."""
    before = run(FEW).detach().float()
    with block:
        inside = run(FEW).detach().float()
    assert torch.equal(run(FEW).detach().float(), before)
    return inside - before


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_features_do_in_a_run_what_they_do_in_a_plain_one(setting, use):
    kind, on = SETTINGS[setting]
    subject = case(kind)
    with on(subject) as (_, run):
        found = effect(USES[use](subject.features), run)
    assert gap(found, subject.effects[use]) < ROUNDING.get(setting, 1e-4)


@pytest.mark.parametrize("use", ["steer", "steer where"])
def test_features_that_were_entered_before_the_first_run_do_the_same(use):
    """The other order: autocast and the compiler meet the steered model first."""
    subject = case("gpt2")
    for setting in ("autocast", "compiled"):
        with USES[use](subject.features), SETTINGS[setting][1](subject) as (_, run):
            inside = run(FEW).detach().float()
            with USES[use](subject.features):
                pass
            assert torch.equal(run(FEW).detach().float(), inside)
        with SETTINGS["autocast" if setting == "autocast" else "plain"][1](subject) as (_, plain_run):
            outside = plain_run(FEW).detach().float()
        assert gap(inside - outside, subject.effects[use]) < ROUNDING.get(setting, 1e-4)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_read_from_a_model_is_the_same(setting, reading):
    kind, on = SETTINGS[setting]
    subject = case(kind)
    expected = flat(READINGS[reading](subject.features))
    with on(subject):
        if setting in REFUSED and reading not in WITHOUT_A_RUN:
            with pytest.raises(REFUSED[setting], match="reentrant|inference_mode"):
                READINGS[reading](subject.features)
        else:
            assert gap(flat(READINGS[reading](subject.features)), expected) < EXACT.get(setting, 1e-5)


_circuits: dict[int, Any] = {}


def circuit_of(features: pf.ParamFeatures) -> Any:
    """Found once, in the plain run in which each case's effects are measured."""
    if id(features) not in _circuits:
        _circuits[id(features)] = found_circuit(features)
    return _circuits[id(features)]


def found_circuit(features: pf.ParamFeatures) -> Any:
    return pf.circuit(features, TOKENS[:4], pf.circuits.LogProbability(5), n_nodes=2, n_random=0, ablation="zero")


def flat(found: Any) -> Tensor:
    """The numbers of a result side by side."""
    if isinstance(found, dict):
        return torch.cat([flat(part) for part in found.values()])
    if isinstance(found, Tensor):
        return found.detach().double().flatten()
    numbers = [part for entry in found for part in (entry if isinstance(entry, tuple) else (entry,))]
    return torch.tensor([number for number in numbers if isinstance(number, float)], dtype=torch.float64)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_fit_is_the_same(setting):
    kind, on = SETTINGS[setting]
    subject = case(kind)
    with on(subject) as (model, _):
        if setting in REFUSED:
            with pytest.raises(REFUSED[setting], match="reentrant|inference_mode"):
                decomposed(model, subject.kind.param)
            return
        found = decomposed(model, subject.kind.param)
    assert gap(direction_of(found), direction_of(subject.features)) < EXACT.get(setting, 1e-4)
    for name in ("reconstruction_error", "control_pca", "control_svd_w"):
        assert found.metrics[name] == pytest.approx(subject.features.metrics[name], rel=1e-4)


def direction_of(features: pf.ParamFeatures) -> Tensor:
    return torch.cat([flat(features.direction(feature)) for feature in range(4)])


@pytest.mark.parametrize("use", ["steer", "steer where", "a circuit's block"])
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name not in ("no_grad", "inference_mode")])
def test_gradients_after_the_block_are_those_inside_it_or_refused(setting, use):
    kind, on = SETTINGS[setting]
    subject = case(kind)
    with on(subject) as (_, run):
        inside = gradients(subject, run, USES[use], is_late=False)
        try:
            late = gradients(subject, run, USES[use], is_late=True)
        except (ModelStateError, RuntimeError) as error:
            by_torch = setting.startswith("compiled") and "modified by an inplace operation" in str(error)
            assert by_torch or isinstance(error, ModelStateError) and "inside the same block" in str(error)
        else:
            assert gap(late, inside) < 1e-6


def gradients(subject: Case, run: Run, use: Callable[[pf.ParamFeatures], Any], *, is_late: bool) -> Tensor:
    subject.model.zero_grad()
    with use(subject.features):
        loss = run(FEW).float().square().mean()
        if not is_late:
            loss.backward()
    if is_late:
        loss.backward()
    found = [parameter.grad.flatten() for parameter in subject.model.parameters() if parameter.grad is not None]
    subject.model.zero_grad()
    return torch.cat(found)


METRIC = pf.circuits.LogProbability(5)

ANALYSES: dict[str, Callable[[Case], Any]] = {
    "match": lambda case: pf.match(case.features, case.features).cosine,
    "circuit": lambda case: [effect for node in found_circuit(case.features).nodes for effect in node.effects],
    "interactions": lambda case: pf.circuits.interactions(case.features, TOKENS[:4], METRIC).values,
    "indirect effects": lambda case: pf.circuits.indirect_effects(case.features, TOKENS[:4], METRIC).values,
    "audit": lambda case: [row.value for row in case.features.audit().rows],
    "pushes": lambda case: pf.development.pushes(case.features, TOKENS[:4]).values,
    "losses of tokens": lambda case: pf.development.token_losses(case.model, TOKENS),
    "trained coefficients": lambda case: case.features.finetune(TOKENS, 2, steps=2, progress=False).coefficients.items(),
    "copy": lambda case: case.features.steered(None, STEPS).state_dict(),
}


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("setting", ["autocast", "compiled in place"])
def test_an_analysis_is_the_same_bit_for_bit(setting, analysis):
    subject = case("gpt2")
    expected = flat(ANALYSES[analysis](subject))
    with SETTINGS[setting][1](subject):
        found = flat(ANALYSES[analysis](subject))
    assert found.norm() > 0
    assert torch.equal(found, expected)


COMPONENTS = pf.ComponentSettings(
    steps=3, batch_size=36, adversarial_weight=0.5, subset_weight=0.5, one_at_a_time_weight=0.5
)
READ_COMPONENTS: dict[str, Callable[[pf.ParamComponents], Any]] = {
    "importances": lambda components: components.importances(FEW),
    "inner activations": lambda components: components.inner(FEW),
}


def components_of(model, param: str) -> pf.ParamComponents:
    return pf.decompose(model, param, TOKENS, method="components", n_features=4, fit=COMPONENTS, progress=False)


@cache
def plain_components(kind: str) -> pf.ParamComponents:
    return components_of(case(kind).model, KINDS[kind].param)


@pytest.mark.usefixtures("few_metrics")
@pytest.mark.parametrize("setting", [name for name, (kind, _) in SETTINGS.items() if kind != "ln1"])
def test_components_are_the_same(setting):
    """Fitted under the setting, and read under it."""
    kind, on = SETTINGS[setting]
    subject, expected = case(kind), plain_components(kind)
    before = {name: flat(read(expected)) for name, read in READ_COMPONENTS.items()}
    with on(subject) as (model, _):
        if setting in REFUSED:
            with pytest.raises(REFUSED[setting], match="reentrant|inference_mode"):
                components_of(model, subject.kind.param)
            return
        found = components_of(model, subject.kind.param)
        under = {name: flat(read(expected)) for name, read in READ_COMPONENTS.items()}
    tolerance = EXACT.get(setting, 1e-5)
    assert all(gap(under[name], values) < tolerance for name, values in before.items())
    for one, other in zip(found.dictionary.parts.values(), expected.dictionary.parts.values(), strict=True):
        assert gap(one.U, other.U) < 10 * tolerance and gap(one.V, other.V) < 10 * tolerance
    for name in ("unmasked", "rounded", "l0"):
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-4, abs=1e-9)

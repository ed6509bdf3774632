"""What every adapter promises, on small models of every library, the plain module among them as the reference."""

import re
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch

import param_features as pf
from param_features.circuits.effects import attribution, exact_effects, read_subject
from param_features.circuits.tangents import direct_flow
from param_features.errors import AdapterError, FingerprintError, NoGradientError, UnknownParameterError
from param_features.params import adapter_for, all_parameters, select
from tests.adapters.zoo import ZOO, assert_same, booted, fresh, hf_gpt2, lens_major, shared, snapshot, tokenizer
from tests.exits import EXITS, leave, leaving_by
from tests.masked import masked_case
from tests.oracle import assert_equal_gradients, case_of

BRIDGES = [name for name in ZOO if name.startswith("bridge")]
NNSIGHT = [name for name in ZOO if name.startswith("nnsight")]
WRAPPERS = {
    "torch.compile": ("torch.compile", ""),
    "DataParallel": ("DataParallel", ""),
    **{name: ("nnsight", name.split()[1]) for name in NNSIGHT},
}
WITH_TOKENIZER = [name for name, entry in ZOO.items() if entry.has_tokenizer]
QUICK = {"n_features": 3, "l0": 1, "steps": 5, "n_samples": 60, "progress": False}


@pytest.fixture(params=ZOO, scope="module")
def name(request):
    return request.param


@pytest.fixture(autouse=True)
def nothing_leaks(request):
    """The shared model is after each test as it was before, bit for bit."""
    given = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    modules = [adapter_of(value).module for value in given if isinstance(value, str) and value in ZOO]
    before = [snapshot(module) for module in modules]
    yield
    for module, old in zip(modules, before, strict=True):
        assert_same(old, snapshot(module))


def adapter_of(name):
    return adapter_for(shared(name))


def subset_of(name, params=None):
    adapter = adapter_of(name)
    return select(adapter.views(), ZOO[name].params if params is None else params, adapter.aliases(), adapter.parts())


def output_of(name, n_rows=3):
    with torch.no_grad():
        return adapter_of(name).run(*ZOO[name].data(n_rows).values())


@contextmanager
def put_back(module):
    """Restore every parameter and buffer that the block writes over."""
    tensors = [*all_parameters(module), *(b for m in module.modules() for b in m._buffers.values() if b is not None)]
    old = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, old, strict=True):
                tensor.copy_(values)


def deltas_of(subset, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        for name, tensor in subset.tensors.items()
    }


def decomposed(model, name, params=None, **settings):
    return pf.decompose(model, ZOO[name].params[0] if params is None else params, **ZOO[name].data(24), **QUICK, **settings)


@cache
def features_of(name):
    """Features of the first parameter of the entry's subset; made once."""
    return decomposed(shared(name), name)


def shows_modules(features) -> bool:
    """Whether all its parameters lie in layers whose input and output can be hooked."""
    return len(features.engine.routes.taps) == len(features.params)


class TestViews:
    @pytest.mark.parametrize("owning", [name for name in ZOO if name not in BRIDGES])
    def test_names_are_those_of_torch(self, owning):
        """A bridge has TransformerLens' names, see `TestBridgeNames`."""
        views, by_torch = adapter_of(owning).views(), dict(adapter_of(owning).module.named_parameters())
        assert list(views) == list(by_torch)
        assert all(view.tensor is by_torch[name] for name, view in views.items())

    def test_every_view_is_a_matrix_read_from_its_place_and_written_back(self, name):
        adapter = adapter_of(name)
        for view in {**adapter.views(), **adapter.parts()}.values():
            d_out, d_in = view.matrix_shape
            assert d_out * d_in == view.tensor.numel()
            assert torch.equal(view.from_matrix(view.to_matrix(view.tensor)), view.tensor)
            assert torch.equal(view.layout.write(view.tensor, view.stored), view.stored)
            assert all(owner._parameters[key] is view.stored for owner, key in view.places)

    def test_every_parameter_that_has_a_gradient_is_viewed_once(self, name):
        """Left out are only the originals that booting a bridge copied and the model no longer reads."""
        adapter, entry = adapter_of(name), ZOO[name]
        stored = [id(view.stored) for view in adapter.views().values()]
        assert len(stored) == len(set(stored))
        left_out = [p for p in all_parameters(adapter.module) if id(p) not in stored]
        assert not left_out or name in BRIDGES
        flags = [p.requires_grad for p in left_out]
        for parameter in left_out:
            parameter.requires_grad_(True)
        found = torch.autograd.grad(
            adapter.run(*entry.data(2).values()).square().sum(), all_parameters(adapter.module), allow_unused=True
        )
        for parameter, flag in zip(left_out, flags, strict=True):
            parameter.requires_grad_(flag)
        gradients = dict(zip(map(id, all_parameters(adapter.module)), found, strict=True))
        assert [gradients[id(parameter)] for parameter in left_out] == [None] * len(left_out)

    def test_every_place_of_a_viewed_parameter_is_known(self, name):
        adapter = adapter_of(name)
        places = [(id(owner), key) for view in adapter.views().values() for owner, key in view.places]
        assert len(places) == len(set(places))
        viewed = {id(view.stored) for view in adapter.views().values()}
        held = {(id(m), key) for m in adapter.module.modules() for key, p in m._parameters.items() if id(p) in viewed}
        assert set(places) == held

    def test_aliases_lead_to_views_and_hide_none(self, name):
        adapter = adapter_of(name)
        aliases = adapter.aliases()
        assert set(aliases.values()) <= set(adapter.views())
        assert not set(aliases) & (set(adapter.views()) | set(adapter.parts()))

    def test_every_name_that_is_said_chooses_its_parameter(self, name):
        adapter = adapter_of(name)
        for said, real in ({view: view for view in adapter.views()} | adapter.aliases()).items():
            assert select(adapter.views(), said, adapter.aliases(), adapter.parts()).names == (real,)

    def test_every_tap_lies_at_a_place_of_its_parameter(self, name):
        adapter = adapter_of(name)
        for view in {**adapter.views(), **adapter.parts()}.values():
            taps = adapter.taps(view)
            assert [(tap.layer, tap.attribute) for tap in taps] in ([], list(view.places))

    def test_the_head_is_a_module_of_the_model(self, name):
        adapter = adapter_of(name)
        assert adapter.head() is None or any(adapter.head() is module for module in adapter.module.modules())

    def test_wrappers_are_named_and_read_as_what_they_wrap(self, name):
        adapter = adapter_of(name)
        start, end = WRAPPERS.get(name, ("", ""))
        assert (adapter.wrapper.startswith(start), adapter.wrapper.endswith(end)) == (True, True)
        assert adapter.wrapper == "" if name not in WRAPPERS else adapter.description.endswith(f" in {adapter.wrapper}")
        assert list(adapter_for(adapter.module).views()) == list(adapter.views())


def lens_properties(bridge):
    """TransformerLens' own tensors by its names, those that the model has."""
    attention = [f"{kind}_{letter}" for kind in "Wb" for letter in "QKVO"]
    mlp = ["W_in", "W_gate", "W_out", "b_in", "b_out"]
    found = {"embed.W_E": bridge.W_E, "unembed.W_U": bridge.W_U, "unembed.b_U": bridge.b_U}
    if "pos_embed" in bridge._modules and hasattr(bridge, "W_pos"):
        found["pos_embed.W_pos"] = bridge.W_pos
    parents = {"ln_final": (bridge.ln_final, ["w", "b"])}
    for number, block in enumerate(bridge.blocks):
        parents |= {f"blocks.{number}.{norm}": (getattr(block, norm), ["w", "b"]) for norm in ("ln1", "ln2")}
        parents |= {f"blocks.{number}.attn": (block.attn, attention), f"blocks.{number}.mlp": (block.mlp, mlp)}
    for path, (parent, attributes) in parents.items():
        found |= {f"{path}.{key}": getattr(parent, key, None) for key in attributes}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("bridge_name", BRIDGES)
class TestBridgeNames:
    def test_they_are_transformer_lens_own_properties(self, bridge_name):
        bridge, adapter = shared(bridge_name), adapter_of(bridge_name)
        views, aliases = adapter.views(), adapter.aliases()
        properties = lens_properties(bridge)
        spoken = {aliases.get(name, name) for name in properties}
        assert set(views) - spoken <= {"pos_embed.W_pos"}  # TransformerLens 3 has no property for it
        for name, tensor in properties.items():
            view = views.get(aliases.get(name, name))
            if view is None:  # TransformerLens 4: a plain tensor that nothing can train
                assert name == "unembed.b_U"
            elif name == "unembed.W_U" and len(view.places) == 2:
                assert torch.equal(view.tensor, tensor.T)
            else:
                assert torch.equal(view.tensor, tensor), name

    def test_keys_and_values_of_grouped_queries_bear_an_underscore(self, bridge_name):
        adapter = adapter_of(bridge_name)
        names = {name.removeprefix("blocks.0.attn.") for name in adapter.views() if re.match(r"blocks\.0\.attn\._?W", name)}
        is_grouped = "llama" in bridge_name
        assert names == ({"W_Q", "_W_K", "_W_V", "W_O"} if is_grouped else {"W_Q", "W_K", "W_V", "W_O"})
        assert {"blocks.0.attn.W_K", "blocks.0.attn.W_V"} <= set(adapter.aliases()) if is_grouped else True

    def test_the_wrapped_models_names_are_known_too(self, bridge_name):
        adapter = adapter_of(bridge_name)
        keys = {
            "gpt2": "transformer.h.1.attn.k.weight",
            "gpt-neo": "transformer.h.1.attn.attention.k_proj.weight",
            "llama": "model.layers.1.self_attn.k_proj.weight",
            "native": "layers.1.attn.k.weight",
        }
        assert adapter.aliases()[keys[bridge_name.split()[1]]].replace("._", ".") == "blocks.1.attn.W_K"


class TestHookedTransformerAndBridge:
    """One checkpoint in both: TransformerLens' own conversion to HookedTransformer, against the bridge."""

    PAIRS = [("hooked gpt2", "bridge gpt2"), ("hooked llama", "bridge llama")]

    @pytest.mark.parametrize(("hooked", "bridge"), PAIRS)
    def test_names_shapes_and_matrices_are_equal(self, hooked, bridge):
        ours, theirs = adapter_of(bridge).views(), adapter_of(hooked).views()
        assert set(ours) <= set(theirs)
        for name in theirs.keys() - ours.keys():  # biases that the checkpoint lacks; the tied unembedding
            assert adapter_of(bridge).aliases().get(name) == "embed.W_E" or not theirs[name].tensor.any()
        for name, view in ours.items():
            assert (view.shape, view.fold) == (theirs[name].shape, theirs[name].fold), name
            assert torch.equal(view.tensor, theirs[name].tensor), name

    @pytest.mark.parametrize(("hooked", "bridge"), PAIRS)
    def test_gradients_are_equal_under_equal_names(self, hooked, bridge):
        names = [name for name, view in adapter_of(bridge).views().items() if len(view.places) == 1]
        found, expected = (case_of(shared(model), names, **ZOO[bridge].data(3)).gradients()[0] for model in (bridge, hooked))
        for name in names:
            gap = (found[name] - expected[name]).norm()
            assert gap <= 10 * ZOO[bridge].tolerance * expected[name].norm() + 1e-12, name

    @pytest.mark.parametrize(("hooked", "bridge"), PAIRS)
    def test_processed_weights_are_equal_in_compatibility_mode(self, hooked, bridge):
        processed = fresh(hooked)
        processed.process_weights_()
        theirs = adapter_for(processed).views()
        ours = adapter_of(f"{bridge} in compatibility mode").views()
        norms = {name for name in ours if ".ln" in name or name.startswith("ln_final")}
        assert set(ours) - set(theirs) == norms
        for name in ours.keys() - norms:
            torch.testing.assert_close(ours[name].tensor.double(), theirs[name].tensor, rtol=1e-4, atol=1e-6)
        assert all((ours[name].tensor == (1 if name.endswith("w") else 0)).all() for name in norms)


class TestGradients:
    def test_factored_dense_and_autograd_agree(self, name):
        found = case_of(shared(name), **ZOO[name].data(3))
        case = replace(found, model=found.engine.adapter.model)
        expected, tolerance = case.by_autograd(), ZOO[name].tolerance
        assert sum(tensor.norm() > 1e-3 for tensor in expected.values()) > len(expected) / 2
        assert len(case.engine.routes.taps) > len(expected) / 2  # so that the first line below tries the rules
        for route in (case, case.dense(is_vmapped=True), case.dense(is_vmapped=False)):
            assert_equal_gradients(route.gradients()[0], expected, tolerance)

    def test_forward_and_backward_activations_agree(self, name):
        features, data = features_of(name), ZOO[name].data(3)
        by_jvp, by_vjp = features.activations(**data, route="jvp"), features.activations(**data, route="vjp")
        assert by_vjp.norm() > 1e-3
        assert (by_jvp - by_vjp).norm() <= ZOO[name].tolerance * by_vjp.norm()


class TestReplacing:
    @pytest.mark.parametrize("error", EXITS)
    def test_the_model_comes_back_bit_for_bit(self, name, error):
        """`nothing_leaks` compares objects, values, flags and hooks."""
        subset, before = subset_of(name), output_of(name)
        old = {view.name: view.stored for view in subset.views}
        with leaving_by(error), subset.replaced({n: t * 2 + 1 for n, t in subset.tensors.items()}):
            assert not torch.equal(output_of(name), before)
            leave(error)
        assert all(view.stored is old[view.name] for view in subset.views)
        assert torch.equal(output_of(name), before)

    def test_replacing_by_equal_values_changes_nothing(self, name):
        subset, before = subset_of(name), output_of(name)
        with subset.replaced({n: t.clone() for n, t in subset.tensors.items()}):
            torch.testing.assert_close(output_of(name), before, rtol=ZOO[name].tolerance, atol=1e-12)

    def test_only_the_given_tensors_are_replaced(self, name):
        subset = subset_of(name)
        first, *others = subset.views
        old = {view.name: view.stored for view in others}
        with subset.replaced({first.name: first.tensor + 1}):
            assert torch.equal(first.tensor, first.layout.read(first.stored))
            assert all(view.stored is old[view.name] for view in others)


class TestEditing:
    @pytest.mark.parametrize("error", EXITS)
    def test_it_changes_the_output_and_comes_back_bit_for_bit(self, name, error):
        subset, before = subset_of(name), output_of(name)
        with leaving_by(error), subset.edited(deltas_of(subset)):
            assert (output_of(name) - before).norm() > 1e-3 * before.norm()
            leave(error)
        assert torch.equal(output_of(name), before)

    def test_each_parameter_alone_changes_the_output(self, name):
        subset, before = subset_of(name), output_of(name)
        for parameter, delta in deltas_of(subset).items():
            with subset.edited({parameter: delta}):
                assert (output_of(name) - before).norm() > 1e-6 * before.norm(), parameter

    def test_it_equals_replacing_by_the_sum(self, name):
        subset = subset_of(name)
        deltas = deltas_of(subset)
        with subset.edited(deltas):
            edited = output_of(name)
        with subset.replaced({n: tensor + deltas[n] for n, tensor in subset.tensors.items()}):
            torch.testing.assert_close(output_of(name), edited, rtol=ZOO[name].tolerance, atol=1e-12)


class TestSteering:
    STEPS = {0: 0.5, 2: -0.3}

    @pytest.mark.parametrize("error", EXITS)
    def test_it_changes_the_output_and_comes_back_bit_for_bit(self, name, error):
        """Nested, the outer block left first, after success, an exception and Ctrl-C; see `nothing_leaks`."""
        features, before = features_of(name), output_of(name)
        outer, inner = features.steer(self.STEPS), features.steer({1: 0.2})
        with leaving_by(error), outer:
            assert (output_of(name) - before).norm() > 1e-6 * before.norm()
            inner.__enter__()
            outer.__exit__(None, None, None)
            outer.__enter__()
            inner.__exit__(None, None, None)
            leave(error)
        assert torch.equal(output_of(name), before)

    def test_it_equals_replacing_by_the_sum(self, name):
        features = features_of(name)
        subset = features.engine.subset
        moved = {
            param: tensor + sum(delta * features.direction(k)[param].to(tensor) for k, delta in self.STEPS.items())
            for param, tensor in subset.tensors.items()
        }
        with subset.replaced(moved):
            expected = output_of(name)
        with features.steer(self.STEPS):
            torch.testing.assert_close(output_of(name), expected, rtol=1e-4, atol=1e-5)

    def test_some_sequences_alone(self, name):
        """The steered ones as with changed weights, the others bit for bit."""
        features, before = features_of(name), output_of(name)
        if not shows_modules(features):
            with pytest.raises(AdapterError, match="Leave where= out"):
                features.steer(self.STEPS, where=[True, False, True])
            return
        with features.steer(self.STEPS):
            steered = output_of(name)
        with features.steer(self.STEPS, where=[True, False, True]):
            found = output_of(name)
        assert torch.equal(found[1], before[1])
        torch.testing.assert_close(found[[0, 2]], steered[[0, 2]], rtol=1e-4, atol=1e-5)

    def test_ablating_and_copying(self, name):
        features, before = features_of(name), output_of(name)
        for rule in ("weight", "noise"):
            with features.ablate([0, 1], rule=rule):
                assert not torch.equal(output_of(name), before)
        assert torch.equal(output_of(name), before)
        with features.steer(self.STEPS):
            expected = output_of(name)
        copied = adapter_for(features.steered(None, self.STEPS))
        with torch.no_grad():
            found = copied.run(*ZOO[name].data(3).values())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@cache
def masked_case_of(name):
    """Random components of all matrices of the model; made once."""
    return masked_case(shared(name), **ZOO[name].data(2))


class TestComponents:
    """All matrices at once, with random components, masks and masks of the remainder."""

    @staticmethod
    def assert_equal(name, found, expected):
        case = masked_case_of(name)
        effect = (expected - case.clean.output).norm()
        assert effect > 0.05 * case.clean.output.norm()
        tolerance = 1e-9 if found.dtype == torch.float64 else ZOO[name].tolerance
        assert (found - expected).norm() <= tolerance * effect

    def test_masks_of_a_row_are_written_over_weights(self, name):
        case = masked_case_of(name)
        masks = case.masks(varies=False)
        self.assert_equal(name, case.run(masks), case.by_rows(masks))

    def test_masks_of_a_position_are_matrices_of_its_own(self, name):
        case = masked_case_of(name)
        if name.startswith("hooked"):
            masks, explicit = case.masks(), case.by_lens_hooks
        else:
            masks, explicit = case.at_called_layers(case.masks()), case.by_positions
        assert len(masks.components) > 1
        self.assert_equal(name, case.run(masks), explicit(masks))

    def test_ones_leave_every_bit(self, name):
        case = masked_case_of(name)
        assert torch.equal(case.run(case.ones()), case.clean.output)

    @pytest.mark.parametrize("error", EXITS)
    def test_the_model_comes_back_bit_for_bit(self, name, error):
        """`nothing_leaks` compares objects, values, flags and hooks."""
        case, before, generator = masked_case_of(name), output_of(name), torch.get_rng_state()
        with leaving_by(error), case.model.held():
            case.model.masked(case.data, case.parts, case.masks(), case.remainders)
            leave(error)
        assert torch.equal(output_of(name), before)
        assert torch.equal(torch.get_rng_state(), generator)


class TestCircuits:
    @staticmethod
    def metric(output):
        return output.flatten(1).square().sum(1)

    def subject(self, name):
        return read_subject(features_of(name), *data_of(name), self.metric, None)

    def test_parameters_without_a_rule_are_refused(self, name):
        if not shows_modules(features_of(name)):
            with pytest.raises(AdapterError, match="Circuits need a layer rule"):
                self.subject(name)

    def test_an_exact_effect_is_a_step_in_the_weights(self, name):
        features = features_of(name)
        if not shows_modules(features):
            pytest.skip("no layer rule")
        subject = self.subject(name)
        found = subject.values() - exact_effects(subject, [1], subject.values())[:, 0]
        with features.steer({1: -float(subject.holds[1])}):
            expected = self.metric(output_of(name))
        torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4)

    def test_an_attribution_is_the_gradient_along_the_feature(self, name):
        features = features_of(name)
        if not shows_modules(features):
            pytest.skip("no layer rule")
        subject, view = self.subject(name), features.engine.subset.views[0]
        leaf = view.tensor.detach().clone().requires_grad_()
        with features.engine.subset.replaced({view.name: leaf}):
            value = self.metric(adapter_of(name).run(*ZOO[name].data(3).values())).sum()
        gradient = torch.autograd.grad(value, leaf)[0]
        along = sum((features.direction(2)[view.name].to(gradient) * gradient).flatten())
        found = attribution(subject)[:, 2].sum() / subject.holds[2]
        torch.testing.assert_close(found, along.double(), rtol=1e-3, atol=1e-4)

    def test_what_flows_from_a_node_is_its_attribution(self, name):
        """Forward mode through every library's layers; all of it goes straight to the output where nothing lies above."""
        features = features_of(name)
        if not shows_modules(features):
            pytest.skip("no layer rule")
        subject = self.subject(name)
        clean, group = subject.slopes(), subject.groups[0]
        step = torch.eye(group.n_nodes, dtype=torch.float64)[0].expand(3, -1)
        flows, straight = direct_flow(subject, clean, {group.name: step})
        whole = -group.amounts_keeping(torch.zeros(group.n_nodes, dtype=torch.bool))
        arrived = straight + (flows[group.name] * whole).sum(1)
        torch.testing.assert_close(arrived, clean.by_node[group.name][:, 0].double(), rtol=1e-3, atol=1e-4)


def data_of(name):
    """Prompts and inputs as the calls take them."""
    given = ZOO[name].data(3)
    return given.get("tokens"), given.get("inputs")


@pytest.mark.parametrize("wrapped", NNSIGHT)
def test_an_nnsight_trace_inside_a_block_is_of_the_steered_model(wrapped):
    model, features, data = shared(wrapped), features_of(wrapped), ZOO[wrapped].data(3)
    with features.steer({0: 0.5}):
        expected = output_of(wrapped)
    with features.steer({0: 0.5}), torch.no_grad(), model.trace(data["tokens"]):
        traced = model.output.save()
    assert torch.equal(traced.logits, expected)
    assert not torch.equal(expected, output_of(wrapped))


class TestFingerprint:
    def test_it_changes_with_every_entry_of_the_chosen_weights_and_no_other(self, name):
        """Twenty entries of each stored tensor, some of which lie in another part of a fused matrix."""
        subset, generator = subset_of(name), torch.Generator().manual_seed(4)
        before = subset.fingerprint()
        for view in subset.views:
            numbers = torch.arange(view.stored.numel()).reshape(view.stored.shape)
            own = set(view.layout.read(numbers).flatten().tolist())
            for entry in torch.randint(view.stored.numel(), (20,), generator=generator).tolist():
                with put_back(adapter_of(name).module):
                    view.stored[numbers == entry] += 1e-3
                    changed = {n for n, value in subset.fingerprint().items() if value != before[n]}
                assert changed == ({view.name} if entry in own else set())
        assert subset.fingerprint() == before

    def test_it_heeds_no_other_parameter_and_no_buffer(self, name):
        subset, module = subset_of(name), adapter_of(name).module
        before, chosen = subset.fingerprint(), {id(view.stored) for view in subset.views}
        with put_back(module):
            for parameter in all_parameters(module):
                parameter.add_(0 if id(parameter) in chosen else 1)
            for buffer in (b for m in module.modules() for b in m._buffers.values() if b is not None):
                buffer.copy_(~buffer if buffer.dtype == torch.bool else buffer + 1)
            assert subset.fingerprint() == before


@pytest.mark.parametrize("with_tokenizer", WITH_TOKENIZER)
class TestTokens:
    TEXTS = ["w4 w5 w19", "w7", "w11 w4"]

    def test_strings_and_ids_are_inverse(self, with_tokenizer):
        adapter = adapter_of(with_tokenizer)
        ids = adapter.to_ids(self.TEXTS[0])
        assert ids == [1, 4, 5, 19]
        assert adapter.to_strings(ids) == ["<s>", " w4", " w5", " w19"]

    def test_texts_are_their_ids(self, with_tokenizer):
        """Shorter rows are padded, and read what they read alone."""
        features = features_of(with_tokenizer)
        together = features.activations(self.TEXTS)
        for row, text in enumerate(self.TEXTS):
            ids = torch.tensor([features.engine.adapter.to_ids(text)])
            alone = features.activations(ids)
            torch.testing.assert_close(together[row, : ids.shape[1]], alone[0], rtol=1e-4, atol=1e-6)
            assert not together[row, ids.shape[1] :].any()

    def test_examples_are_shown_in_words(self, with_tokenizer):
        words = tokenizer().convert_ids_to_tokens(list(range(20)))
        example = features_of(with_tokenizer).top_examples(0, n=1)[0]
        assert [token.strip() for token in example.tokens] == [
            words[token].strip("\u2581") for token in _row_of(features_of(with_tokenizer), example)
        ]


def _row_of(features, example):
    return features.examples.token_rows[example.row]


@pytest.mark.parametrize("without_tokenizer", ["hf gpt2 sdpa", "hf llama sdpa", "nnsight NNsight", "bridge native"])
class TestGivenTokenizer:
    def test_decompose_and_load_take_it(self, without_tokenizer, tmp_path):
        model, texts = shared(without_tokenizer), [f"w{4 + i % 16} w{4 + i * 3 % 16} w7" for i in range(24)]
        key = ZOO[without_tokenizer].params[0]
        by_text = pf.decompose(model, key, texts, tokenizer=tokenizer(), **QUICK)
        ids = torch.tensor([[1, 4 + i % 16, 4 + i * 3 % 16, 7] for i in range(24)])
        by_ids = pf.decompose(model, key, ids, **QUICK)
        expected = by_ids.activations(ids[:3])
        assert torch.equal(by_text.activations(texts[:3]), expected)
        by_text.save_pretrained(tmp_path)
        loaded = pf.load(tmp_path, model=model, tokenizer=tokenizer())
        assert torch.equal(loaded.activations(texts[:3]), expected)
        assert loaded.top_examples(0, n=1)[0].tokens[0] == "<s>"

    def test_without_it_strings_are_refused(self, without_tokenizer):
        with pytest.raises(AdapterError, match=r"has no tokenizer.*tokenizer="):
            pf.decompose(shared(without_tokenizer), ZOO[without_tokenizer].params[0], ["w4 w5"], **QUICK)


@pytest.mark.parametrize("bridge", ["bridge llama in compatibility mode"])
def test_a_parameter_without_gradient_is_refused_by_name(bridge):
    """TransformerLens 3 computes a gated MLP from copies of the processed weights, so these get no gradient."""
    parameter = "blocks.0.mlp.W_in"
    if lens_major() >= 4:
        assert decomposed(shared(bridge), bridge, parameter).activations(**ZOO[bridge].data(2)).norm() > 1e-4
        return
    with pytest.raises(NoGradientError, match=parameter):
        decomposed(shared(bridge), bridge, parameter)
    both = decomposed(shared("bridge llama"), "bridge llama", parameter)
    assert both.activations(**ZOO[bridge].data(2)).norm() > 1e-4


class TestTheUsersModelWorksAsBefore:
    def test_its_output_is_the_same(self, name):
        """`nothing_leaks` compares the rest."""
        before = output_of(name)
        features = decomposed(shared(name), name)
        features.activations(**ZOO[name].data(2), route="jvp")
        features.top_logits(0)
        assert torch.equal(output_of(name), before)

    @pytest.mark.parametrize("wrapped", NNSIGHT)
    def test_nnsight_traces_it(self, wrapped):
        before = self._traced(wrapped)
        decomposed(shared(wrapped), wrapped).activations(**ZOO[wrapped].data(2))
        after = self._traced(wrapped)
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        assert torch.equal(after[-1], output_of(wrapped))

    def _traced(self, wrapped):
        model = shared(wrapped)
        with torch.no_grad(), model.trace(ZOO[wrapped].data(3)["tokens"]):
            block = (model.model.layers if "llama" in wrapped else model.transformer.h)[0]
            inside = block.output[0].save()
            logits = model.lm_head.output.save()
        return inside, logits

    @pytest.mark.parametrize("cached", [*BRIDGES, "hooked", "hooked grouped-query"])
    def test_transformer_lens_caches_it(self, cached):
        tokens = ZOO[cached].data(3)["tokens"]
        before, cache_before = shared(cached).run_with_cache(tokens)
        decomposed(shared(cached), cached).activations(tokens)
        after, cache_after = shared(cached).run_with_cache(tokens)
        assert torch.equal(before, after)
        assert cache_before.keys() == cache_after.keys()
        values = [(cache_before[key], cache_after[key]) for key in cache_before]  # noqa: SIM118
        tensors = [pair for pair in values if isinstance(pair[0], torch.Tensor)]
        assert len(tensors) > 30
        assert all(torch.equal(old, new) for old, new in tensors)


GPT2 = ["hf gpt2 sdpa", "hf gpt2 eager", "bridge gpt2", "hooked gpt2", "nnsight NNsight", "nnsight TransformersModel"]
LLAMA = ["hf llama sdpa", "bridge llama", "hooked llama", "nnsight NNsight llama"]
NEO = ["hf gpt-neo", "bridge gpt-neo"]
# The same parameters in Hugging Face's words and in TransformerLens'.
IN_BOTH = {
    "gpt2": (
        ["transformer.h.0.attn.c_attn.weight[k]", "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.bias[v]"],
        ["blocks.0.attn.W_K", "blocks.1.mlp.W_in", "blocks.1.attn.b_V"],
    ),
    "llama": (
        ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"],
        ["blocks.0.attn._W_K", "blocks.1.mlp.W_in", "ln_final.w"],
    ),
    "gpt-neo": (
        ["transformer.h.0.attn.attention.k_proj.weight", "transformer.h.1.attn.attention.out_proj.weight"],
        ["blocks.0.attn.W_K", "blocks.1.attn.W_O"],
    ),
}


def names_in(model, kind):
    return IN_BOTH[kind][model.startswith(("bridge", "hooked"))]


def is_far(source, target):
    """Of two wrappers, each of which is compared with Hugging Face's own; TransformerLens' two classes are compared too."""
    return not (
        source.startswith("hf") or target.startswith("hf") or {source.split()[0], target.split()[0]} == {"bridge", "hooked"}
    )


TRANSFERS = [
    pytest.param(kind, source, target, marks=[pytest.mark.release] if is_far(source, target) else [])
    for kind, models in {"gpt2": GPT2, "llama": LLAMA, "gpt-neo": NEO}.items()
    for source in models
    for target in models
    if source != target
]


@cache
def saved_features(folder, source, kind):
    features = decomposed(shared(source), source, names_in(source, kind))
    features.save_pretrained(folder / source)
    return features


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


class TestMovingBetweenLibraries:
    @pytest.mark.parametrize(("kind", "source", "target"), TRANSFERS)
    def test_features_load_where_the_weights_are_the_same(self, folder, kind, source, target):
        data = ZOO[source].data(3)
        shared(target)
        features = saved_features(folder, source, kind)
        loaded = pf.load(folder / source, model=shared(target))
        assert set(loaded.params) == set(names_in(target, kind))
        assert (
            dict(zip(features.params, loaded.params, strict=True)).items()
            >= dict(zip(names_in(source, kind), names_in(target, kind), strict=True)).items()
        )
        for route in ("vjp", "jvp"):
            expected, found = features.activations(**data), loaded.activations(**data, route=route)
            assert (found - expected).norm() <= 1e-4 * expected.norm()

    def test_a_tied_embedding_moves_to_a_model_that_ties_it_too(self, tmp_path):
        source, target = "hf gpt2 sdpa", "bridge gpt2"
        shared(target)
        features = decomposed(shared(source), source, "transformer.wte.weight")
        features.save_pretrained(tmp_path)
        loaded = pf.load(tmp_path, model=shared(target))
        assert list(loaded.params) == ["embed.W_E"]
        expected = features.activations(**ZOO[source].data(2))
        assert (loaded.activations(**ZOO[source].data(2)) - expected).norm() <= 1e-4 * expected.norm()

    def test_refused_where_compatibility_mode_changed_the_weights(self, folder, tmp_path):
        changed = shared("bridge gpt2 in compatibility mode")
        saved_features(folder, "bridge gpt2", "gpt2")
        with pytest.raises(FingerprintError, match=r"'blocks.0.attn.W_K' has other weights.*folding LayerNorm"):
            pf.load(folder / "bridge gpt2", model=changed)
        features_of("hf gpt2 sdpa").save_pretrained(tmp_path)
        with pytest.raises(UnknownParameterError, match=r"no 'transformer.h.0.attn.c_attn.weight\[k\]'.*same processing"):
            pf.load(tmp_path, model=changed)

    def test_refused_where_several_parameters_hold_the_same_values(self, tmp_path):
        """Fresh GPT-2's biases are all zero: any of the bridge's could be meant."""
        pytest.importorskip("transformer_lens")

        def without_biases(**settings):
            model = hf_gpt2(**settings)
            with torch.no_grad():
                for layer in (m for m in model.modules() if getattr(m, "bias", None) is not None):
                    layer.bias.zero_()
            return model

        pf.decompose(
            without_biases(), "transformer.h.0.attn.c_attn.bias[v]", **ZOO["hf gpt2 sdpa"].data(24), **QUICK
        ).save_pretrained(tmp_path)
        with pytest.raises(FingerprintError, match=r"could be 'blocks.*they hold the same values"):
            pf.load(tmp_path, model=booted(without_biases))

    @pytest.mark.parametrize("is_tied", [True, False])
    def test_refused_where_a_weight_is_tied_in_one_model_only(self, tmp_path, is_tied):
        tied, untied = hf_gpt2(), hf_gpt2(tie_word_embeddings=False)
        with torch.no_grad():
            for mine, theirs in zip(untied.transformer.parameters(), tied.transformer.parameters(), strict=True):
                mine.copy_(theirs)
        source, target = (tied, untied) if is_tied else (untied, tied)
        found = pf.decompose(source, "transformer.wte.weight", **ZOO["hf gpt2 sdpa"].data(24), **QUICK)
        found.save_pretrained(tmp_path)
        with pytest.raises(FingerprintError, match=r"'transformer.wte.weight' was held by \d module.*tied weights"):
            pf.load(tmp_path, model=target)
        assert pf.load(tmp_path, model=source).n_features == 3

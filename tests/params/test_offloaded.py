"""Models that `device_map=` spread out: weights that come and go, parameters and factors on several devices."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import param_features as pf
from param_features.errors import ModelStateError
from param_features.fit.formats import LowRank
from param_features.fit.l3d import remove_parallel, renormalize
from param_features.gradients import Factored, flatten, square_norm
from tests.models import Classifier

PART = "transformer.h.1.attn.c_attn.weight[k]"
TOKENS = torch.randint(20, (30, 8), generator=torch.Generator().manual_seed(1))
CALL = {"tokens": TOKENS, "n_samples": 150, "progress": False}
FIT = {"n_features": 4, "l0": 1.5, "steps": 10}
MAP = {
    "transformer.wte": "cpu", "transformer.wpe": "disk", "transformer.h.0": "disk", "transformer.h.1": "cpu",
    "transformer.ln_f": "disk", "lm_head": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    pytest.importorskip("transformers")
    from tests.adapters.zoo import hf_gpt2

    return hf_gpt2()


@pytest.fixture(scope="module")
def spread(plain, tmp_path_factory):
    """The same model with its first block, its positions and its last norm on the disk."""
    accelerate = pytest.importorskip("accelerate")
    from tests.adapters.zoo import hf_gpt2

    return accelerate.dispatch_model(hf_gpt2(), MAP, offload_dir=tmp_path_factory.mktemp("weights"))


def state(model) -> dict:
    return {name: (id(p), p.device.type, p.requires_grad) for name, p in model.named_parameters()}


def test_features_of_a_model_on_the_disk_are_those_of_the_model_bit_for_bit(plain, spread):
    before = state(spread)
    assert {device for _, device, _ in before.values()} == {"cpu", "meta"}
    expected, found = (pf.decompose(model, PART, **CALL, **FIT) for model in (plain, spread))
    assert all(torch.equal(a, b) for a, b in zip(found.v_out.tensors, expected.v_out.tensors, strict=True))
    assert dict(found.metrics) == dict(expected.metrics)
    for n_rows in (2, 8):  # by backward passes, and by forward mode
        rows = TOKENS[:n_rows, : 2 if n_rows == 2 else None]
        assert torch.equal(found.activations(rows), expected.activations(rows))
    assert state(spread) == before
    with found.steer({0: 0.5}), expected.steer({0: 0.5}):
        assert torch.equal(spread(TOKENS).logits, plain(TOKENS).logits)
    assert torch.equal(spread(TOKENS).logits, plain(TOKENS).logits)


def test_a_store_does_not_care_where_the_weights_were(plain, spread, tmp_path):
    store = pf.harvest(spread, PART, directory=tmp_path, **CALL)
    assert store.manifest.recipe == pf.harvest(plain, PART, directory=tmp_path, **CALL).manifest.recipe
    pf.decompose(plain, store=tmp_path, **FIT, progress=False).save_pretrained(tmp_path / "run")
    assert pf.load(tmp_path / "run", model=spread).activations(TOKENS[:2]).shape == (2, 8, 4)


def test_parameters_that_come_and_go_are_not_decomposed(spread):
    with pytest.raises(ModelStateError, match=r"offloaded 'transformer.h.0.attn.c_attn.weight'.*give the layers"):
        pf.decompose(spread, "transformer.h.*.attn.c_attn.weight", **CALL, **FIT)


@pytest.fixture
def apart():
    """Gradients and directions of two parameters on two devices, which only pretend to hold numbers; mixing them fails."""
    with torch.no_grad(), FakeTensorMode():
        sizes = {"a": (6, 5, "cuda:0"), "b": (4, 7, "cuda:1")}
        pairs = {n: (torch.empty(3, o, 2, device=at), torch.empty(3, i, 2, device=at)) for n, (o, i, at) in sizes.items()}
        gradients = {
            name: Factored(torch.empty(9, 4, o, device=device), torch.empty(9, 4, i, device=device))
            for name, (o, i, device) in sizes.items()
        }
        yield gradients, LowRank(pairs)


def test_what_joins_devices_is_small_and_factors_stay_where_they_are(apart):
    gradients, directions = apart
    first = torch.device("cuda:0")
    overlaps, gram = directions.inner(gradients), directions.gram()
    assert (overlaps.shape, overlaps.device) == ((9, 3), first)
    assert (gram.shape, gram.device) == ((3, 3), first)
    assert directions.overlaps(gradients).device == square_norm(gradients).device == first
    assert flatten(gradients).shape == (9, 6 * 5 + 4 * 7)
    for tensor in directions.tensors:
        tensor.grad = torch.empty_like(tensor)
    remove_parallel(directions)
    renormalize(directions)
    assert [tensor.device.index for tensor in directions.tensors] == [0, 0, 1, 1]


def test_mixing_devices_would_have_failed(apart):
    with pytest.raises(RuntimeError, match="found at least two devices|two different devices"):
        torch.empty(3, device="cuda:0") + torch.empty(3, device="cuda:1")


def test_tied_weights_may_come_and_go_too(plain, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from tests.adapters.zoo import hf_gpt2

    away = MAP | {"transformer.wte": "disk", "lm_head": "disk"}
    model = accelerate.dispatch_model(hf_gpt2(), away, offload_dir=tmp_path)
    expected, found = (pf.decompose(one, PART, **CALL, **FIT) for one in (plain, model))
    for ours, theirs in zip(found.v_out.tensors, expected.v_out.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)  # without W_U at hand the logits themselves are made


def test_inside_nnsight(plain, tmp_path):
    accelerate, nnsight = pytest.importorskip("accelerate"), pytest.importorskip("nnsight")
    from tests.adapters.zoo import hf_gpt2

    wrapped = nnsight.NNsight(accelerate.dispatch_model(hf_gpt2(), MAP, offload_dir=tmp_path))
    expected, found = (pf.decompose(one, PART, **CALL, **FIT) for one in (plain, wrapped))
    assert all(torch.equal(a, b) for a, b in zip(found.v_out.tensors, expected.v_out.tensors, strict=True))


@pytest.mark.parametrize("name", ["classifier.weight", "norm.weight"])
def test_any_module(images, tmp_path, name):
    accelerate = pytest.importorskip("accelerate")
    away = accelerate.dispatch_model(
        Classifier(), {"conv": "disk", "norm": "cpu", "classifier": "cpu"}, offload_dir=tmp_path
    )
    call = {"params": name, "inputs": images, "n_features": 2, "steps": 5, "progress": False}
    expected, found = (pf.decompose(one, **call) for one in (Classifier(), away))
    assert all(torch.equal(a, b) for a, b in zip(found.v_out.tensors, expected.v_out.tensors, strict=True))
    assert torch.equal(found.activations(inputs=images), expected.activations(inputs=images))

"""Reading checkpoints of every kind, and lending their weights to a model that ends as it was."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from param_features.development.checkpoints import check_checkpoints, checkpoint_tensors, chosen_weights, lent, read_steps
from param_features.errors import InputError, SettingError, StoreError, UnknownParameterError
from param_features.params import adapter_for
from tests.adapters.zoo import hf_gpt2
from tests.exits import EXITS, leave, leaving_by


class Normed(nn.Module):
    """Tied weights, a statistic that training changes, and a buffer that no state dict holds."""

    def __init__(self, d=3):
        super().__init__()
        self.embed, self.head, self.norm = nn.Linear(d, 3, bias=False), nn.Linear(3, d), nn.BatchNorm1d(3)
        self.also = nn.Linear(d, 3, bias=False)
        self.also.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x):
        return self.head(self.norm(self.embed(x) + self.also(x))) * self.scale


@pytest.fixture
def model():
    return Normed().eval()


def bits(model):
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def other(model, seed=0):
    """Another state dict of the model."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[name] = torch.rand(parameter.shape, generator=generator)
    found["also.weight"] = found["embed.weight"]
    found["norm.running_var"] = torch.rand(3, generator=generator) + 0.5
    return found


def forms(state, model, folder):
    """The same weights in every form that is read."""
    save_file({name: t.clone() for name, t in state.items()}, folder / "a.safetensors")
    torch.save(state, folder / "a.pt")
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    without_tie = {name: tensor for name, tensor in state.items() if name != "embed.weight"}
    yield from (state, twin, folder / "a.safetensors", str(folder / "a.pt"), lambda: state, prefixed, without_tie)
    yield lambda: folder / "a.pt"


def test_every_form_gives_the_same_weights(model, tmp_path):
    state, x, before = other(model), torch.randn(5, 3), bits(model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    adapter, n = adapter_for(model), 0
    for form in forms(state, model, tmp_path):
        with lent(adapter) as load:
            load(form, 3)
            assert torch.equal(model(x), twin(x))
            n += 1
        assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
    assert n == 8


@pytest.mark.parametrize("error", EXITS)
def test_the_model_is_as_it_was_on_every_exit(model, error):
    before, objects = bits(model), [id(parameter) for parameter in model.parameters()]
    with leaving_by(error), lent(adapter_for(model)) as load:
        load(other(model, 1), 0)
        load(other(model, 2), 1)
        assert not torch.equal(model.head.weight, before["head.weight"])
        leave(error)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
    assert [id(parameter) for parameter in model.parameters()] == objects


def test_ctrl_c_during_the_restoration_comes_out_after_it(model, monkeypatch):
    before, fills = bits(model), []
    from param_features.development import checkpoints

    fill = checkpoints._fill

    def interrupted(pairs):
        fills.append(len(pairs))
        if len(fills) == 2:  # the first loads, the second restores
            raise KeyboardInterrupt
        fill(pairs)

    monkeypatch.setattr(checkpoints, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt), lent(adapter_for(model)) as load:
        load(other(model), 0)
    assert len(fills) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())


@pytest.mark.parametrize("form", ["model", "state", "function"])
def test_the_model_itself_stands_for_the_weights_that_it_had(model, form):
    before = bits(model)
    given = {"model": model, "state": model.state_dict(), "function": lambda: model}[form]
    with lent(adapter_for(model)) as load:
        load(other(model), 0)
        load(given, 1)
        assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())


def test_other_dtypes_are_read_and_the_models_stays(model):
    state = {name: tensor.double() for name, tensor in other(model).items()}
    with lent(adapter_for(model)) as load:
        load(state, 0)
        assert model.head.weight.dtype == torch.float32
        assert torch.equal(model.head.weight, state["head.weight"].float())


def test_a_folder_and_a_revision_of_the_hub_are_read_by_the_models_own_class(tmp_path, monkeypatch):
    model = hf_gpt2(dtype=torch.float32)
    later = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(1.5)
    later.save_pretrained(tmp_path / "checkpoint-10")
    adapter, wanted = adapter_for(model), later.state_dict()
    asked, read = [], type(model).from_pretrained

    def stand_in(name, *, revision="main"):
        asked.append((name, revision))
        return read(tmp_path / "checkpoint-10" if name == "owner/name" else name)

    monkeypatch.setattr(type(model), "from_pretrained", staticmethod(stand_in))
    state = torch.random.get_rng_state()
    for given in (tmp_path / "checkpoint-10", "owner/name@step10"):
        found = checkpoint_tensors(adapter, given, 10)
        pairs = chosen_weights(adapter, found, 10)
        assert len(pairs) >= len(list(model.parameters()))
        assert all(torch.equal(found[name], wanted[name]) for name in ("transformer.wte.weight", "transformer.ln_f.bias"))
    assert asked == [(str(tmp_path / "checkpoint-10"), "main"), ("owner/name", "step10")]
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(StoreError, match="step 3.*cannot be read"):
        checkpoint_tensors(adapter, str(tmp_path), 3)


def test_folders_are_for_hugging_face_models(model, tmp_path):
    with pytest.raises(InputError, match="lambda: Normed.from_pretrained"):
        checkpoint_tensors(adapter_for(model), str(tmp_path), 3)


def test_steps_are_those_of_the_mapping_sorted_or_of_the_list():
    assert read_steps({20: "b", 3: "a"}, None) == [(3, "a"), (20, "b")]
    assert read_steps(["a", "b"], None) == [(0, "a"), (1, "b")]
    assert read_steps(("a", "b"), [0.5, 7]) == [(0.5, "a"), (7, "b")]


@pytest.mark.parametrize(
    ("checkpoints", "steps", "error", "match"),
    [
        ([], None, InputError, "no checkpoints"),
        ({}, None, InputError, "no checkpoints"),
        ("runs/a.pt", None, InputError, "is a str. Give a list"),
        ({"w": torch.ones(2)}, None, InputError, "is one state dict"),
        (["a", "b"], [1], SettingError, "1 numbers for 2 checkpoints"),
        (["a", "b"], [5, 5], SettingError, "5 after 5"),
        (["a", "b"], [5, 2], SettingError, "2 after 5"),
        ({"first": "a"}, None, SettingError, "'first' for a step"),
        ({1: "a"}, [1], SettingError, "says the steps already"),
    ],
)
def test_steps_that_are_refused(checkpoints, steps, error, match):
    with pytest.raises(error, match=match):
        read_steps(checkpoints, steps)


def test_checkpoints_that_are_refused_name_their_step(model, tmp_path):
    adapter, state = adapter_for(model), other(model)

    def refused(given, error, match):
        with pytest.raises(error, match=match):
            check_checkpoints(adapter, [(1, state), (70, given)])

    refused({**state, "head.weight": torch.ones(4, 3)}, InputError, r"head.weight.*\(4, 3\).*step 70.*\(3, 3\)")
    lacking = {name: tensor for name, tensor in state.items() if name != "head.bias"}
    refused(lacking, UnknownParameterError, "step 70 has no tensor for 'head.bias'")
    refused({"head.bias": state["head.bias"]}, UnknownParameterError, "and 5 more")
    statistics = {name: tensor for name, tensor in state.items() if "running_var" not in name}
    refused(statistics, UnknownParameterError, "norm.running_var")
    refused({**state, "ln.weight": torch.ones(3)}, InputError, "holds 'ln.weight', which the model has not")
    refused(Normed(4), InputError, "has shape")
    refused(tmp_path / "none.pt", StoreError, "where there is nothing")
    refused("none.safetensors", StoreError, "where there is nothing")
    refused(7, InputError, "is a int. Give a state dict")
    refused({"model": state, "step": 3}, InputError, r"dict with 'model', 'step'.*torch.load\(path\)\['model'\]")


def test_what_files_and_functions_hold_is_refused_when_it_is_read(model, tmp_path):
    torch.save({"model": other(model)}, tmp_path / "a.pt")
    check_checkpoints(adapter_for(model), [(2, tmp_path / "a.pt"), (3, lambda: 1 / 0)])
    with pytest.raises(InputError, match="checkpoint of step 2"):
        checkpoint_tensors(adapter_for(model), tmp_path / "a.pt", 2)
    with pytest.raises(InputError, match="step 3 is a int"):
        checkpoint_tensors(adapter_for(model), lambda: 5, 3)

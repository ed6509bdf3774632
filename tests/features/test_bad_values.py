"""Every public call with what users get wrong in every argument: an error by name comes out, or the call works."""

import importlib.metadata
import inspect
import traceback
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import ArgumentError, ParamFeaturesError
from tests.models import hooked_transformer

BAD = {
    "text": "blocks.0",
    "number as text": "100",
    "empty text": "",
    "path of nothing": "/no/such/place/x",
    "null byte": "a\0b",
    "negative": -1,
    "zero": 0,
    "fraction": 0.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "truth": True,
    "empty list": [],
    "list": [0, 10**6],
    "list of texts": ["a", 3],
    "mapping": {"x": 1},
    "tensor": torch.ones(3, 4),
    "integers": torch.ones(2, 3, dtype=torch.long),
    "no rows": torch.zeros(0, 3, dtype=torch.long),
    "complex": torch.ones(2, dtype=torch.complex64),
    "object": object(),
    "class": nn.Linear,
    "module": nn.Linear(2, 2),
    "function": lambda *_: None,
}
CALLED = {"output", "clock", "metric", "loss", "divergence"}
"""What the user gives to be called: errors inside it are the user's own."""


class Cheap(Exception):
    """The work would begin here."""


@pytest.fixture
def no_work(monkeypatch, tmp_path):
    """What costs is not done: this is about what comes before it. Nor is anything written but into an empty folder."""

    def begin(*_, **__):
        raise Cheap

    monkeypatch.chdir(tmp_path)
    for place in (
        "param_features.run.from_gradients.build_engine",
        "param_features.run.harvesting.harvested",
        "param_features.run.estimation.estimating.build_engine",
        "param_features.run.sweeping.sweeps.harvest_to_disk",
        "param_features.toys.tms.trained",
        "param_features.toys.modular_runs.cached_checkpoints",
    ):
        monkeypatch.setattr(place, begin)


def names_of(called):
    """Its arguments, but for those that swallow anything."""
    parameters = inspect.signature(called).parameters.values()
    return [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]


def outcome(called, arguments):
    """`works`, or the error's message; any other error is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            called(**arguments)
        except ParamFeaturesError as error:
            assert str(error).strip(), "an error without a word"
            return str(error)
        except Cheap:
            pass
        except Exception as error:
            if not is_of_the_model(error):
                raise
    return "works"


def is_of_the_model(error):
    """Whether a layer raised it on what it was given: the user's own model."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "forward" and "param_features/" not in frame.filename for frame in frames)


@pytest.fixture(scope="module")
def bound():
    """A module, its features, and those of a model of tokens."""
    model, hooked = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), hooked_transformer()
    call = {"n_features": 3, "l0": 1, "steps": 2, "progress": False}
    features = pf.decompose(model, "0.weight", inputs=torch.randn(40, 4), **call)
    tokens = torch.randint(20, (40, 10))
    return model, features, hooked, pf.decompose(hooked, "blocks.0.attn.W_K", tokens, **call)


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(20, (8, 6), generator=torch.Generator().manual_seed(0))


def calls(model, features, hooked, of_tokens):
    """Public calls with arguments that work."""
    fit = {"model": model, "params": "0.weight", "inputs": X, "n_features": 2, "l0": 1.0, "progress": False}
    found = {
        "decompose": (pf.decompose, fit | {"fit": {"steps": 2}}),
        "harvest": (
            pf.harvest,
            {"model": model, "params": "0.weight", "inputs": X, "directory": "store", "progress": False},
        ),
        "estimate": (pf.estimate, {name: value for name, value in fit.items() if name != "progress"}),
        "sweep": (pf.sweep, fit | {"rank": 1}),
        "describe": (pf.describe, {"model": model}),
        "list_params": (pf.list_params, {"model": model}),
        "load": (pf.load, {"directory": "nothing"}),
        "match": (pf.match, {"ours": features, "theirs": features}),
        "circuit": (pf.circuit, {"features": of_tokens, "prompts": IDS[:2], "n_random": 0, "n_nodes": 1, "n_rounds": 1}),
        "track": (pf.track, {"checkpoints": [], "features": features}),
        "stream_rows": (pf.stream_rows, {"dataset": ["a"], "n_rows": 1}),
        "compare": (pf.compare, {"features": of_tokens, "sae": None}),
        "train_sae": (pf.sae.train_sae, {"model": hooked, "hook_name": "nowhere", "tokens": IDS}),
        "sae_metrics": (pf.sae.sae_metrics, {"sae": None, "model": hooked, "tokens": IDS}),
        "superposition": (pf.toys.superposition, {}),
        "modular_training": (pf.toys.modular_training, {}),
        "tokens": (pf.demo.tokens, {"n": 1}),
        "stories": (pf.demo.stories, {"n": 1}),
        "adapter_for": (pf.adapters.adapter_for, {"model": model}),
        "read_sae": (pf.adapters.read_sae, {"source": None}),
        "query_key": (pf.circuits.query_key, {"features_q": features}),
        "interactions": (pf.circuits.interactions, {"features": of_tokens, "prompts": IDS[:2], "chosen": [0]}),
        "ticket_masks": (pf.development.ticket_masks, {"features": features, "by": "magnitude"}),
        "gini": (pf.development.gini, {"values": torch.ones(3)}),
        "dimensionality": (pf.development.dimensionality, {"vectors": torch.eye(3)}),
        "change_points": (pf.development.change_points, {"curve": torch.ones(3)}),
        "pushes": (pf.development.pushes, {"features": of_tokens, "tokens": IDS}),
        "token_losses": (pf.development.token_losses, {"model": hooked, "tokens": IDS}),
        "in_context_score": (pf.development.in_context_score, {"model": hooked, "tokens": IDS, "late": 4, "early": 1}),
        "learning_coefficient": (pf.development.learning_coefficient, {"features": features, "n_steps": 1}),
        "progress_losses": (pf.development.progress_losses, {"features": of_tokens, "tokens": IDS}),
    }
    for kind in (
        pf.FitSettings,
        pf.HessianSettings,
        pf.HarvestSettings,
        pf.AuditSettings,
        pf.CardSettings,
        pf.SweepSettings,
    ):
        found[kind.__name__] = (kind, {})
    found["CheckpointSettings"] = (pf.CheckpointSettings, {"directory": "checkpoints"})
    for method, arguments in METHODS.items():
        owner = of_tokens if "tokens" in arguments else features
        found[f"features.{method}"] = (getattr(owner, method), arguments)
    return found


METHODS = {
    "activations": {"inputs": X},
    "codes": {"inputs": X},
    "samples": {"inputs": X},
    "densities": {"inputs": X},
    "activation_parts": {"inputs": X},
    "top_examples": {"feature": 0, "n": 2},
    "top_logits": {"feature": 0, "n": 1},
    "errors_by_l0": {"inputs": X, "n_samples": 4},
    "direction": {"feature": 0},
    "steer": {"coefficients": {0: 1.0}},
    "steered": {"model": None, "coefficients": {0: 1.0}},
    "ablate": {"features": [0]},
    "coordinates": {"change": {"0.weight": torch.ones(3, 4)}},
    "audit": {"inputs": X, "settings": {"n_rows": 0}},
    "finetune": {"inputs": X, "features": [0], "steps": 1, "loss": lambda output, _: output.mean(), "progress": False},
    "view": {"feature": 0, "tokens": IDS[:1]},
    "view_neurons": {"tokens": IDS[:1]},
    "report": {"path": "page.html", "n_rows": 0},
    "save_pretrained": {"directory": "saved"},
    "to_lora": {"path": "lora", "coefficients": {0: 1.0}},
    "push_to_hub": {"repo": "no name"},
}


PLACES = {
    "activations": {"feature": 0, "inputs": X},
    "density": {"inputs": X},
    "direction": {"feature": 0},
    "pareto": {"inputs": X, "l0s": [1]},
    "steering": {"feature": 0, "inputs": X, "deltas": [0.1]},
}


@pytest.mark.parametrize("group", ["run", "analyses", "settings", "features", "plots"])
def test_only_errors_by_name_come_out(bound, no_work, group):
    """Thousands of calls, none of which does any work."""
    every = calls(*bound)
    every |= {f"plot.{name}": (getattr(pf.plot, name), {"features": bound[1]} | given) for name, given in PLACES.items()}
    n_refused = 0
    for name, (called, arguments) in every.items():
        if group_of(name) != group:
            continue
        for argument in names_of(called):
            for kind, value in (BAD | ({"large": 10**30} if argument == "seed" else {})).items():
                if argument in CALLED and kind in ("class", "module", "function"):
                    continue
                try:
                    n_refused += outcome(called, arguments | {argument: value}) != "works"
                except Exception as error:
                    error.add_note(f"{name}({argument}={kind})")
                    raise
    assert n_refused > 100


def group_of(name):
    if name in ("decompose", "harvest", "estimate", "sweep", "describe", "list_params", "load"):
        return "run"
    first = name.partition(".")[0]
    return {"features": "features", "plot": "plots"}.get(first, "settings" if name.endswith("Settings") else "analyses")


@pytest.mark.parametrize("word", ["lr", "batch_size", "learning_rate", "selection"])
@pytest.mark.parametrize("call", ["decompose", "sweep", "estimate"])
def test_a_setting_of_the_fit_is_said_where_it_belongs(bound, call, word):
    with pytest.raises(ArgumentError, match=rf"has no argument {word}=. It belongs to (harvest= or )?fit=.*pf.FitSettings"):
        getattr(pf, call)(bound[0], "0.weight", inputs=X, **{word: 1})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model, **_: pf.decompose(model, "0.weight", inputs=X, device="cuda"), "device=. .*model.to"),
        (
            lambda model, **_: pf.decompose(model, "0.weight", inputs=X, n_features="100"),
            "n_features='100'. Accepted: a whole",
        ),
        (lambda model, **_: pf.decompose(model, "0.weight", inputs=X, epochs=3), "It is steps= here"),
        (lambda model, **_: pf.decompose(model, X), "params=a tensor of shape .8, 4.*forgotten.*model, params.*list_params"),
        (lambda model, **_: pf.decompose(model, ["Once upon a time"]), "reads like a text: was params= forgotten"),
        (lambda model, **_: pf.harvest(model, inputs=X, directory="x"), "needs params=. pf.list_params"),
        (lambda model, **_: pf.decompose(model, inputs=X), "list_params"),
        (lambda model, **_: pf.decompose("gpt2", "W_K", X), "from_pretrained"),
        (lambda model, **_: pf.decompose(model.state_dict(), "W_K", X), "state dict"),
        (lambda model, **_: pf.decompose((model, None), "W_K", X), "Give the model alone"),
        (lambda model, **_: pf.decompose(nn.Linear, "W_K", X), "That is a class"),
        (lambda model, **_: pf.decompose(model, "0.weight", inputs=X.long()), "cannot be run on these tokens: mat1"),
        (lambda features, **_: pf.compare(nn.Linear(2, 2), features), "features= and sae= swapped"),
        (lambda features, **_: features.steer({1: 5.0}, positions=3), "has no argument positions="),
        (lambda model, **_: pf.decompose(model, "0.weight", inputs=X, fit={"lrr": 1}), "FitSettings.. has no argument lrr="),
        (lambda model, **_: pf.FitSettings(lr="0.1"), "FitSettings.. got lr='0.1'. Accepted: a number"),
    ],
)
def test_the_error_says_what_to_do(bound, call, said):
    with pytest.raises(ParamFeaturesError, match=said):
        call(model=bound[0], features=bound[1])


@pytest.mark.parametrize("n", [np.int64(2), torch.tensor(2), np.array(2)])
def test_single_numbers_of_other_libraries_are_numbers(n):
    settings = pf.HarvestSettings(n_samples=n)
    assert settings.n_samples == 2 and type(settings.n_samples) is int


@pytest.mark.parametrize(("method", "kind"), [("l3d", pf.FitSettings), ("hessian", pf.HessianSettings)])
def test_settings_may_be_mappings(bound, method, kind):
    given = {"n_features": 2, "l0": 1, "method": method, "progress": False, "inputs": torch.randn(40, 4)}
    settings = {"fit": {"steps": 1, "batch_size": 8}, "harvest": {"n_references": 3}}
    found = pf.decompose(bound[0], "0.weight", **given, **settings)
    assert found.config["fit"]["batch_size"] == 8
    assert len(found.references) == 3


def test_features_are_equal_where_they_are_one_object(bound, tmp_path):
    _, features, _, others = bound
    features.save_pretrained(tmp_path)
    assert features == features and features != others
    assert pf.load(tmp_path) != features
    assert len({features, features, others}) == 2
    assert (features.v_out == features.v_out, features.question == others.question) == (True, False)


def test_the_version_is_there():
    assert pf.__version__ == importlib.metadata.version("param_features")

"""What importing brings in, each checked in a fresh process."""

import subprocess
import sys

import pytest

OPTIONAL = (
    "transformer_lens", "transformers", "nnsight", "sae_lens", "circuitsvis", "matplotlib", "plotly", "accelerate", "peft",
    "huggingface_hub", "devinterp", "IPython", "datasets", "tokenizers",
)  # fmt: skip


def run(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_importing_brings_in_no_optional_library():
    code = f"import sys, param_features; print([name for name in {OPTIONAL!r} if name in sys.modules])"
    assert run(code) == "[]"


def test_decomposing_a_plain_module_brings_in_no_optional_library():
    code = f"""
import sys, torch, param_features as pf
features = pf.decompose(torch.nn.Linear(6, 4), "weight", inputs=torch.randn(80, 6), n_features=4, l0=1, steps=5,
                        progress=False)
features.activations(inputs=torch.randn(3, 6)), features.show(0)
print([name for name in {OPTIONAL!r} if name in sys.modules])
"""
    assert run(code).splitlines()[-1] == "[]"


def test_importing_does_nothing_else():
    code = """
import random, torch
random.seed(0); torch.manual_seed(0)
before = (random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads())
import param_features
print(before == (random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads()))
"""
    assert run(code) == "True"


def test_the_name_adapters_stays_free_for_adapterhub():
    code = "import sys; sys.path = [p for p in sys.path if p]; import param_features.adapters, importlib.util as u\n"
    code += "print('adapters' in sys.modules, param_features.adapters.__name__)"
    assert run(code) == "False param_features.adapters"


def test_the_subpackage_and_the_function_share_a_name_peacefully():
    code = (
        "import param_features as pf, param_features.decompose.l3d; print(callable(pf.decompose), pf.FitSettings.__module__)"
    )
    assert run(code) == "True param_features.decompose.settings"


@pytest.mark.parametrize("name", ["decompose", "list_params", "load", "demo", "ParamFeatures", "HarvestSettings"])
def test_public_names_are_there(name):
    import param_features

    assert name in param_features.__all__
    assert hasattr(param_features, name)

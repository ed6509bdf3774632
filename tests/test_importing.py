"""What importing brings in, each checked in a fresh process."""

import subprocess
import sys

import pytest

OPTIONAL = (
    "transformer_lens", "transformers", "nnsight", "sae_lens", "circuitsvis", "matplotlib", "plotly", "accelerate", "peft",
    "huggingface_hub", "devinterp", "IPython", "datasets", "tokenizers", "typer",
)  # fmt: skip


def run(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_importing_brings_in_no_optional_library():
    code = f"import sys, param_features; print([name for name in {OPTIONAL!r} if name in sys.modules])"
    assert run(code) == "[]"


FOREIGN = "import sys, torch; print([name for name in {!r} if name in sys.modules], torch.Tensor.backward.__module__)"
UNTOUCHED = "[] torch._tensor"
PLAIN = """
import torch, param_features as pf
model = torch.nn.Linear(6, 4)
call = {"inputs": torch.randn(80, 6), "n_features": 4, "l0": 1, "steps": 5, "progress": False}
features = pf.decompose(model, "weight", **call)
features.activations(inputs=torch.randn(3, 6)), features.show(0)
"""


def test_decomposing_a_plain_module_brings_in_no_optional_library():
    code = f"""{PLAIN}
adapter = pf.adapters.adapter_for(model)
try:
    pf.adapters.adapter_for("gpt2")
except pf.errors.AdapterError:
    {FOREIGN.format(OPTIONAL)}
"""
    assert run(code).splitlines()[-1] == UNTOUCHED


def test_the_core_works_where_no_optional_library_can_be_imported(tmp_path):
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
{PLAIN}
x = torch.randn(3, 6)
features.save_pretrained({str(tmp_path)!r})
loaded = pf.load({str(tmp_path)!r}, model=model)
print(torch.equal(loaded.activations(inputs=x), features.activations(inputs=x)))
print(loaded.top_logits(0) == features.top_logits(0))
"""
    shown = run(code).splitlines()
    assert shown[-2:] == ["True", "True"]
    assert "Feature 0: top examples" in shown[0]
    assert "input" in shown[1]


def test_decomposing_a_hugging_face_model_brings_in_no_other_library():
    pytest.importorskip("transformers")
    others = tuple(
        name for name in OPTIONAL if name in ("transformer_lens", "nnsight", "sae_lens", "devinterp", "circuitsvis")
    )
    code = f"""
import torch, param_features as pf
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8))
tokens = torch.randint(20, (30, 8))
features = pf.decompose(model, "transformer.h.0.attn.c_attn.weight[k]", tokens, n_features=4, l0=1, steps=5, progress=False)
features.show(0), pf.list_params(model)
{FOREIGN.format(others)}
"""
    assert run(code).splitlines()[-1] == UNTOUCHED


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
    code = "import param_features as pf, param_features.fit.l3d; print(callable(pf.decompose), pf.FitSettings.__module__)"
    assert run(code) == "True param_features.fit.settings"


@pytest.mark.parametrize("name", ["decompose", "list_params", "load", "demo", "ParamFeatures", "HarvestSettings"])
def test_public_names_are_there(name):
    import param_features

    assert name in param_features.__all__
    assert hasattr(param_features, name)


def test_nnsight_may_be_imported_first():
    pytest.importorskip("nnsight")
    assert (
        run("import nnsight, param_features; print((1).save is not None, param_features.fit.__name__)") == "True decompose"
    )

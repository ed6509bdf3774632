"""What importing brings in, each checked in a fresh process."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import param_features as pf
from param_features.development import Track, track
from param_features.run import ComponentSweep, Sweep, decompose, load, sweep

PACKAGE = Path(pf.__file__).parent
ADAPTERS = (PACKAGE / "adapters").resolve()

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


def package_files() -> dict[str, Path]:
    """Every module's dotted name and file, in the package and in the adapters that it links to."""
    modules = {}
    for folder, name in ((PACKAGE, "param_features"), (ADAPTERS, "param_features.adapters")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if folder == ADAPTERS or parts[:1] != ("adapters",):
                modules[".".join((name, *parts))] = file
    return modules


def names_in(file: Path) -> set[str]:
    """The functions and classes that a module defines at its top."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, kinds)}


def test_no_function_or_class_has_the_name_of_a_module_beside_it():
    modules = package_files()
    assert len(modules) > 300, "the walk has lost the package"
    clashes = []
    for package, file in modules.items():
        if file.name == "__init__.py":
            members = {name.rpartition(".")[2]: path for name, path in modules.items() if name.rpartition(".")[0] == package}
            sources = [file, *(path for path in members.values() if path.name != "__init__.py")]
            clashes += [f"{package}: {name} of {path.name}" for path in sources for name in names_in(path) & set(members)]
    assert clashes == []


def test_every_module_can_be_imported_under_a_name_of_its_own():
    modules = [name for name in package_files() if not name.endswith("__main__")]
    code = "\n".join(f"import {name} as x; assert x.__name__ == {name!r}, (x, {name!r})" for name in modules)
    assert run(f"{code}\nprint('done')") == "done"


EITHER = pf.ParamFeatures | pf.ParamComponents


@pytest.mark.parametrize(
    ("name", "below", "returned"),
    [
        ("decompose", decompose, EITHER),
        ("load", load, EITHER),
        ("sweep", sweep, Sweep[EITHER] | ComponentSweep[EITHER]),
        ("track", track, Track[EITHER]),
    ],
)
def test_a_call_whose_result_gets_methods_looks_like_the_one_below(name, below, returned):
    function, signature = getattr(pf, name), inspect.signature(getattr(pf, name))
    assert function.__name__ == name
    assert function.__doc__ == below.__doc__
    assert signature == inspect.signature(below).replace(return_annotation=returned)
    assert function.__annotations__["return"] == returned
    assert below.__annotations__["return"] != returned


@pytest.mark.parametrize("name", ["decompose", "list_params", "load", "demo", "ParamFeatures", "HarvestSettings"])
def test_public_names_are_there(name):
    assert name in pf.__all__
    assert hasattr(pf, name)


def test_nnsight_may_be_imported_first():
    pytest.importorskip("nnsight")
    code = "import nnsight, param_features as pf; print((1).save is not None, pf.decompose.__name__)"
    assert run(code) == "True decompose"

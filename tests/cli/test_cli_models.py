"""Models from folders, without network; what is refused, and why."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from param_features.cli.models import ModelSource, load_model
from param_features.errors import MissingExtraError, SettingError, SourceError
from param_features.params import adapter_for
from tests.adapters.zoo import hf_gpt2

TOKENS = torch.tensor([[1, 5, 7, 4]])


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(model_folder, tmp_path / "copy")


def logits(loaded):
    with torch.no_grad():
        return adapter_for(loaded.model).run(TOKENS)


def test_a_folder_gives_its_model_and_tokenizer_without_network(model_folder, attempts):
    loaded = load_model(ModelSource(str(model_folder)))
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert not loaded.model.training
    torch.testing.assert_close(logits(loaded), hf_gpt2(dtype=torch.float32).eval()(TOKENS).logits.detach())
    assert loaded.tokenizer("w4 w5")["input_ids"] == [1, 4, 5]
    assert loaded.n_ctx == 12
    assert attempts == []


def test_the_same_folder_as_a_bridge_without_network(model_folder, attempts):
    pytest.importorskip("transformer_lens")
    found = load_model(ModelSource(str(model_folder), "transformer-lens"))
    assert type(found.model).__name__ == "TransformerBridge"
    assert "blocks.0.attn.W_K" in adapter_for(found.model).views()
    torch.testing.assert_close(logits(found), logits(load_model(ModelSource(str(model_folder)))), atol=1e-4, rtol=1e-4)
    assert attempts == []


def test_a_name_of_the_hub_is_looked_up_there(attempts, monkeypatch):
    """The control of the two tests above: with no folder, something does try the network."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the hub client's attempts
    with pytest.raises(SourceError, match="'nobody/nothing-at-all' of the Hugging Face hub cannot be loaded"):
        load_model(ModelSource("nobody/nothing-at-all"))
    assert attempts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_the_checkpoints_dtype_unless_another_is_named(model_folder, tmp_path, dtype):
    hf_gpt2(dtype=dtype).save_pretrained(tmp_path)
    assert load_model(ModelSource(str(tmp_path))).model.dtype == dtype
    assert load_model(ModelSource(str(tmp_path), dtype="float64")).model.dtype == torch.float64


def test_a_folder_without_tokenizer_gives_none_which_the_bridge_refuses(tmp_path, attempts):
    hf_gpt2(dtype=torch.float32).save_pretrained(tmp_path)
    assert load_model(ModelSource(str(tmp_path))).tokenizer is None
    pytest.importorskip("transformer_lens")
    with pytest.raises(SourceError, match="holds no tokenizer"):
        load_model(ModelSource(str(tmp_path), "transformer-lens"))
    assert attempts == []


def test_the_embedded_model_is_there():
    pytest.importorskip("transformer_lens")
    loaded = load_model(ModelSource("demo"))
    assert loaded.n_ctx == 64
    assert loaded.tokenizer is not None


def test_folders_that_hold_no_model_are_refused(folder, tmp_path):
    with pytest.raises(SourceError, match=r"is a folder without config.json"):
        load_model(ModelSource(str(tmp_path)))
    with pytest.raises(SourceError, match="is a file. Give the folder"):
        load_model(ModelSource(str(folder / "config.json")))
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="holds config.json and no weights"):
        load_model(ModelSource(str(folder)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"nothing"),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "no such architecture"}'),
        ("config.json", b'{"model_type": "vit"}'),
    ],
)
def test_broken_files_are_refused(folder, name, content, attempts):
    (folder / name).write_bytes(content)
    with pytest.raises(SourceError, match="The folder .*copy' cannot be loaded as a language model"):
        load_model(ModelSource(str(folder)))
    assert attempts == []


class Harmful:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_and_pickles_in_a_folder_never_run(folder, tmp_path):
    harm, config = tmp_path / "harm", json.loads((folder / "config.json").read_text())
    (folder / "own.py").write_text(f"open({str(harm)!r}, 'w')")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokens", None]}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    with pytest.raises(SourceError, match="cannot be loaded as a language model"):
        load_model(ModelSource(str(folder)))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Harmful(harm)}, folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="cannot be loaded as a language model"):
        load_model(ModelSource(str(folder)))
    assert not harm.exists()


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match="The folder .*: its tokenizer cannot be read"):
        load_model(ModelSource(str(folder)))


def test_weights_that_would_be_random_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=rf"lacks 1 of its model's weights.*\({name}\): they would be random"):
        load_model(ModelSource(str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(SourceError, match="lacks 13 of its .* …"):
        load_model(ModelSource(str(folder)))


def test_weights_of_another_shape_are_refused_without_a_report_of_many_lines(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 24}))
    with pytest.raises(SourceError, match=r"lacks 1 of its .*in another shape \(transformer.wpe.weight\)"):
        load_model(ModelSource(str(folder)))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("device", ["nowhere", "meta:x"])
def test_a_device_that_is_not_there_is_refused(model_folder, device):
    with pytest.raises(SettingError, match=f"--device {device} cannot be used"):
        load_model(ModelSource(str(model_folder), device=device))


@pytest.mark.parametrize(
    ("library", "missing", "extra"),
    [("hf", "transformers", "hf"), ("transformer-lens", "transformer_lens.model_bridge", "lens")],
)
def test_missing_libraries_are_named_with_their_extra(model_folder, monkeypatch, library, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "param_features\[{extra}\]"'):
        load_model(ModelSource(str(model_folder), library))


def test_what_libraries_print_goes_to_the_error_stream(model_folder, capsys, monkeypatch):
    import transformers

    real = transformers.AutoTokenizer.from_pretrained

    def loud(*arguments, **settings):
        print("a library speaks")  # noqa: T201
        return real(*arguments, **settings)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", loud)
    load_model(ModelSource(str(model_folder)))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a library speaks" in printed.err

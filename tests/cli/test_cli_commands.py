"""The commands as a user runs them: what is printed where, what is saved, and how they end."""

import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import param_features as pf
from param_features.cli.app import app, main
from param_features.cli.models import ModelSource, load_model
from param_features.fit.components import ComponentTrainer
from tests.saes import random_sae
from tests.stops import stopped_after

COMMANDS = ("demo", "list-params", "harvest", "decompose", "report", "compare", "push")
PARAM = "transformer.h.1.attn.c_attn.weight[k]"
SMALL = ("--n-ctx", "8", "--n-features", "4", "--l0", "1.5", "--steps", "10", "--n-samples", "300", "--seed", "3")


@pytest.fixture
def decompose(model_folder, text_file):
    """Arguments of a small decomposition."""
    return ("decompose", "--model", model_folder, "--params", PARAM, "--dataset", text_file, *SMALL)


@pytest.fixture
def saved(command, decompose, tmp_path):
    """A saved run."""
    assert command(*decompose, "--out", tmp_path / "run", "-q")[0] == 0
    return tmp_path / "run"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=["program", *COMMANDS])
def test_help_fits_the_terminal_and_is_plain_where_there_is_none(arguments, width):
    found = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": str(width), "TERMINAL_WIDTH": None})
    assert found.exit_code == 0, found.output
    assert max(len(line) for line in found.stdout.splitlines()) <= width
    assert "\x1b" not in found.stdout
    assert found.stderr == ""


def test_help_names_the_commands_and_groups_their_options():
    listed = CliRunner().invoke(app, ["--help"]).stdout
    assert all(name in listed for name in COMMANDS)
    shown = CliRunner().invoke(app, ["decompose", "-h"], env={"COLUMNS": "100"}).stdout
    titles = re.findall(r"╭─ (\w+) ─", shown)
    assert titles == ["Options", "Model", "Data", "Fit", "Output"]
    for choices in ("<hf|transformer-lens>", "<auto|kl|se|sum>", "<l3d|hessian|components>", "<pursuit|top_k|l1>"):
        assert choices in shown
    assert "[default: (64, or the model's context" in shown


def test_no_arguments_show_the_help_and_fail(command):
    status, out, _ = command()
    assert status == 2
    assert "list-params" in out


def test_the_version_is_the_librarys(command):
    from importlib.metadata import version

    assert command("--version") == (0, f"param_features {version('param_features')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'. See: param-features --help"),
        (["decompose", "--model", "x"], "Missing option .* See: param-features decompose --help"),
        (["list-params", "--modl", "x"], "No such option: --modl .*--model"),
        (["list-params", "--model", "x", "--library", "y"], "'y' is not one of 'hf', 'transformer-lens'"),
        (["list-params", "--model", "./x"], r"There is no './x' here"),
    ],
)
def test_errors_are_one_line_with_status_2(command, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert re.fullmatch(f"Error: .*{message}.*\n", err)
    assert list(tmp_path.iterdir()) == []


def test_list_params_prints_an_aligned_table(command, model_folder, attempts):
    status, out, err = command("list-params", "--model", model_folder)
    assert (status, err, attempts) == (0, "", [])
    lines = out.splitlines()
    assert lines[0].split() == ["name", "shape", "size", "parts"]
    model = load_model(ModelSource(str(model_folder))).model
    for line, info in zip(lines[1:], pf.list_params(model), strict=True):
        name, shape, size, *parts = re.split(r"\s{2,}| (?=[kv]$| [kv])", line, maxsplit=3)
        assert (name, shape, int(size.replace(",", ""))) == (info.name, " x ".join(map(str, info.shape)), info.n_params)
        assert tuple(" ".join(parts).split()) == info.parts
    assert len({line.index(line.split()[1]) for line in lines}) == 1


def test_decompose_saves_what_the_library_finds_and_touches_no_network(
    command, decompose, model_folder, texts, tmp_path, attempts
):
    status, out, err = command(*decompose, "--out", tmp_path / "run")
    assert (status, attempts) == (0, [])
    loaded = load_model(ModelSource(str(model_folder)))
    rows = [ids[start : start + 8] for ids in loaded.tokenizer(texts)["input_ids"] for start in (0, 8)]
    call = {"n_features": 4, "l0": 1.5, "steps": 10, "n_samples": 300, "seed": 3, "progress": False}
    expected = pf.decompose(loaded.model, PARAM, torch.tensor(rows), **call)
    assert out == f"{expected!r}\n"
    found = pf.load(tmp_path / "run", model=loaded.model)
    for feature in range(4):
        assert torch.equal(found.direction(feature)[PARAM], expected.direction(feature)[PARAM])
    assert "GPT2LMHeadModel, 2 layers" in err
    assert "data: 120 rows of 8 tokens, 76% of the 1,260 tokens read" in err
    assert err.endswith(f"Saved in {tmp_path / 'run'}.\n")
    assert "\x1b[" not in out


def test_settings_of_the_fit_reach_it(command, decompose, tmp_path):
    asked = ("--divergence", "se", "--reference", "mean", "--format", "cp", "--selection", "top_k", "--rank", "2")
    assert command(*decompose, *asked, "--out", tmp_path / "run", "-q")[0] == 0
    found = pf.load(tmp_path / "run")
    assert (found.divergence.name, found.reference) == ("se", "mean")
    assert (found.config["format"], found.config["rank"], found.config["l0"]) == ("cp", 2, 1.5)
    assert (found.config["fit"]["selection"], found.config["fit"]["steps"]) == ("top_k", 10)
    assert found.config["harvest"]["n_samples"] == 300


def test_the_hessian_method_has_no_selection(command, decompose, tmp_path):
    status, _, err = command(*decompose, "--method", "hessian", "--selection", "l1", "--out", tmp_path / "run")
    assert status == 2
    assert "Selections belong to l3d" in err


@pytest.mark.usefixtures("few_metrics")
def test_components_are_saved_and_go_on_when_the_command_is_given_again(command, model_folder, text_file, tmp_path):
    data = ("--model", model_folder, "--params", PARAM, "--dataset", text_file, "--n-ctx", "8")
    call = ("decompose", *data, "--method", "components", "--n-features", "4", "--steps", "3")
    kept = ("--checkpoint-dir", tmp_path / "kept")
    status, out, _ = command(*call, *kept, "--out", tmp_path / "run", "-q")
    assert status == 0 and "rounded" in out
    with stopped_after(0, ComponentTrainer):
        assert command(*call, *kept, "--out", tmp_path / "again", "-q")[0] == 0
    one, other = (pf.load(tmp_path / folder) for folder in ("run", "again"))
    assert isinstance(one, pf.ParamComponents) and one.config["n_components"] == {PARAM: 4}
    assert torch.equal(one.dictionary.parts[PARAM].U, other.dictionary.parts[PARAM].U)


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--rank", 2), "are of rank 1"), (("--selection", "l1"), "belong to l3d"), (("--l0", 2), "l0= is")],
)
def test_components_have_no_settings_of_directions(command, model_folder, text_file, tmp_path, option, message):
    data = ("--model", model_folder, "--params", PARAM, "--dataset", text_file, "--n-ctx", "8")
    status, _, err = command("decompose", *data, "--method", "components", *option, "--out", tmp_path / "run")
    assert status == 2 and message in err


def test_several_params_and_globs_are_taken_together(command, decompose, tmp_path):
    assert command(*decompose, "--params", "transformer.h.*.ln_1.bias", "--out", tmp_path / "run", "-q")[0] == 0
    assert set(pf.load(tmp_path / "run").params) == {PARAM, "transformer.h.0.ln_1.bias", "transformer.h.1.ln_1.bias"}


def test_quiet_leaves_the_error_stream_empty(command, decompose, tmp_path):
    status, out, err = command(*decompose, "--out", tmp_path / "run", "--quiet")
    assert (status, err) == (0, "")
    assert out.startswith("ParamFeatures: 4 features")


@pytest.mark.filterwarnings("always::param_features.errors.Notice")
def test_a_notice_is_a_line_which_quiet_leaves_out(command, decompose, tmp_path):
    steps = "--steps", "1", "--params", "*ln_1.bias"
    _, _, err = command(*decompose, *steps, "--out", tmp_path / "run")
    assert re.search("^control_pca reconstructs as well as the fit: .*$", err, re.MULTILINE) and "Notice" not in err
    assert command(*decompose, *steps, "--quiet", "--out", tmp_path / "quiet")[2] == ""


def test_an_unknown_parameter_is_one_line(command, decompose, tmp_path):
    status, out, err = command(*decompose, "--params", "transformer.h.1.atn", "--out", tmp_path / "run", "-q")
    assert (status, out) == (2, "")
    assert re.fullmatch("Error: No parameter matches 'transformer.h.1.atn'.*nearest: 'transformer.*\n", err)
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_over_without_force(command, decompose, saved):
    before = (saved / "features.safetensors").read_bytes()
    status, _, err = command(*decompose, "--seed", "4", "--out", saved)
    assert status == 2
    assert re.fullmatch("Error: --out .* is not empty. .*--force.*\n", err)
    assert (saved / "features.safetensors").read_bytes() == before
    assert command(*decompose, "--seed", "4", "--out", saved, "--force", "-q")[0] == 0
    assert (saved / "features.safetensors").read_bytes() != before
    status, _, err = command(*decompose, "--out", saved / "config.json")
    assert (status, err) == (2, f"Error: --out {saved / 'config.json'} is a file. Give a folder.\n")


def test_a_stopped_decomposition_goes_on_when_the_command_is_given_again(command, decompose, saved, tmp_path):
    kept = (*decompose, "--checkpoint-dir", tmp_path / "kept", "--out", tmp_path / "again", "-q")
    with stopped_after(4), pytest.raises(RuntimeError, match="stopped here"):
        command(*kept)
    assert (tmp_path / "kept" / "fit.safetensors").is_file()
    assert command(*kept)[0] == 0
    whole, again = (pf.load(folder) for folder in (saved, tmp_path / "again"))
    assert torch.equal(whole.v_out.tensors[0], again.v_out.tensors[0])
    status, _, err = command(*kept, "--force", "--steps", "11")
    assert status == 2
    assert "is of another fit: fit.steps= 11, there 10" in err


def test_data_that_are_not_there_are_refused_before_the_model_is_loaded(command, decompose, tmp_path, monkeypatch):
    monkeypatch.setattr("param_features.cli.decompose_command.load_model", lambda _: pytest.fail("the model was loaded"))
    assert command(*decompose, "--dataset", "gone.txt", "--out", tmp_path / "run")[0] == 2
    assert command(*decompose, "--dataset", "demo", "--out", tmp_path / "run")[0] == 2


def test_ctrl_c_ends_with_130(command, decompose, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pf, "decompose", interrupted)
    status, out, err = command(*decompose, "--out", tmp_path / "run", "-q")
    assert (status, out, err) == (130, "", "Interrupted.\n")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_during_the_fit_saves_what_is_found_and_ends_with_130(command, decompose, tmp_path, monkeypatch):
    whole = pf.decompose

    def cut_short(*arguments, **settings):
        features = whole(*arguments, **settings)
        return replace(features, config={**features.config, "steps_done": 9})

    monkeypatch.setattr(pf, "decompose", cut_short)
    status, out, err = command(*decompose, "--out", tmp_path / "run", "-q")
    assert (status, err) == (130, "Interrupted.\n")
    assert "reconstruction_error" in out
    assert pf.load(tmp_path / "run").n_features == 4


def test_a_bug_is_not_dressed_up_as_a_wrong_argument(decompose, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pf, "decompose", broken)
    with pytest.raises(ZeroDivisionError):
        main([*map(str, decompose), "--out", str(tmp_path / "run"), "-q"])


@pytest.fixture
def sae(tmp_path):
    """A folder with a random SAE of what the model's second block writes."""
    found = random_sae(d_in=16, metadata={"hook_name": "transformer.h.1"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.save_model(str(tmp_path / "sae"))
    return tmp_path / "sae"


@pytest.fixture
def reported(monkeypatch):
    """What `features.report` was called with."""
    calls = []

    def report(features, path, *, tokens=None, sae=None, hook_name=None):
        calls.append((features, path, tokens, sae))
        return path

    monkeypatch.setattr(pf.ParamFeatures, "report", report)
    return calls


def test_decompose_writes_a_report_where_asked(command, decompose, tmp_path, reported):
    status, _, err = command(*decompose, "--report", "--out", tmp_path / "run")
    assert status == 0
    [(features, path, tokens, sae)] = reported
    assert (features.n_features, path, tokens, sae) == (4, tmp_path / "run" / "report.html", None, None)
    assert err.endswith(f"Report: {path}\n")
    assert all(token.startswith(("<", " w")) for token in features.top_examples(0, 1)[0].tokens)


def test_report_binds_the_run_and_passes_on_what_it_was_given(
    command, saved, model_folder, text_file, sae, reported, tmp_path
):
    assert command("report", saved, "--model", model_folder)[0] == 0
    data = ("--dataset", text_file, "--n-ctx", 8, "--n-rows", 10)
    assert command("report", saved, "--model", model_folder, *data, "--sae", sae, "--out", tmp_path / "x.html")[0] == 0
    (bare, path, tokens, no_sae), (_, other_path, rows, given) = reported
    assert bare.engine is not None
    assert bare.top_examples(0, 1)[0].tokens[0].startswith(("<s>", " w"))
    assert (path, tokens, no_sae) == (saved / "report.html", None, None)
    assert (other_path, tuple(rows.shape), given) == (tmp_path / "x.html", (10, 8), sae)


def test_the_report_is_a_page(command, saved, model_folder, text_file, sae):
    data = ("--dataset", text_file, "--n-ctx", 8, "--n-rows", 10)
    status, _, err = command("report", saved, "--model", model_folder, *data, "--sae", sae)
    assert (status, err.count("Report: ")) == (0, 1)
    page = (saved / "report.html").read_text(encoding="utf-8")
    assert "4 features of" in page
    assert "of a standard SAE at transformer.h.1, 80 samples" in page


def test_compare_prints_the_librarys_table(command, saved, model_folder, text_file, sae):
    data = ("--dataset", text_file, "--n-ctx", 8, "--n-rows", 20)
    arguments = ("compare", saved, "--model", model_folder, "--sae", sae, *data, "-q")
    status, out, _ = command(*arguments)
    assert status == 0
    assert re.match(r"Comparison: 4 features of .* at transformer\.h\.1, 160 samples\n", out)
    assert "with a counterpart" in out
    status, out, _ = command(*arguments, "--hook-name", "transformer.h.0")
    assert (status, "at transformer.h.0, 160 samples" in out) == (0, True)
    status, _, err = command(*arguments, "--hook-name", "transformer.h.9")
    assert (status, err.count("\n")) == (2, 1)
    assert "transformer.h.9" in err


def test_runs_saes_and_models_that_do_not_fit_are_refused(command, saved, model_folder, text_file, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = command("report", tmp_path / "empty", "--model", model_folder)
    assert status == 2
    assert "holds no config.json. Saved features are a folder" in err
    arguments = ("compare", saved, "--model", model_folder, "--dataset", text_file, "--sae", tmp_path / "empty")
    status, _, err = command(*arguments)
    assert status == 2
    assert "holds no cfg.json, so it is no SAE" in err


def test_a_run_of_other_weights_is_refused(command, saved, tmp_path, capsys):
    from tests.adapters.zoo import hf_gpt2

    other = hf_gpt2(dtype=torch.float32)
    with torch.no_grad():
        other.transformer.h[1].attn.c_attn.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    capsys.readouterr()
    status, out, err = command("report", saved, "--model", tmp_path / "other")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert PARAM in err


@pytest.mark.slow
def test_the_demo_prints_features_and_metrics(command, tmp_path):
    pytest.importorskip("transformer_lens")
    status, out, err = command("demo", "--quick", "--n-shown", 3, "--n-examples", 2, "--out", tmp_path / "run", "-q")
    assert (status, err) == (0, f"Saved in {tmp_path / 'run'}.\n")
    assert re.findall(r"^Feature (\d+)$", out, re.MULTILINE) == ["0", "1", "2"]
    assert out.count("«") == 6
    assert "control_pca" in out
    assert pf.load(tmp_path / "run").n_features == 100


def script() -> str:
    found = Path(sys.executable).with_name("param-features")
    if not found.is_file():
        pytest.skip("param_features is not installed in this environment")
    return str(found)


def test_the_console_script_runs_and_colours_nothing_in_a_pipe(model_folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    call = {"capture_output": True, "text": True, "check": False, "env": environment}
    found = subprocess.run([script(), "list-params", "--model", str(model_folder)], **call)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("name ")
    assert "\x1b" not in found.stdout
    failed = subprocess.run([script(), "list-params", "--model", "./gone"], **call)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


def test_the_module_runs_under_its_own_name():
    found = subprocess.run([sys.executable, "-m", "param_features", "decompose", "-h"], capture_output=True, text=True)
    assert found.returncode == 0
    assert "Usage: python -m param_features decompose" in found.stdout


def test_a_closed_pipe_leaves_no_traceback(model_folder):
    """As in `param-features list-params … | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "param_features", "list-params", "--model", str(model_folder)]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_from_its_folder(command, real_folder, tmp_path, attempts):
    model = ("--model", real_folder / "stories260K", "--params", "model.layers.2.self_attn.k_proj.weight")
    data = ("--dataset", real_folder / "tinystories_500.json", "--n-rows", 1000)
    small = ("--n-samples", 4000, "--steps", 100, "--out", tmp_path / "run", "-q")
    status, out, _ = command("decompose", *model, *data, *small)
    assert (status, attempts) == (0, [])
    found = pf.load(tmp_path / "run")
    assert out == f"{found!r}\n"
    assert found.metrics["reconstruction_error"] < 0.9 * found.metrics["control_pca"]

"""`harvest`, and `decompose --store`."""

import pytest
import torch

import param_features as pf

PARAM = "transformer.h.1.attn.c_attn.weight[k]"
FIT = ("--n-features", "4", "--l0", "1.5", "--steps", "10", "--seed", "3", "-q")


def test_a_store_gives_the_features_that_its_texts_give(command, model_folder, text_file, tmp_path):
    data = ("--dataset", text_file, "--n-ctx", "8", "--params", PARAM, "--n-samples", "300")
    harvest = ("harvest", "--model", model_folder, *data, "--seed", "3", "--out", tmp_path / "store", "-q")
    status, out, err = command(*harvest)
    assert (status, err) == (0, "")
    assert out.startswith("FactorStore: ")
    assert command(*harvest)[0] == 0
    other = ("--model", model_folder, "--out")
    assert command("decompose", "--store", tmp_path / "store", *other, tmp_path / "one", *FIT)[0] == 0
    assert command("decompose", *data, *other, tmp_path / "two", *FIT)[0] == 0
    one, two = pf.load(tmp_path / "one"), pf.load(tmp_path / "two")
    assert all(torch.equal(a, b) for a, b in zip(one.v_out.tensors, two.v_out.tensors, strict=True))
    assert one.config["store"]["directory"] == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--params", PARAM], r"no --dataset. Give --dataset and --params, or --store"),
        (["--dataset", "texts.json"], r"no --params"),
        (["--store", "x", "--dataset", "texts.json"], r"--dataset texts.json beside --store x"),
    ],
)
def test_a_run_needs_texts_or_a_store(command, model_folder, tmp_path, given, message):
    status, _, err = command("decompose", "--model", model_folder, *given, "--out", tmp_path / "run")
    assert status == 2
    assert message.replace("\\", "") in err

"""Two processes that accelerate launched: the same store, bit for bit, and the same features up to summation order."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import param_features as pf

pytest.importorskip("accelerate")
pytest.importorskip("transformer_lens")

from tests.parallel.job import KINDS, REFERENCES, run  # noqa: E402

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9
"""Sums over a batch are taken in two parts. In float64 that changes a step by 1e-16 of it, and tens of steps, through Adam's
division by a root, by far less than this; a sample left out or counted twice changes the first digits."""

LAUNCH = (
    sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip


def free_port() -> str:
    """One that no other test's processes meet at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def launch(*arguments, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a module in two processes that talk over the CPU."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [*LAUNCH, "--main_process_port", free_port(), "-m", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=cwd or root)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = launch("tests.parallel.job", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(folder)
    return folder


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_store_is_that_of_one_process_bit_for_bit(one, two, reference):
    ours, theirs = (sorted((folder / f"store {reference}").iterdir()) for folder in (two, one))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert len(ours) > 6
    assert [path.name for path, other in zip(ours, theirs, strict=True) if path.read_bytes() != other.read_bytes()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_one_process_and_equal_in_both(one, two, kind):
    alone, main, other = (torch.load(path) for path in (one / f"{kind} 0.pt", two / f"{kind} 0.pt", two / f"{kind} 1.pt"))
    assert all(torch.equal(a, b) for a, b in zip(main["tensors"], other["tensors"], strict=True))
    assert (main["threshold"], main["metrics"]) == (other["threshold"], other["metrics"])
    assert torch.equal(main["references"], alone["references"])
    for ours, theirs in zip(main["tensors"], alone["tensors"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    assert main["threshold"] == pytest.approx(alone["threshold"], abs=TOLERANCE)
    assert main["metrics"] == pytest.approx(alone["metrics"], abs=TOLERANCE)


def test_what_the_main_process_saved_is_whole(two):
    kept, found = pf.load(two / "saved pursuit"), torch.load(two / "pursuit 0.pt")
    assert all(torch.equal(a, b) for a, b in zip(kept.v_out.tensors, found["tensors"], strict=False))


@pytest.mark.release
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on_to_the_same_bits(two, tmp_path):
    done = launch("tests.parallel.job", tmp_path, "dies")  # gloo would wait for half an hour
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "-9" in done.stderr
    assert not list(tmp_path.glob("pursuit *.pt"))
    assert load_file(tmp_path / "kept" / "fit.safetensors")["n_steps"] in (
        12,
        13,
    )  # the step in which the other died was whole
    done = launch("tests.parallel.job", tmp_path, "goes-on")
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_file(tmp_path / "kept" / "fit.safetensors")["n_steps"] == 30
    for index in range(2):
        ours, unbroken = (torch.load(folder / f"pursuit {index}.pt") for folder in (tmp_path, two))
        assert all(torch.equal(a, b) for a, b in zip(ours["tensors"], unbroken["tensors"], strict=True))
        assert (ours["threshold"], ours["metrics"]) == (unbroken["threshold"], unbroken["metrics"])


@pytest.mark.release
def test_the_command_line_shares_the_work_and_speaks_once(one, tmp_path):
    data = ("--model", "demo", "--dataset", "demo", "--n-rows", 60, "--params", "blocks.1.attn.W_K", "--n-samples", 400)
    done = launch("param_features.cli", "harvest", *data, "--shard-mib", 0.5, "--out", tmp_path / "store", "-q")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("FactorStore:") == 1
    model, tokens = pf.demo.load_model(), pf.demo.tokens(60)
    call = {"n_samples": 400, "shard_mib": 0.5, "progress": False}
    pf.harvest(model, "blocks.1.attn.W_K", tokens, directory=tmp_path / "other", **call)
    for path in (tmp_path / "other").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes()

"""What a sample takes is known from one run of two rows, whoever asks and however often."""

from dataclasses import replace

import pytest
import torch

import param_features as pf
from param_features.gradients import GradientEngine, Harvester, HarvestSettings, SampleProbe, plan_engine
from param_features.params import adapter_for, select
from param_features.problem import KL, Reference, read_inputs
from tests.oracle import case_of, problem_of

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The rows of every run of an engine on two rows; batches of a harvest have more."""
    found, each_slot = [], GradientEngine.each_slot

    def counted(engine, inputs, *args):
        if len(inputs) == 2:
            found.append(len(inputs))
        return each_slot(engine, inputs, *args)

    monkeypatch.setattr(GradientEngine, "each_slot", counted)
    return found


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def n_planning(net, runs: list[int]) -> int:
    """Runs on two rows with which an engine is planned."""
    adapter = adapter_for(net)
    plan_engine(problem_of(adapter, select(adapter.views(), "0.weight"), read_inputs(adapter, None, X)))
    n = len(runs)
    runs.clear()
    return n


@pytest.mark.parametrize("n_samples", [None, 40])
def test_a_decomposition_probes_once(net, runs, n_samples):
    n = n_planning(net, runs)
    pf.decompose(net, "0.weight", inputs=X, n_features=2, steps=2, n_samples=n_samples, progress=False)
    assert len(runs) == n + 1


def test_a_harvest_to_disk_probes_once(net, runs, tmp_path):
    n = n_planning(net, runs)
    pf.harvest(net, "0.weight", inputs=X, directory=tmp_path / "store", progress=False)
    assert len(runs) == n + 1


def test_harvesters_that_share_a_probe_share_its_run(net, runs):
    case = case_of(net, "0.weight", inputs=X)
    runs.clear()
    probe = SampleProbe(case.engine, case.data)
    assert not runs
    whole = Harvester(probe, KL(), Reference("sample"), HarvestSettings())
    half = replace(whole, settings=HarvestSettings(memory_dtype="bfloat16"))
    assert whole.sample_bytes == 4 * (4 + 5) == 2 * half.sample_bytes
    assert probe.d_output == 3
    assert runs == [2]

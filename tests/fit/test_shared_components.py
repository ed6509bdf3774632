"""A step of components whose batch several processes share is that of one process."""

import threading
from copy import deepcopy

import pytest
import torch

from param_features.fit.components import ComponentSettings, MaskedModel, fit_components
from param_features.fit.components.batch import StepBatch
from param_features.fit.components.losses import frequency_penalty, importance_penalty
from param_features.gradients import build_engine, sites_of
from param_features.machine import Processes, Share
from param_features.problem import read_model, read_problem
from tests.models import hooked_transformer, integers

NAMES = ["embed.W_E", "blocks.0.attn.W_Q", "blocks.1.mlp.W_in"]
LENGTHS = [6, 2, 5, 6, 3, 6, 1, 4, 6, 2, 5]
ALL = ComponentSettings(
    steps=4,
    batch_size=30,
    one_at_a_time_weight=1.0,
    subset_weight=1.0,
    adversarial_weight=1.0,
    frequency_weight=0.01,
    importance_weight=0.1,
    clip=0.01,
)


def engine_and_data(model, positions):
    tokens = integers(19, len(LENGTHS), 6) + 1
    mask = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)
    encoding = {"input_ids": tokens, "attention_mask": mask.long()}
    chosen = read_model(model, NAMES)
    problem = read_problem(chosen, encoding, None, divergence="kl", reference="sample", positions=positions)
    return build_engine(problem, lambda _: None), problem


def fitted(model, settings, positions, processes):
    engine, problem = engine_and_data(model, positions)
    return fit_components(
        engine,
        problem.divergence,
        problem.data,
        dict.fromkeys(NAMES, 4),
        settings,
        generator=torch.Generator().manual_seed(3),
        progress=False,
        processes=processes,
    )


def in_threads(model, settings, positions, n, monkeypatch):
    """Fits of so many processes, each a thread with a copy of the model."""
    barrier, given = threading.Barrier(n, timeout=60), {}

    def sum_(share, tensors):
        if share.is_whole:
            return
        given[share.processes.index] = [tensor.detach().clone() for tensor in tensors]
        barrier.wait()
        sums = [sum(parts) for parts in zip(*(given[index] for index in range(n)), strict=True)]
        barrier.wait()
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.detach().copy_(total)

    monkeypatch.setattr(Share, "sum_", sum_)
    monkeypatch.setattr(Processes, "spread_", lambda *_: None)
    found = {}

    def run(index):
        found[index] = fitted(deepcopy(model), settings, positions, Processes(n, index))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[index] for index in range(n)]


def tensors_of(fit):
    parts = [side for part in fit.dictionary.parts.values() for side in (part.U, part.V)]
    return [*parts, *fit.dictionary.net.parameters(), torch.tensor(fit.errors)]


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("n", [2, 3])
def test_processes_find_what_one_finds(monkeypatch, n, positions):
    model = hooked_transformer()
    alone = tensors_of(fitted(model, ALL, positions, Processes()))
    shared = [tensors_of(fit) for fit in in_threads(model, ALL, positions, n, monkeypatch)]
    for ours in shared:
        for a, b in zip(ours, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(shared[0], shared[-1], strict=True))


def test_penalties_count_real_positions_alone():
    engine, problem = engine_and_data(hooked_transformer(), "all")
    model, rows = MaskedModel(engine, sites_of(engine)), problem.data.rows(slice(0, 4))
    with model.held():
        batch = StepBatch.of(rows, Share(), model.clean(rows))
    g = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = torch.cat([g[row, :length] for row, length in enumerate(LENGTHS[:4])])
    assert float(importance_penalty({NAMES[0]: g}, 1.5, batch)) == pytest.approx(
        float(real.pow(1.5).sum(1).mean()), rel=1e-6
    )
    usage = real.pow(1.5).sum(0)
    expected = (usage * torch.log2(1 + usage)).sum() / len(real)
    assert float(frequency_penalty({NAMES[0]: g}, 1.5, batch)) == pytest.approx(float(expected), rel=1e-6)

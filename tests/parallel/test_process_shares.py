"""Shares of a batch, draws that are skipped, and a library that waits for nobody where nothing was launched."""

import subprocess
import sys

import pytest
import torch

from param_features.errors import DiskFullError, StoreError
from param_features.gradients import Harvester, HarvestSettings
from param_features.machine import ALONE, Processes, Share, launched
from param_features.problem import KL, Reference
from tests.oracle import case_of


@pytest.mark.parametrize("n_items", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_shares_follow_each_other_and_differ_by_one_at_most(n, n_items):
    shares = [Share(Processes(n, index), n_items) for index in range(n)]
    items = list(range(n_items))
    assert [item for share in shares for item in items[share.own]] == items
    sizes = [share.own.stop - share.own.start for share in shares]
    assert max(sizes) - min(sizes) <= 1
    if n_items:
        assert sum(share.weight for share in shares) == pytest.approx(1)


def test_fewer_items_than_processes_are_not_shared():
    share = Processes(4, 1).share(3)
    assert share.is_whole
    assert share.own == slice(0, 3)
    assert not Processes(4, 1).share(4).is_whole


@pytest.mark.parametrize("name", ["WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"])
def test_one_of_the_launchers_variables_is_no_launch(monkeypatch, name):
    for variable in ("WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "2")
    assert launched() is ALONE


def test_an_error_is_raised_as_it_is_by_one_process():
    error = DiskFullError(28, "No space left")

    def fail():
        raise error

    with pytest.raises(DiskFullError) as raised:
        ALONE.all_of(fail)
    assert raised.value is error


def test_an_error_of_any_process_is_raised_in_all(monkeypatch):
    def objects(_, own):
        return [(None, StoreError("of the first")), own]

    monkeypatch.setattr(Processes, "objects", objects)
    with pytest.raises(StoreError, match="of the first"):
        Processes(2, 1).all_of(lambda: 3)
    with pytest.raises(StoreError, match="of the first"):
        Processes(2, 1).from_main(lambda: 3)


REFERENCES = {
    "sample": Reference("sample"),
    "label": Reference("label"),
    "uniform": Reference("uniform"),
    "mean": Reference("mean", torch.full((1, 20), 0.05).double()),
    "given": Reference("given", torch.full((3, 20), 0.05).double()),
    "pairs": Reference("pairs"),
}


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("is_grouped", [False, True])
def test_skipped_draws_leave_the_generator_where_taken_ones_do(tiny_hooked, tiny_tokens, monkeypatch, kind, is_grouped):
    case = case_of(tiny_hooked, "blocks.0.attn.W_K", tokens=tiny_tokens)
    if is_grouped:
        monkeypatch.setattr("param_features.gradients.engine.MOST_LOGITS", 5 * 20 * 2)
    harvester = Harvester(case.engine, KL(), REFERENCES[kind], HarvestSettings())
    taken, skipped = (torch.Generator().manual_seed(4) for _ in range(2))
    own = (lambda rows: torch.full((len(rows), 20), 0.05)) if kind == "pairs" else None
    n_slots, rows = 1 if kind == "pairs" else 6, torch.arange(5)
    harvester.each_slot(case.data, rows, n_slots, taken, lambda *_: None, own)
    harvester.skip(case.data, rows, n_slots, skipped, harvester.width(case.data), own)
    assert torch.equal(taken.get_state(), skipped.get_state())
    if kind != "pairs":
        assert not torch.equal(taken.get_state(), torch.Generator().manual_seed(4).get_state())


def test_skipping_knows_outputs_without_positions():
    case = case_of(torch.nn.Linear(3, 2).double(), "weight", inputs=torch.randn(7, 3).double())
    harvester = Harvester(case.engine, KL(), Reference("label"), HarvestSettings())
    taken, skipped = (torch.Generator().manual_seed(4) for _ in range(2))
    harvester.each_slot(case.data, torch.arange(7), 1, taken, lambda *_: None)
    harvester.skip(case.data, torch.arange(7), 1, skipped, harvester.width(case.data))
    assert torch.equal(taken.get_state(), skipped.get_state())


CODE = """
import sys, torch, param_features as pf
x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
pf.decompose(torch.nn.Linear(4, 3), "weight", inputs=x, n_features=2, steps=3, progress=False)
print("accelerate" in sys.modules, "torch.distributed.distributed_c10d" in sys.modules)
"""


def test_accelerate_is_not_imported_where_it_launched_nothing():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"

"""Which sequences and positions are harvested: drawn without repetition, never padding, split into training and held out."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from param_features.errors import SampleCountError, SettingError
from param_features.gradients import HarvestSettings, plan_samples
from param_features.gradients.sampling import draw_positions
from param_features.params import adapter_for, select
from param_features.problem import KL, ModelInputs, OutputInfo, Problem


def tokens_of(n_rows: int, n_pos: int) -> ModelInputs:
    return ModelInputs((torch.zeros(n_rows, n_pos, dtype=torch.long),), {})


def padded(lengths) -> ModelInputs:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return replace(tokens_of(*mask.shape), mask=mask)


def test_padded_positions_are_never_drawn_and_real_ones_all_are():
    lengths, generator = [1, 3, 6], torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_positions(padded(lengths), 4, generator) for _ in range(60)])
    for row, length in enumerate(lengths):
        assert set(drawn[:, row].flatten().tolist()) == set(range(length))
        distinct = {len(set(slots)) for slots in drawn[:, row].tolist()}
        assert distinct == {min(4, length)}


def test_positions_are_drawn_without_replacement_and_repeat_with_the_seed():
    first, second = (draw_positions(tokens_of(20, 7), 7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first.sort(1).values, torch.arange(7).expand(20, 7))


def plan(inputs, *, n_features=1, per_position=True, **settings):
    output = OutputInfo((2, inputs.n_pos, 5), torch.float32, True, per_position)
    adapter = adapter_for(nn.Linear(1, 1))
    problem = Problem(adapter, select(adapter.views(), "weight"), inputs, output, KL(), "sample")
    return plan_samples(problem, HarvestSettings(**settings), n_features, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n_samples", "n_rows", "n_slots"), [(20, 20, 1), (40, 20, 2), (9999, 20, 7), (5, 5, 1)])
def test_a_plan_splits_sequences_and_takes_as_many_positions_as_needed(n_samples, n_rows, n_slots):
    found = plan(tokens_of(20, 7), n_samples=n_samples, held_out_fraction=0.4)
    train, held_out = set(found.train.tolist()), set(found.held_out.tolist())
    assert not train & held_out
    assert train | held_out <= set(range(20))
    assert (len(train | held_out), found.n_slots) == (n_rows, n_slots)
    assert len(held_out) == round(0.4 * n_rows)


def test_a_padded_batch_counts_its_mean_length():
    assert plan(padded([2, 2, 2, 12, 2, 4]), n_samples=9999).n_slots == 4


def test_one_sample_per_row_holds_out_two_rows_to_compare_with_each_other():
    inputs = ModelInputs((torch.zeros(8, 3),), {})
    assert len(plan(inputs, per_position=False, held_out_fraction=0.1).held_out) == 2


@pytest.mark.parametrize(("n_rows", "n_features"), [(4, 40), (2, 1), (1, 1)])
def test_too_few_samples_are_refused(n_rows, n_features):
    with pytest.raises(SampleCountError, match=rf"{n_rows} sequences.*the {n_features} features asked for"):
        plan(tokens_of(n_rows, 1), n_features=n_features)


@pytest.mark.parametrize(
    "bad",
    [{"held_out_fraction": 0}, {"held_out_fraction": 1.0}, {"n_samples": 0}, {"batch_size": -1}],
    ids=str,
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(SettingError, match=f"{next(iter(bad))}={next(iter(bad.values()))}"):
        HarvestSettings(**bad)


def test_an_unknown_memory_dtype_is_refused():
    with pytest.raises(SettingError, match="memory_dtype='int8' is unknown. Accepted: 'float32', 'bfloat16'"):
        HarvestSettings(memory_dtype="int8")

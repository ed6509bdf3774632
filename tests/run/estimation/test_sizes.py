"""Memory from shapes, beside what the code itself makes, counted tensor by tensor."""

from dataclasses import replace

import pytest
import torch

import param_features as pf
from param_features.fit import FitRequest
from param_features.fit.formats import LowRank
from param_features.fit.loop import ranked_fit
from param_features.fit.training import Trainer
from param_features.gradients import Dense, Factored, GradientStore
from param_features.measure.controls import principal_directions, random_directions
from param_features.run.estimation.live import LiveBytes
from param_features.run.estimation.sizes import Sizes
from param_features.run.estimation.tiled import Tiled

WITHIN = 1.5
RANKING_WITHIN = 1.6
"""How many features samples keep depends on the data: with 300 features the peak is 0.64 to 0.76 of the estimate."""
SEEDED = torch.Generator().manual_seed(4)  # of five seeds the one whose peak is least
DENSE = {"w": Dense(torch.randn(32, 32, 64, generator=SEEDED))}
FACTORED = {"w": Factored(torch.randn(32, 16, 64, generator=SEEDED), torch.randn(32, 16, 64, generator=SEEDED))}
WIDE = {
    "w": Factored(torch.randn(32, 8, 256, generator=SEEDED), torch.randn(32, 8, 128, generator=SEEDED)),
    "b": Dense(torch.randn(32, 256, 1, generator=SEEDED)),
}
THIN = {"w": Factored(torch.randn(32, 2, 32, generator=SEEDED), torch.randn(32, 2, 32, generator=SEEDED))}
CASES = [(DENSE, 100, 1), (FACTORED, 50, 1), (FACTORED, 50, 4), (WIDE, 40, 2), (DENSE, 300, 1)]


class Started(Trainer):
    """Starts from random directions, quickly."""

    def _start(self, n_features):
        found = random_directions(self.store.rows(slice(0, 1)), n_features, self.rank, self.generator)
        found.scale_(1 / found.norm())
        return found


def sizes_of(like, n_features, rank, fit=None, *, n_train=1500) -> Sizes:
    request = FitRequest(n_features, rank, max(1.0, n_features / 20), fit or pf.FitSettings())
    return Sizes.of(like, n_train, 150, request)


def store_of(sizes: Sizes) -> Tiled:
    few = GradientStore(32, sizes.like)
    few.add(sizes.like)
    return Tiled(few, sizes.n_train)


def trainer_of(sizes: Sizes) -> Started:
    return Started(store_of(sizes), sizes.request, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("like", "n_features", "rank"), CASES)
@pytest.mark.parametrize("selection", ["pursuit", "top_k"])
def test_a_step_takes_what_shapes_say(like, n_features, rank, selection):
    sizes = replace(sizes_of(like, n_features, rank, pf.FitSettings(selection=selection, resample=0)), is_stored=True)
    with LiveBytes() as live:
        trainer = trainer_of(sizes)
        trainer.step()
        trainer.step()
    assert live.peak / WITHIN < sizes.stages["fit"] < live.peak * WITHIN


@pytest.mark.parametrize(("like", "n_features", "rank"), CASES)
def test_the_ranking_takes_what_shapes_say(like, n_features, rank):
    sizes = replace(sizes_of(like, n_features, rank), is_stored=True)
    trainer = trainer_of(sizes)
    v_in, v_out = (part.folded().map(torch.detach) for part in (trainer.v_in, trainer.v_out))
    with LiveBytes() as live:
        ranked_fit(trainer.store, v_in, v_out, sizes.l0, 0, trainer.encoder)
    assert live.peak / WITHIN < sizes.stages["ranking"] < live.peak * RANKING_WITHIN


def test_a_store_on_disk_has_the_size_that_was_said(tmp_path):
    model, tokens = pf.demo.load_model(), pf.demo.tokens(40)
    call = {"params": "blocks.1.attn.W_K", "tokens": tokens, "n_samples": 400}
    store = pf.harvest(model, directory=tmp_path, progress=False, **call)
    told = pf.estimate(model, n_features=5, steps=2, **call)
    assert told.n_samples == store.train.n_samples + store.held_out.n_samples
    shards = sum(shard.n_bytes for shard in store.manifest.whole.values())
    assert 0 < shards - told.disk_bytes < 4096  # the headers


@pytest.mark.parametrize("name", ["n_train", "n_held_out", "n_features", "rank"])
def test_more_never_takes_less(name):
    sizes = sizes_of(THIN, 50, 2)
    more = replace(sizes, **{name: 2 * getattr(sizes, name)})
    assert all(more.stages[stage] >= sizes.stages[stage] for stage in sizes.stages)
    assert more.peak_bytes > sizes.peak_bytes


def test_settings_that_fit_do_and_larger_ones_do_not():
    sizes = sizes_of(THIN, 200, 8)
    budget = sizes.peak_bytes * 2 // 3
    found = sizes.within(budget)
    assert sizes.largest == "fit" and {"n_features", "batch_size"} <= set(found) and sizes.within(sizes.peak_bytes) == {}
    fewer = replace(sizes, n_features=found["n_features"], l0=sizes.l0 * found["n_features"] / 200)
    assert fewer.peak_bytes <= budget
    more = replace(sizes, n_features=found["n_features"] * 11 // 10, l0=sizes.l0 * found["n_features"] * 11 / 2000)
    assert more.peak_bytes > budget


def test_gradients_that_are_too_many_may_lie_on_disk():
    sizes = sizes_of(DENSE, 20, 1, n_train=10**7)
    budget = 4 * 2**30
    found = sizes.within(budget)
    assert found["store"] == sizes.disk_bytes and 0 < found["n_samples"] < 10**6
    assert replace(sizes, is_stored=True).peak_bytes <= budget < sizes.peak_bytes


@pytest.mark.parametrize(("like", "n_features"), [(DENSE, 100), (WIDE, 40)])
def test_principal_directions_take_what_shapes_say(like, n_features):
    sizes = replace(sizes_of(like, n_features, 1), is_stored=True)
    with LiveBytes() as live:
        principal_directions(store_of(sizes), n_features, torch.Generator().manual_seed(0))
    assert live.peak / 2 < sizes.stages["controls"] < live.peak * 2
    assert isinstance(trainer_of(sizes).v_out, LowRank)

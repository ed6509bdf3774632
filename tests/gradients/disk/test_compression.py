"""Training gradients stored in less room: what is kept, what is lost and said to be lost, and that errors stay honest."""

import hashlib
import json
import shutil

import pytest
import torch

import param_features as pf
from param_features.errors import SettingError, StoreError
from param_features.gradients import Dense, Factored, Indexed, flatten
from param_features.gradients.disk import shards
from param_features.gradients.disk.compression import Compression, loss_of
from param_features.gradients.disk.shards import checksum

BOTH = ["blocks.0.attn.W_K", "blocks.1.mlp.W_out"]
SMALL = {"n_samples": 200, "settings": pf.HarvestSettings(batch_size=4), "shard_mib": 0.02, "progress": False}
QUICK = {"n_features": 6, "l0": 2, "steps": 10, "progress": False}


def harvested(model, tokens, directory, **changes) -> pf.FactorStore:
    return pf.harvest(model, **{"params": BOTH, "tokens": tokens, "directory": directory, **SMALL, **changes})


def dense(gradients) -> dict[str, torch.Tensor]:
    return {name: gradient.dense().matrix for name, gradient in gradients.items()}


def sums(store: pf.FactorStore, split: str) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted(store.directory.glob(f"{split}*.safetensors"))}


@pytest.fixture(scope="module")
def single(tiny_hooked):
    """The tiny model in float32, whose gradients have something to lose to bfloat16 alone."""
    from tests.models import hooked_transformer

    return hooked_transformer(dtype=torch.float32)


@pytest.fixture(scope="module")
def whole(single, tiny_tokens, tmp_path_factory):
    return harvested(single, tiny_tokens, tmp_path_factory.mktemp("stores") / "whole")


@pytest.fixture(scope="module")
def small(single, tiny_tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "small"
    return harvested(single, tiny_tokens, folder, compress_rank=2, dtype="bfloat16")


def test_the_leading_factors_of_every_sample_are_kept(single, tiny_tokens, whole, tmp_path):
    found = dense(harvested(single, tiny_tokens, tmp_path, compress_rank=2).train.rows(slice(None)))
    for name, exact in dense(whole.train.rows(slice(None))).items():
        for ours, matrix in zip(found[name], exact, strict=True):
            u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
            torch.testing.assert_close(ours.double(), (u[:, :2] * s[:2]) @ vh[:2], rtol=1e-3, atol=1e-5 * float(s[0]))


def test_what_is_lost_is_said_sample_by_sample(whole, small):
    lost = norms = worst = 0.0
    for exact, kept in zip(whole.train.chunks(1), small.train.chunks(1), strict=True):
        rows = flatten(exact).double(), flatten(kept).double()
        square, norm = float((rows[0] - rows[1]).square().sum()), float(rows[0].square().sum())
        lost, norms, worst = lost + square, norms + norm, max(worst, square / norm)
    loss = small.manifest.loss
    assert (loss.share, loss.worst) == pytest.approx((lost / norms, worst), rel=1e-4)
    assert 1e-3 < loss.share < loss.worst < 1
    text = repr(small)
    assert f"compressed to rank 2 and to bfloat16: {100 * loss.share:.2g} % of their squared norm is lost" in text
    assert f"{100 * loss.worst:.2g} % of one sample's at worst. Held-out ones are whole." in text
    assert "compressed" not in repr(whole)
    assert whole.manifest.loss.share == 0


def test_bfloat16_rounds_what_is_stored_and_is_read_as_float32(single, tiny_tokens, whole, tmp_path):
    store = harvested(single, tiny_tokens, tmp_path, dtype="bfloat16")
    found, exact = (side.train.rows(torch.tensor([5, 0, 171])) for side in (store, whole))
    for name in exact:
        assert type(found[name]) is type(exact[name])
        for ours, theirs in zip(found[name].tensors, exact[name].tensors, strict=True):
            assert ours.dtype == torch.float32
            assert torch.equal(ours, theirs.bfloat16().float())
    assert store.train.sample_bytes == whole.train.sample_bytes
    assert 1e-7 < store.manifest.loss.share < 1e-4
    assert store.train.square_norm().dtype == torch.float32


def test_the_room_is_what_the_factors_take(whole, small):
    d_out, d_in, d_mlp, d_model = 16, 16, 24, 16
    assert small.manifest.row_bytes("train") == 16 + 2 * 2 * (d_out + d_in + d_mlp + d_model)
    sizes = [sum(path.stat().st_size for path in store.directory.glob("train*")) for store in (small, whole)]
    assert sizes[0] < 0.3 * sizes[1]


def test_held_out_gradients_have_the_bits_of_a_whole_store(whole, small):
    assert torch.equal(flatten(small.held_out.rows(slice(None))), flatten(whole.held_out.rows(slice(None))))
    assert sums(small, "held_out") == sums(whole, "held_out")


def test_a_fits_error_is_that_of_gradients_as_they_are(single, whole, small):
    found = pf.decompose(single, store=small, **QUICK)
    again = found.dictionary.error(whole.held_out, 2)
    assert found.metrics["reconstruction_error"] == again
    assert found.metrics["training_lost"] == small.manifest.loss.share
    assert "training_lost" in repr(found)
    assert "training_lost" not in pf.decompose(single, store=whole, **QUICK).metrics
    assert found.config["store"]["compression"] == "to rank 2 and to bfloat16"


def test_nothing_is_lost_at_full_rank(single, tiny_tokens, whole, tmp_path):
    store = harvested(single, tiny_tokens, tmp_path, compress_rank=30)
    assert store.manifest.loss.share == 0
    assert sums(store, "train") == sums(whole, "train")


@pytest.mark.parametrize(
    "call",
    [{"fit": pf.FitSettings(format="cp")}, {"fit": pf.FitSettings(rank=3)}, {"fit": pf.FitSettings(selection="top_k")}],
    ids=str,
)
def test_every_fit_takes_it(single, small, call):
    found = pf.decompose(single, store=small, **{**QUICK, "steps": 5} | call)
    assert found.metrics["reconstruction_error"] < 1


def test_the_other_method_and_a_background_take_it(single, tiny_tokens, small):
    fit = pf.HessianSettings(steps=2, batch_size=2)
    found = pf.decompose(single, store=small, n_features=3, l0=1, method="hessian", fit=fit, progress=False)
    assert found.n_features == 3
    found = pf.decompose(single, store=small, background=tiny_tokens[:20], **{**QUICK, "steps": 4})
    assert {"off_target", "training_lost"} <= set(found.metrics)


@pytest.mark.parametrize("call", [{"compress_rank": 3}, {"dtype": "float32"}, {"compress_rank": None}], ids=str)
def test_another_compression_is_another_store(single, tiny_tokens, small, call):
    name, value = next(iter(call.items()))
    with pytest.raises(StoreError, match=rf"{name}= {value!r}, there "):
        harvested(single, tiny_tokens, small.directory, **{"compress_rank": 2, "dtype": "bfloat16"} | call)


def test_an_interrupted_compression_goes_on_to_the_same_bits(single, tiny_tokens, small, tmp_path, monkeypatch):
    write, count = shards.os.pwrite, iter(range(10**9))

    def interrupted(*args):
        if next(count) >= 120:
            raise KeyboardInterrupt
        return write(*args)

    call = {"compress_rank": 2, "dtype": "bfloat16"}
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            harvested(single, tiny_tokens, tmp_path, **call)
    assert list(tmp_path.glob("train*"))
    again = harvested(single, tiny_tokens, tmp_path, **call)
    assert sums(again, "") == sums(small, "")
    assert again.manifest.loss == small.manifest.loss


def test_a_damaged_shard_is_made_again_with_its_loss(single, tiny_tokens, small, tmp_path):
    shutil.copytree(small.directory, tmp_path / "copy")
    path = tmp_path / "copy" / "train-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(StoreError, match=r"train-00001.safetensors does not match its checksum"):
        pf.FactorStore.open(tmp_path / "copy")
    again = harvested(single, tiny_tokens, tmp_path / "copy", compress_rank=2, dtype="bfloat16")
    assert sums(again, "") == sums(small, "")
    assert again.manifest.loss == small.manifest.loss


def test_a_store_of_version_1_is_read(single, tiny_tokens, whole, tmp_path):
    shutil.copytree(whole.directory, tmp_path / "copy")
    path = tmp_path / "copy" / "manifest.json"
    record = json.loads(path.read_text())
    del record["compressed"], record["manifest_sha256"], record["recipe"]["compress_rank"], record["recipe"]["dtype"]
    record["format_version"] = 1
    for shard in record["whole"].values():
        del shard["loss"]
    for kind in record["stored"].values():
        del kind["read_as"]
    text = json.dumps(record, sort_keys=True).encode()
    path.write_text(json.dumps(record | {"manifest_sha256": hashlib.sha256(text).hexdigest()}))
    one, other = (pf.decompose(single, store=folder, **QUICK) for folder in (tmp_path / "copy", whole))
    assert dict(one.metrics) == dict(other.metrics)
    assert sums(harvested(single, tiny_tokens, tmp_path / "copy"), "") == sums(whole, "")
    with pytest.raises(StoreError, match=r"dtype= 'bfloat16', there 'float32'"):
        harvested(single, tiny_tokens, tmp_path / "copy", dtype="bfloat16")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_each_format_is_compressed_where_that_is_smaller():
    gradients = {
        "dense": Dense(drawn(5, 12, 10)),
        "many": Factored(drawn(5, 9, 12), drawn(5, 9, 10)),
        "few": Factored(drawn(5, 2, 12), drawn(5, 2, 10)),
        "table": Indexed(drawn(5, 3, 4), torch.zeros(5, 3, dtype=torch.long), 9),
        "bias": Dense(drawn(5, 3, 1)),
    }
    kept = Compression(2).applied(gradients)
    assert [kept[name].tensors[0].shape[1] for name in ("dense", "many")] == [2, 2]
    assert all(
        kept[name] is gradients[name] or torch.equal(kept[name].tensors[0], gradients[name].tensors[0])
        for name in ("few", "table", "bias")
    )
    for name in ("dense", "many"):
        s = torch.linalg.svdvals(gradients[name].dense().matrix.double())
        loss = loss_of({name: gradients[name]}, {name: kept[name]})
        share = s[:, 2:].square().sum(1) / s.square().sum(1)
        assert loss.worst == pytest.approx(float(share.max()), rel=1e-4)
        assert loss.norm == pytest.approx(float(s.square().sum()), rel=1e-6)


def test_a_sample_without_gradient_loses_nothing():
    nothing = {"a": Dense(torch.zeros(3, 8, 8))}
    loss = loss_of(nothing, Compression(1, "bfloat16").applied(nothing))
    assert (loss.share, loss.worst) == (0, 0)


def test_integers_stay_integers_in_bfloat16():
    table = {"t": Indexed(drawn(5, 3, 4), torch.full((5, 3), 1001), 2000)}
    kept = Compression(None, "bfloat16").applied(table)["t"]
    assert (kept.delta.dtype, kept.index.dtype) == (torch.bfloat16, torch.int64)


def test_refusals(single, tiny_tokens, tmp_path):
    with pytest.raises(SettingError, match=r"compress_rank=0 must be at least 1, or None"):
        harvested(single, tiny_tokens, tmp_path, compress_rank=0)
    with pytest.raises(
        SettingError, match=r"dtype='bfloat' is unknown. Accepted: 'float32', 'bfloat16'; nearest: 'bfloat16'"
    ):
        harvested(single, tiny_tokens, tmp_path, dtype="bfloat")
    assert not list(tmp_path.iterdir())

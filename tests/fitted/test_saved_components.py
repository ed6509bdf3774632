"""Files of components with right checksums that say what no components can: each refused, the field or tensor named."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

import param_features as pf
from param_features.errors import StoreError
from tests.components import made_components
from tests.fuzz.readers import READERS
from tests.golden.make import Tokens

EMBED, OUT = "embed.weight", "out.weight"
JSON, TENSORS = "config.json", "features.safetensors"
NET = "importance/weights.0"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("components")
    tokens = torch.randint(11, (16, 5), generator=torch.Generator().manual_seed(0))
    made_components(Tokens().eval(), {EMBED: 3, OUT: 2}, tokens, net="site").save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in (JSON, TENSORS)}


def written(folder, files, change_json=None, change_tensors=None):
    """The whole files with one change, their checksums right."""
    files = dict(files)
    if change_json is not None:
        record = json.loads(files[JSON])
        change_json(record)
        files[JSON] = json.dumps(record).encode()
    if change_tensors is not None:
        tensors = load(files[TENSORS])
        change_tensors(tensors)
        files[TENSORS] = save(tensors)
    for file, data in READERS["features"].restamp(files).items():
        (folder / file).write_bytes(data)
    return folder


CONFIGS = (
    (lambda c: c.pop("importance"), r"config.json lacks 'importance' and has the unknown nothing"),
    (lambda c: c.update(threshold=0.0), r"has the unknown 'threshold'"),
    (lambda c: c.update(importance=3), r"says importance = 3; accepted: an object"),
    (lambda c: c["importance"].update(kind="oracle"), r"importance.kind = 'oracle'; accepted: 'component', 'site', 'model'"),
    (lambda c: c["importance"].update(kind=["site"]), r"importance.kind = \['site'\]; accepted"),
    (lambda c: c["importance"].update(kind="model"), r"lacks the tensor 'importance/firsts.0'"),
    (lambda c: c["importance"].update(hidden=0), r"importance.hidden = 0; accepted: a whole number from 1"),
    (lambda c: c["importance"].update(hidden=2**40), r"importance.hidden = .*; accepted: a whole number from 1"),
    (lambda c: c["importance"].update(hidden=9), r"holds importance/'weights.0', .* \(11, 8\); accepted: .* \(11, 9\)"),
    (lambda c: c["importance"].update(width=9), r"in importance lacks nothing and has the unknown 'width'"),
    (lambda c: c["params"][OUT].update(shape=[11, 5]), r"holds u/'out.weight' and v/'out.weight' of shapes"),
    (lambda c: c["params"].pop(OUT), r"holds the unknown tensors"),
    (lambda c: c["metrics"].update(rounded="1"), r"metrics.rounded = '1'; accepted: a finite number"),
    (lambda c: c["config"].update(n_components={OUT: "2"}), r"config.n_components.out.weight = '2'; accepted: a whole"),
    (lambda c: c.update(format="param_features"), r"lacks 'is_tied', 'threshold' and has the unknown 'importance'"),
    (lambda c: c.update(format_version=2), r"has format version 2; this library reads version 1"),
)  # fmt: skip
CHANGES = (
    (lambda t: t.pop(f"u/{OUT}"), r"features.safetensors lacks the tensor 'u/out.weight'"),
    (lambda t: t.pop(NET), r"lacks the tensor 'importance/weights.0'"),
    (lambda t: t.update(more=t[NET].clone()), r"holds the unknown tensors 'more'"),
    (lambda t: t.update({"importance/weights.9": t[NET].clone()}), r"holds the unknown tensors 'importance/weights.9'"),
    (lambda t: t[f"v/{OUT}"].view(-1)[:1].fill_(torch.nan), r"holds 'v/out.weight'.*accepted: finite floats"),
    (lambda t: t[NET].view(-1)[:1].fill_(torch.inf), r"holds 'importance/weights.0'.*accepted: finite floats"),
    (lambda t: t.update({f"v/{OUT}": t[f"v/{OUT}"].long()}), r"torch.int64 of shape"),
    (lambda t: t.update({f"v/{OUT}": t[f"v/{OUT}"].double()}), r"of one dtype, with at least one component"),
    (lambda t: t.update({f"v/{OUT}": t[f"v/{OUT}"][:1].clone()}), r"of shapes \(2, 11\) and \(1, 4\)"),
    (lambda t: t.update({f"{s}/{OUT}": t[f"{s}/{OUT}"][:0].clone() for s in "uv"}), r"with at least one component"),
    (lambda t: t.update({f"u/{OUT}": t[f"u/{OUT}"][0].clone()}), r"of shapes \(11,\) and \(2, 4\)"),
    (lambda t: t.update({NET: t[NET].double()}), r"torch.float64 of shape .*; accepted: torch.float32"),
    (lambda t: t.update({NET: t[NET][:, :7].clone()}), r"of shape \(11, 7\); accepted: torch.float32 of shape \(11, 8\)"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=[message[:40] for _, message in CONFIGS])
def test_a_record_that_says_something_else_is_refused(files, tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        pf.load(written(tmp_path, files, change))


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message[:40] for _, message in CHANGES])
def test_tensors_that_are_others_are_refused(files, tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        pf.load(written(tmp_path, files, None, change))


def test_whole_files_are_read_and_random_ones_read_or_refused(files, tmp_path):
    found = pf.load(written(tmp_path, files))
    assert type(found) is pf.ParamComponents and found.site(3) == (OUT, 0) and found.direction(3)[OUT].shape == (11, 4)

    reader = replace(READERS["features"], files=files)
    outcomes = {reader.outcome(reader.input(random.Random(seed))) for seed in range(60)}
    assert "StoreError" in outcomes and outcomes <= {"read", "StoreError"}

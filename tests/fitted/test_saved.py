"""Files with right checksums that say what no features, store or checkpoint can: each refused, the field or tensor named."""

import json

import pytest
import torch
from safetensors.torch import load, save

import param_features as pf
from param_features.errors import InputError, SettingError, StoreError
from param_features.fit.checkpoint import read_checkpoint
from param_features.gradients.disk.manifest import Manifest, packed, unpacked
from tests.fuzz.mutate import joined, parted
from tests.fuzz.readers import GOLDEN, READERS
from tests.golden.make import IMAGES, TOKENS
from tests.golden.test_golden import models_of

CONV, OUT = "conv.weight", "out.weight"


def written(folder, name: str, change_json=None, change_tensors=None, *, json_file: str, tensor_file: str):
    """A reader's whole files with one change, their checksums right."""
    files = dict(READERS[name].files)
    if change_json is not None:
        record = json.loads(files[json_file])
        change_json(record)
        files[json_file] = json.dumps(record).encode()
    if change_tensors is not None:
        tensors = load(files[tensor_file])
        change_tensors(tensors)
        files[tensor_file] = save(tensors)
    for file, data in READERS[name].restamp(files).items():
        (folder / file).write_bytes(data)
    return folder


FEATURES = {"json_file": "config.json", "tensor_file": "features.safetensors"}
STORE = {"json_file": "manifest.json", "tensor_file": "inputs.safetensors"}

CONFIGS = (
    (lambda c: c.pop("threshold"), r"config.json lacks 'threshold' and has the unknown nothing; fields: format"),
    (lambda c: c.update(colour=1), r"has the unknown 'colour'"),
    (lambda c: c.update(threshold=-1), r"says threshold = -1; accepted: a finite number from 0"),
    (lambda c: c.update(threshold=True), r"says threshold = True"),
    (lambda c: c.update(is_tied=1), r"says is_tied = 1; accepted: true or false"),
    (lambda c: c.update(is_tied=True), r"holds the unknown tensors 'v_in/conv.weight/left'"),
    (lambda c: c.update(n_rounds=99), r"says n_rounds = 99; accepted: a whole number from 1 to 3"),
    (lambda c: c.update(reference="nobody"), r"says reference = 'nobody'; accepted: 'sample', 'mean'"),
    (lambda c: c.update(divergence=["kl"]), r"says divergence = \['kl'\]; accepted: a text"),
    (lambda c: c.update(divergence="k" * 2000), r"divergence = 'kkk.*…; accepted"),
    (lambda c: c.update(params={}), r"says params = \{\}; accepted: at least one parameter"),
    (lambda c: c["params"][OUT].pop("fold"), r"in params.out.weight lacks 'fold'"),
    (lambda c: c["params"][OUT].update(fold="o i -> (o i)"), r"weight.fold = 'o i -> \(o i\)'; accepted: a pattern"),
    (lambda c: c["params"][OUT].update(shape=[2**40]), r"params.out.weight.fold = .* from the 1 axes"),
    (lambda c: c["params"][OUT].update(shape=[2**40, 2**40]), r"shape = .*; accepted: lengths whose product"),
    (lambda c: c["params"][OUT].update(shape=[3, 17]), r"accepted: \[feature, 3, rank\] and \[feature, 17, rank\]"),
    (lambda c: c["params"][OUT].update(fingerprint="F" * 64), r"accepted: a SHA-256"),
    (lambda c: c["params"][OUT].update(n_places=0), r"n_places = 0; accepted: a whole number from 1"),
    (lambda c: c["metrics"].update(l0="1"), r"metrics.l0 = '1'; accepted: a finite number"),
    (lambda c: c["config"].update(steps_done="4"), r"config.steps_done = '4'"),
    (lambda c: c["config"].update(history=[0.5, "x"]), r"config.history = .*; accepted: a list of numbers"),
    (lambda c: c["config"].update(store=3), r"config.store = 3; accepted: an object"),
    (lambda c: c["config"].update(background={"on_target": [1.0]}), r"on_target = .*; accepted: a list of 3 numbers"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=[message[:40] for _, message in CONFIGS])
def test_a_record_of_features_that_says_something_else_is_refused(tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        pf.load(written(tmp_path, "features", change, **FEATURES))


def renamed(old: str, new: str):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def filled(name: str, value: float):
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


LEFT = f"v_out/{OUT}/left"
TENSORS = (
    (lambda t: t.pop(LEFT), r"features.safetensors lacks the tensor 'v_out/out.weight/left'"),
    (lambda t: t.pop("references"), r"lacks the tensor 'references'"),
    (renamed("references", "more"), r"holds the unknown tensors 'more'|lacks the tensor 'references'"),
    (filled(LEFT, torch.nan), r"holds 'v_out/out.weight/left'.*accepted: finite floats"),
    (filled(LEFT, 10.0), r"holds v_out whose direction 0 has norm .*; accepted: 1"),
    (lambda t: t.update({LEFT: t[LEFT].long()}), r"torch.int64 of shape"),
    (lambda t: t.update({LEFT: t[LEFT][:2].clone()}), r"of shapes \(2, 3, 1\) and \(3, 18, 1\)"),
    (lambda t: t.update({LEFT: t[LEFT].double()}), r"differ in the number of features or in dtype"),
    (lambda t: t.update(references=t["references"][0].clone()), r"accepted: finite floats \[n_references, d_output\]"),
    (filled("references", torch.inf), r"holds references"),
    (renamed("examples/args/0", "examples/args/1"), r"holds examples/'args/1'; accepted: args/0 and on without gaps"),
    (renamed("examples/args/0", "examples/args/x"), r"holds examples/'args/x'"),
    (filled("examples/args/0", torch.nan), r"holds examples of which some numbers are NaN"),
    (lambda t: t.update({"examples/kwargs/a": torch.zeros(7)}), r"do not have the same rows"),
    (lambda t: t.update({"examples/mask": torch.ones(3, 2, dtype=torch.bool)}), r"the mask is not true or false"),
    (lambda t: t.update({"examples/mask": torch.ones(3, 2)}), r"the mask is not true or false"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TENSORS, ids=[message[:40] for _, message in TENSORS])
def test_tensors_of_features_that_are_others_are_refused(tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        pf.load(written(tmp_path, "features", None, change, **FEATURES))


def test_directions_of_v_in_are_as_many_as_of_v_out(tmp_path):
    def fewer(tensors):
        for name in [name for name in tensors if name.startswith("v_in/")]:
            tensors[name] = tensors[name][:2].clone()

    with pytest.raises(StoreError, match=r"holds 3 directions in v_out and 2 in v_in"):
        pf.load(written(tmp_path, "features", None, fewer, **FEATURES))


def test_tokens_and_outputs_of_another_model_are_refused_on_binding(tmp_path):
    model = models_of(GOLDEN)[TOKENS]
    written(tmp_path, "tied features", None, lambda t: t.update(references=torch.rand(2, 7)), **FEATURES)
    with pytest.raises(SettingError, match=r"output has 11 numbers, and the features' references have 7"):
        pf.load(tmp_path, model=model)


def test_tokens_outside_the_vocabulary_are_refused_on_binding(tiny_features, tiny_hooked, tmp_path):
    tiny_features.save_pretrained(tmp_path)
    tensors = load((tmp_path / "features.safetensors").read_bytes())
    tensors["examples/args/0"][0, 0] = 20
    files = {"features.safetensors": save(tensors), "config.json": (tmp_path / "config.json").read_bytes()}
    for file, data in READERS["features"].restamp(files).items():
        (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=r"tokens\[0, 0\] is 20. The model's vocabulary has ids 0 to 19"):
        pf.load(tmp_path, model=tiny_hooked)


SHARD = "train-00000.safetensors"
MANIFESTS = (
    (lambda m: m.pop("states"), r"manifest.json lacks 'states'"),
    (lambda m: m.update(colour=1), r"has the unknown 'colour'"),
    (lambda m: m.update(n_slots=0), r"says n_slots = 0"),
    (lambda m: m["recipe"].pop("seed"), r"in recipe lacks 'seed'"),
    (lambda m: m["recipe"].update(seed="0"), r"recipe.seed = '0'"),
    (lambda m: m["recipe"].update(dtype="int4"), r"recipe.dtype = 'int4'; accepted: 'float32', 'bfloat16'"),
    (lambda m: m["recipe"]["params"][OUT].update(shape=[3, 17]), r"stored = .*; accepted: the recipe's parameters"),
    (lambda m: m["stored"][OUT].update(format="sparse"), r"weight.format = 'sparse'; accepted: 'dense', 'factored'"),
    (lambda m: m["stored"][OUT].update(d_in=4), r"d_in = 4; accepted: null"),
    (lambda m: m["stored"][OUT]["columns"].update(delta=["F32", [2**40]]), r"accepted: a dtype .* with 2 axes"),
    (lambda m: m["stored"][OUT]["columns"].update(delta=["I64", [1, 3]]), r"accepted: a dtype \(F64, F32, F16, BF16\)"),
    (lambda m: m["stored"][OUT]["columns"].update(delta=["F32", [2, 3]]), r"accepted: fields with equally many positions"),
    (lambda m: m["planned"][0].update(split="test"), r"planned\[0\].split = 'test'; accepted: 'train', 'held_out'"),
    (lambda m: m["planned"][0].update(n_rows=3), r"plans Planned.*accepted: first_row 0, and 1 samples"),
    (lambda m: m["planned"][0].update(first_row=2), r"plans Planned"),
    (lambda m: m["planned"].pop(), r"which is not planned|plans no shard"),
    (lambda m: m["planned"].append(m["planned"][0]), r"plans two shards of one name"),
    (lambda m: m["whole"].update({"a": m["whole"][SHARD]}), r"holds the shard 'a', which is not planned"),
    (lambda m: m["whole"][SHARD].update(reached=["nobody"]), r"reached = \['nobody'\]; accepted: some of the parameters"),
    (lambda m: m["whole"][SHARD].update(loss=[0, 0]), r"loss = \[0, 0\]; accepted: three numbers"),
    (lambda m: m["whole"][SHARD].update(sha256="0"), r"accepted: a SHA-256"),
    (lambda m: m.update(states=[]), r"holds 0 states of the generator"),
    (lambda m: m.update(states=["x" * 20_000]), r"accepted: a list, each a text of at most 16,384"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), MANIFESTS, ids=[message[:40] for _, message in MANIFESTS])
def test_a_manifest_that_says_something_else_is_refused(tmp_path, change, message):
    record = json.loads(READERS["manifest"].files["manifest.json"])
    change(record)
    files = READERS["manifest"].restamp({"manifest.json": json.dumps(record).encode()})
    (tmp_path / "manifest.json").write_bytes(files["manifest.json"])
    with pytest.raises(StoreError, match=message):
        Manifest.read(tmp_path)


def test_a_state_that_would_unpack_to_much_more_is_refused():
    state = torch.Generator().get_state()
    assert unpacked(packed(state)).equal(state)
    for text in (packed(torch.zeros(10**8, dtype=torch.uint8)), packed(state[:-1]), "", "AAAA", "é"):
        with pytest.raises(StoreError, match="not a random generator's"):
            unpacked(text)


INPUTS = (
    (lambda t: t.pop("plan/train"), r"inputs.safetensors holds .*accepted: plan/train"),
    (renamed("data/args/0", "other/args/0"), r"accepted: plan/train, plan/held_out, reference, data/… and partners/…"),
    (lambda t: t["plan/train"].fill_(0), r"different rows"),
    (lambda t: t["plan/train"][:1].fill_(10**6), r"its plan chooses row 1000000"),
    (lambda t: t.update(reference=torch.zeros(3)), r"a reference that is not finite floats"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), INPUTS, ids=[message[:40] for _, message in INPUTS])
def test_inputs_of_a_store_that_are_others_are_refused(tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        pf.FactorStore.open(written(tmp_path, "store", None, change, **STORE))


def test_a_shard_of_other_columns_and_one_that_is_not_finite_are_refused(tmp_path):
    shard = {"json_file": "manifest.json", "tensor_file": SHARD}
    column = f"{OUT}/delta"
    written(tmp_path, "store", None, lambda t: t.update({column: t[column].double()}), **shard)
    with pytest.raises(StoreError, match=r"train-00000.safetensors holds .* samples of .*; its manifest says"):
        pf.FactorStore.open(tmp_path)
    written(tmp_path, "store", None, filled(column, torch.nan), **shard)
    with pytest.raises(StoreError, match=r"1 samples whose gradients are NaN"):
        pf.FactorStore.open(tmp_path).train.square_norm()


def test_rows_that_a_table_does_not_have_are_refused(tmp_path):
    shard = {"json_file": "manifest.json", "tensor_file": SHARD}
    written(tmp_path, "compressed store", None, lambda t: t["embed.weight/index"].view(-1)[:1].fill_(11), **shard)
    with pytest.raises(StoreError, match=r"rows 0 to 11 of a table with rows 0 to 10|rows \d+ to 11 of a table"):
        pf.FactorStore.open(tmp_path).train.rows(slice(None))


STATES = (
    (lambda t: t.pop("generator"), r"lacks 'generator'"),
    (lambda t: t.update(n_steps=torch.tensor(-1)), r"lacks 'n_steps', or holds another"),
    (lambda t: t.update(n_steps=torch.tensor(1.0)), r"lacks 'n_steps', or holds another"),
    (lambda t: t.update(order=torch.tensor([-3])), r"lacks 'order', or holds another"),
    (lambda t: t.update(more=torch.zeros(1)), r"holds the unknown tensors 'more'"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), STATES, ids=[message[:40] for _, message in STATES])
def test_a_checkpoint_that_holds_something_else_is_refused(tmp_path, change, message):
    path, (header, _) = tmp_path / "fit.safetensors", parted(READERS["checkpoint"].files["fit.safetensors"])
    tensors = load(READERS["checkpoint"].files["fit.safetensors"])
    change(tensors)
    new, rest = parted(save(tensors))
    data = joined({**new, "__metadata__": header["__metadata__"]}, rest)
    path.write_bytes(READERS["checkpoint"].restamp({path.name: data})[path.name])
    with pytest.raises(StoreError, match=message):
        read_checkpoint(path)


def test_what_is_whole_is_bound_to_its_model(tmp_path):
    written(tmp_path, "features", **FEATURES)
    found = pf.load(tmp_path, model=models_of(GOLDEN)[IMAGES])
    assert list(found.params) == [CONV, OUT]

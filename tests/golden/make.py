"""Make the golden files: one of every kind of file that the library writes, and what each holds as plain JSON.

    python -m tests.golden.make FOLDER

They were made once for each version of a format, and stay as they are: a test reads those of every version with today's
code. What they hold is taken from memory before it is written, or by safetensors' own reader, never by the library's.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import param_features as pf
from tests.circuits_made import small_circuit

IMAGES, TOKENS = "images", "tokens"


class Images(nn.Module):
    """Images [batch 1 4 4] to three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 2), nn.Linear(18, 3)

    def forward(self, images):
        return self.out(torch.tanh(self.conv(images)).flatten(1))


class Tokens(nn.Module):
    """Token ids to logits over eleven, each position seeing those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)

    def forward(self, tokens):
        return self.out(torch.tanh(self.embed(tokens).cumsum(1)))


MODELS = {IMAGES: Images, TOKENS: Tokens}


def drawn(kind: str) -> nn.Module:
    """A model with random weights."""
    model, generator = MODELS[kind](), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def data(kind: str) -> dict:
    """What each model is run on."""
    generator = torch.Generator().manual_seed(5)
    if kind == IMAGES:
        return {"inputs": torch.randn(24, 1, 4, 4, generator=generator)}
    lengths = torch.randint(3, 7, (24,), generator=generator).tolist()
    return {"tokens": [torch.randint(11, (n,), generator=generator).tolist() for n in lengths]}


def features(folder: Path, models: dict[str, nn.Module]) -> dict:
    """Untied features of a convolution and a matrix; tied ones of a table and a matrix, with padded tokens as examples."""
    settings = {"n_features": 3, "l0": 1, "progress": False, "harvest": pf.HarvestSettings(n_references=2, n_examples=3)}
    steps, l1 = {"steps": 4}, pf.FitSettings(steps=4, selection="l1", rank=2)
    found = {
        "untied": pf.decompose(models[IMAGES], ["conv.weight", "out.weight"], **data(IMAGES), **settings, **steps),
        "tied": pf.decompose(models[TOKENS], ["embed.weight", "out.weight"], **data(TOKENS), fit=l1, **settings),
    }
    for name, one in found.items():
        one.save_pretrained(folder / name)
    return {name: values_of(one) for name, one in found.items()}


def values_of(one: pf.ParamFeatures) -> dict:
    """What features hold, and their activations on their own examples."""
    directions = {"v_in": one.v_in, "v_out": one.v_out}
    return {
        **{title: {name: [t.tolist() for t in pair] for name, pair in d.factors.items()} for title, d in directions.items()},
        "threshold": one.threshold,
        "n_rounds": one.dictionary.encoder.n_rounds,
        "params": {name: dataclasses.asdict(record) for name, record in one.params.items()},
        "divergence": one.divergence.name,
        "reference": one.reference,
        "references": one.references.tolist(),
        "metrics": dict(one.metrics),
        "examples": one.examples.tensors[0].tolist(),
        "mask": None if one.examples.mask is None else one.examples.mask.tolist(),
        "activations": one.activations_on(one.examples).tolist(),
    }


def stores(folder: Path, models: dict[str, nn.Module]) -> dict:
    """Gradients in every format: dense, factored and indexed, whole and with rank 1 in bfloat16."""
    call = {"progress": False, "shard_mib": 0.002, "n_samples": 24}
    pf.harvest(models[IMAGES], ["conv.weight", "out.weight"], **data(IMAGES), directory=folder / "store", **call)
    small = {"compress_rank": 1, "dtype": "bfloat16", "directory": folder / "compressed"}
    pf.harvest(models[TOKENS], ["embed.weight", "out.weight"], **data(TOKENS), **small, **call)
    return {name: shards_of(folder / name) for name in ("store", "compressed")}


def shards_of(folder: Path) -> dict:
    """What the shards of a store hold, by split and column, the shards in the order of their names."""
    found = {}
    for split in ("train", "held_out"):
        files = [load_file(path) for path in sorted(folder.glob(f"{split}-*.safetensors"))]
        found[split] = {name: torch.cat([file[name] for file in files]).tolist() for name in files[0]}
    return found


def checkpoints(folder: Path, models: dict[str, nn.Module]) -> dict:
    """A fit between two steps, beside the gradients that it fits."""
    call = {"n_features": 2, "l0": 1, "steps": 3, "progress": False, "checkpoints": folder / "checkpoint"}
    found = pf.decompose(models[IMAGES], "out.weight", **data(IMAGES), **call)
    path = folder / "checkpoint" / "fit.safetensors"
    return {"n_steps": found.config["steps_done"], "tensors": {name: t.tolist() for name, t in load_file(path).items()}}


def make(folder: Path, models: dict[str, nn.Module]) -> dict:
    """Write every file, and return what they hold."""
    circuit = small_circuit()
    circuit.save(folder / "circuit.json")
    values = {"circuit": dataclasses.asdict(dataclasses.replace(circuit, subject=None))}
    values |= {"features": features(folder, models), "stores": stores(folder, models)}
    return json.loads(json.dumps(values | {"checkpoint": checkpoints(folder, models)}))


def main(folder: Path) -> None:
    """Make them in a new folder, with the models' weights."""
    folder.mkdir(parents=True)
    models = {kind: drawn(kind) for kind in MODELS}
    for kind, model in models.items():
        save_file(model.state_dict(), folder / f"{kind}.safetensors")
    values = make(folder, models)
    (folder / "values.json").write_text(json.dumps(values), encoding="utf-8")
    for path in [*folder.rglob(".lock"), *folder.rglob("fit.before.safetensors")]:
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

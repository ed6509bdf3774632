"""A store of gradients that is whole: opened, checked, and made the problem of a decomposition."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from param_features.errors import InputError, SampleCountError, SettingError, StoreError
from param_features.files import Origin, read_file, read_tensors, shown
from param_features.gradients.disk.manifest import HELD_OUT, INPUTS, TRAIN, Manifest
from param_features.gradients.disk.reading import DiskGradients
from param_features.gradients.disk.recipe import recipe_of, refuse_differences, settings_of
from param_features.gradients.disk.shards import ShardFile, columns_of
from param_features.gradients.sampling import HarvestSettings, SamplePlan
from param_features.machine import at_home, public
from param_features.params import Adapter, device_for_inputs
from param_features.problem import (
    ChosenParams,
    ModelInputs,
    PairInputs,
    Problem,
    as_pairs,
    check_pairs,
    inputs_from,
    inspect_output,
    read_divergence,
    read_inputs,
    read_pairs,
    read_positions,
)

_KNOWN = ("plan/train", "plan/held_out", "reference")
_THEN = "Call pf.harvest again with the same arguments: it makes what is damaged anew."


@dataclass(frozen=True, eq=False)
class FactorStore:
    """Harvested gradients on disk, and what else a decomposition needs.

    Attributes:
        directory: Where it lies.
        manifest: How it was made, and its shards.
        train: Gradients for fitting.
        held_out: Gradients for measuring.
        plan: Which rows of the data they are of.
        data: The inputs that they were taken of; None where some are no tensors.
        partners: The corrupted prompts of pairs.
        reference: What outputs were compared with, where that was fixed: their mean, or the user's own.
    """

    directory: Path
    manifest: Manifest
    train: DiskGradients
    held_out: DiskGradients
    plan: SamplePlan
    data: ModelInputs | None = None
    partners: ModelInputs | None = None
    reference: Tensor | None = None

    @classmethod
    @public
    def open(cls, directory: "str | PathLike | FactorStore", *, is_checked: bool = True) -> "FactorStore":
        """Open a store. Cost: reads every shard once, to check it.

        Args:
            directory: Where it lies; a store that is open already is given back.
            is_checked: Whether to compare every shard with its checksum.

        Raises:
            StoreError: A shard is missing or damaged, named; the harvest is unfinished; or there is no store.
        """
        if isinstance(directory, FactorStore):
            return directory
        folder = Path(at_home(directory))
        manifest = Manifest.read(folder)
        _refuse_unfinished(folder, manifest)
        if is_checked:
            _refuse_damaged(folder, manifest)
        tensors = _inputs(folder, manifest)
        origin = Origin(str(folder / INPUTS), _THEN)
        data, partners = (_rows_of(tensors, title, origin) for title in ("data", "partners"))
        train, held_out = (
            DiskGradients(_shards(folder, manifest, split), manifest.kinds(split)) for split in (TRAIN, HELD_OUT)
        )
        return cls(
            directory=folder,
            manifest=manifest,
            train=train,
            held_out=held_out,
            plan=SamplePlan(tensors["plan/train"], tensors["plan/held_out"], manifest.n_slots),
            data=data,
            partners=partners,
            reference=tensors.get("reference"),
        )

    def __repr__(self) -> str:
        """Say how many gradients of what it holds, and where."""
        recipe, manifest = self.manifest.recipe, self.manifest
        n_bytes, compression_line = sum(shard.n_bytes for shard in manifest.whole.values()), ""
        if not manifest.compression.is_none:
            lost, worst = (f"{100 * share:.2g} %" for share in (manifest.loss.share, manifest.loss.worst))
            compression_line = (
                f"\nTraining gradients are compressed {manifest.compression}: {lost} of their squared norm is lost, {worst} "
                "of one sample's at worst. Held-out ones are whole."
            )
        return (
            f"FactorStore: {self.train.n_samples:,} training and {self.held_out.n_samples:,} held-out gradients of "
            f"{', '.join(self.names)} (divergence {recipe['divergence']!r}, reference {recipe['reference']!r}), "
            f"{n_bytes / 2**20:,.1f} MiB in {len(manifest.planned)} shards at {self.directory}{compression_line}"
        )

    @property
    def names(self) -> list[str]:
        """Names of the parameters whose gradients it holds."""
        return list(self.manifest.stored)

    @property
    def settings(self) -> HarvestSettings:
        """How samples were taken."""
        return settings_of(self.manifest.recipe)

    @property
    def summary(self) -> dict[str, Any]:
        """What the record of a fit says of it."""
        recipe = json.dumps(self.manifest.recipe, sort_keys=True).encode()
        return {
            "directory": str(self.directory),
            "seed": self.manifest.recipe["seed"],
            "recipe_sha256": hashlib.sha256(recipe).hexdigest(),
            "compression": str(self.manifest.compression),
        }

    @property
    def metrics(self) -> dict[str, float]:
        """What a fit's metrics say of it: the share of the training gradients that compression lost, where there is one."""
        manifest = self.manifest
        return {} if manifest.compression.is_none else {"training_lost": manifest.loss.share}

    def on(self, device: torch.device) -> "FactorStore":
        """The same store, whose tensors are brought to a device as they are read."""
        return replace(self, train=self.train.to(device), held_out=self.held_out.to(device))

    def problem(
        self,
        chosen: ChosenParams,
        tokens: Any,
        inputs: Any,
        *,
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
        reference: Any = None,
        positions: Any = "all",
        settings: HarvestSettings | None = None,
        method: str = "l3d",
    ) -> Problem:
        """What a decomposition starts from: the store's own where nothing is given, else what is given, if it is the same.

        Raises:
            StoreError: Something given is not what the store was harvested from, or the model's weights have changed; names
                every difference.
            InputError: The data are not in the store and not given.
            SettingError: The divergence or the output is code, which is not in the store and not given.
        """
        adapter, subset, recipe = chosen.adapter, chosen.subset, self.manifest.recipe
        pairs = self._pairs(adapter, tokens, inputs, reference)
        data = self._data(adapter, tokens, inputs) if pairs is None else pairs.clean
        self._need_code("output", recipe["output"], adapter.given_output)
        output = inspect_output(adapter, data)
        self._need_code("divergence", recipe["divergence_code"], divergence if callable(divergence) else None)
        wanted_divergence = read_divergence(
            recipe["divergence"] if divergence == "auto" else divergence, is_logits=output.is_logits
        )
        given = self._positions(read_positions(positions))
        output = output.sampled(wanted_divergence, given)
        if pairs is not None:
            check_pairs(adapter, pairs, output, wanted_divergence, method)
        kind = recipe["reference"].split(" ")[0]
        named_reference = kind if reference is None or pairs is not None else reference
        known = None if self.reference is None else self.reference.to(subset.device)
        problem = Problem(adapter, subset, data, output, wanted_divergence, named_reference, pairs, known)
        problem = problem.sampled_at(given)
        wanted = recipe_of(
            problem,
            settings or self.settings,
            seed=recipe["seed"],
            shard_mib=recipe["shard_mib"],
            compression=self.manifest.compression,
        )
        wanted |= {"reference": recipe["reference"]} if reference is None else {}
        then = "Leave out what differs to use what the store holds, or harvest into another directory=."
        refuse_differences(recipe, wanted, where=str(self.directory), then=then)
        return replace(problem, reference=kind)

    def _positions(self, given: Any) -> Any:
        """Those that the store was harvested at where none are given; a mask or a function is not kept."""
        recorded = self.manifest.recipe.get("positions", "all")
        if not isinstance(given, str) or given != "all":
            return given
        is_code = isinstance(recorded, dict) and "function" in recorded
        self._need_code("positions", recorded if is_code or str(recorded).startswith("mask ") else None, None)
        return slice(*recorded["slice"]) if isinstance(recorded, dict) else recorded

    def check_count(self, n_features: int) -> None:
        """Refuse a fit of more features than there are training samples.

        Raises:
            SampleCountError: Gives both numbers.
        """
        if self.train.n_samples < n_features:
            raise SampleCountError(
                f"{self.directory} holds {self.train.n_samples} training samples, fewer than the {n_features} features "
                "asked for. Harvest more, or ask for fewer; ten samples a feature is the least that can mean anything."
            )

    def _pairs(self, adapter: Adapter, tokens: Any, inputs: Any, reference: Any) -> PairInputs | None:
        spec = None if reference is None else as_pairs(reference)
        if spec is not None:
            return read_pairs(adapter, spec, tokens, inputs)
        if reference is not None or self.partners is None:
            return None
        partners = self.partners.map(lambda tensor: tensor.to(_device(adapter)))
        return PairInputs(self._data(adapter, tokens, inputs), partners)

    def _data(self, adapter: Adapter, tokens: Any, inputs: Any) -> ModelInputs:
        if tokens is not None or inputs is not None:
            return read_inputs(adapter, tokens, inputs)
        if self.data is None:
            raise InputError(
                f"{self.directory} was harvested from inputs that are not all tensors, which are not kept. Give the same "
                "inputs= again."
            )
        return self.data.map(lambda tensor: tensor.to(_device(adapter)))

    def _need_code(self, name: str, recorded: Any, code: Any) -> None:
        if recorded is not None and code is None:
            raise SettingError(
                f"{self.directory} was harvested with your own {name}=, which is not kept. Give it again: "
                f"pf.decompose(…, store=…, {name}=…)."
            )


def _device(adapter: Adapter) -> torch.device:
    return device_for_inputs(adapter.module)


def _shards(folder: Path, manifest: Manifest, split: str) -> list[ShardFile]:
    """A split's shards, each of which holds what the manifest says."""
    columns = columns_of(manifest.kinds(split))
    shards = (shard for shard in manifest.planned if shard.split == split)
    return [ShardFile(folder / shard.name).check(columns, shard.n_samples) for shard in shards]


def _inputs(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The file of the data, whose plan is that of the shards.

    Raises:
        StoreError: It is not what the manifest says, or its tensors are not those of a store.
    """
    origin = Origin(str(folder / INPUTS), _THEN)
    data = read_file(folder / INPUTS, origin)
    if hashlib.sha256(data).hexdigest() != manifest.inputs_sha256:
        origin.refuse("is not what was written")
    tensors, _ = read_tensors(data, origin)
    unknown = [name for name in tensors if name not in _KNOWN and not name.startswith(("data/", "partners/"))]
    if unknown or not set(_KNOWN[:2]) <= tensors.keys():
        origin.refuse(f"holds {', '.join(map(shown, tensors))}; accepted: {', '.join(_KNOWN)}, data/… and partners/…")
    for split, name in zip((TRAIN, HELD_OUT), _KNOWN, strict=False):
        rows, n = tensors[name], sum(shard.n_rows for shard in manifest.planned if shard.split == split)
        if rows.dtype != torch.int64 or rows.shape != (n,) or int(rows.min()) < 0 or len(rows.unique()) != n:
            origin.refuse(f"holds {name}, {rows.dtype} of shape {tuple(rows.shape)}; accepted: {n} different rows, int64")
    reference = tensors.get("reference")
    is_matrix = reference is None or reference.is_floating_point() and reference.dim() == 2 and reference.numel() > 0
    if not is_matrix or reference is not None and not bool(reference.isfinite().all()):
        origin.refuse("holds a reference that is not finite floats [n_references, d_output]")
    return tensors


def _rows_of(tensors: dict[str, Tensor], title: str, origin: Origin) -> ModelInputs | None:
    """Inputs that hold every row of the plan.

    Raises:
        StoreError: They are no inputs, or have fewer rows.
    """
    inputs, n_rows = inputs_from(tensors, title, origin), 1 + max(int(tensors[name].max()) for name in _KNOWN[:2])
    if inputs is not None and len(inputs) < n_rows:
        origin.refuse(f"holds {len(inputs)} rows of {title}, and its plan chooses row {n_rows - 1}")
    return inputs


def _refuse_unfinished(folder: Path, manifest: Manifest) -> None:
    if manifest.missing:
        raise StoreError(
            f"{folder} holds {len(manifest.whole)} of {len(manifest.planned)} shards: its harvest was not finished. Call "
            "pf.harvest again with the same arguments; it goes on with the rest."
        )


def _refuse_damaged(folder: Path, manifest: Manifest) -> None:
    damaged = manifest.damaged(folder)
    if damaged:
        reasons = "; ".join(f"{folder / name} {why}" for name, why in damaged.items())
        raise StoreError(f"{reasons}. {_THEN}")

"""The model on prompts, with its nodes at hand: run without some, and differentiated by how much of each there is.

Every node k has an amount α_k, 0 in the model as it is: its place gives Σ_k α_k (n_k(x) − b_k) more, with n_k what one unit
of the node gives and b_k the same under the baseline. A node of which the model holds h_k is ablated at α_k = −h_k, so that
h_k ∂m/∂α_k is its attribution.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from param_features.circuits.baselines import Baseline, Zero
from param_features.circuits.groups import Group
from param_features.circuits.metric import Metric, checked_values
from param_features.circuits.places import Place, acting
from param_features.errors import AdapterError
from param_features.intervene import refusing_late_backward
from param_features.machine import full_precision, uncompiled
from param_features.params import Adapter, held_still
from param_features.problem import ModelInputs

ByGroup = dict[str, Tensor]
"""[row node] by group, each with nodes of its own."""

Amounts = Mapping[str, Tensor]
"""α by group, [row node]; groups that are left out stay as they are."""

CallKey = tuple[Place, int]
"""A place, and which of its calls."""


@dataclass(frozen=True)
class PlaceCall:
    """One call of a place: what it read and what it gave.

    Attributes:
        source: What its nodes' parts are computed from.
        output: What it gave.
    """

    source: Any
    output: Tensor


@dataclass(frozen=True, eq=False)
class Slopes:
    """The metric on each prompt, and its derivatives by the nodes' amounts and by what the places gave.

    Attributes:
        values: Of each prompt.
        by_node: ∂m/∂α of every group, [row node].
        cotangents: ∂m by what each place gave.
        calls: What each call of a place read and gave.
    """

    values: Float[Tensor, " row"]
    by_node: ByGroup
    cotangents: dict[CallKey, Tensor]
    calls: dict[CallKey, PlaceCall]


@dataclass(frozen=True, eq=False)
class CircuitSubject:
    """A model on prompts, taken apart into groups of nodes.

    Attributes:
        adapter: Runs the model.
        groups: Of nodes, in the order of the forward pass.
        inputs: The prompts.
        metric: What is explained.
        baseline: What an ablated node is replaced by.
        remembered: What was found out about the model while it ran, such as that it has no forward mode.
    """

    adapter: Adapter
    groups: tuple[Group, ...]
    inputs: ModelInputs
    metric: Metric
    baseline: Baseline = field(default_factory=Zero)
    remembered: dict[str, bool] = field(default_factory=dict, repr=False)

    @property
    def places(self) -> dict[Place, Group]:
        """Every place with its group."""
        return {place: group for group in self.groups for place in group.places}

    @property
    def names(self) -> list[str]:
        """Every node's name, group by group."""
        return [name for group in self.groups for name in group.names]

    @property
    def is_real(self) -> Bool[Tensor, "row pos"] | None:
        """Which positions are real: False at padding; None in a model without tokens."""
        return real_positions(self.inputs)

    @property
    def group_of(self) -> Int[Tensor, " node"]:
        """The number of each node's group, in the order of `names`."""
        return torch.cat([torch.full((group.n_nodes,), number) for number, group in enumerate(self.groups)])

    @property
    def is_error(self) -> Bool[Tensor, " node"]:
        """Which nodes are errors, in the order of `names`."""
        marks = [torch.arange(group.n_nodes) == group.n_features for group in self.groups]
        return torch.cat(marks)

    @property
    def holds(self) -> Float[Tensor, " node"]:
        """How much of each node the model has."""
        return torch.cat([group.holds for group in self.groups])

    def on(self, inputs: ModelInputs) -> "CircuitSubject":
        """Move the subject to other inputs, with the same nodes and baselines."""
        return replace(self, inputs=inputs, baseline=self.baseline.on(real_positions(inputs)))

    def amounts_keeping(self, nodes: Bool[Tensor, " node"]) -> ByGroup:
        """The amounts by which only the marked nodes remain."""
        return self._for_rows({group.name: group.amounts_keeping(part) for group, part in self._by_group(nodes)})

    def amounts_removing(self, nodes: Bool[Tensor, " node"]) -> ByGroup:
        """The amounts by which the marked nodes are gone."""
        return self._for_rows({group.name: group.amounts_removing(part) for group, part in self._by_group(nodes)})

    def amounts_lacking(self, node: int) -> dict[str, Tensor]:
        """The amounts by which one node lacks what it holds."""
        marks = torch.zeros(len(self.names), dtype=torch.float64)
        marks[node] = -self.holds[node]
        return self._for_rows({group.name: part for group, part in self._by_group(marks)})

    def missing(self, nodes: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
        """How much of each node is missing where only the marked ones remain."""
        return torch.cat([group.missing(part) for group, part in self._by_group(nodes)])

    def _by_group(self, nodes: Shaped[Tensor, " node"]) -> list[tuple[Group, Tensor]]:
        return list(zip(self.groups, nodes.split([group.n_nodes for group in self.groups]), strict=True))

    def _for_rows(self, amounts: Mapping[str, Tensor]) -> ByGroup:
        """Repeat amounts for every prompt; groups that stay as they are are left out."""
        return {name: part.expand(len(self.inputs), -1) for name, part in amounts.items() if bool(part.any())}

    def values(self, amounts: Amounts | None = None) -> Float[Tensor, " row"]:
        """Measure the metric of every prompt with these amounts, in float64 on the CPU. Cost: a forward pass."""
        with held_still(self.adapter.module), torch.no_grad(), self.with_amounts(amounts or {}):
            return self.measured().double().cpu()

    def slopes(self, amounts: Amounts | None = None) -> Slopes:
        """Compute the metric's derivative by every node's amount, at some amounts. Cost: a forward and a backward pass."""
        calls: dict[CallKey, PlaceCall] = {}
        probes: dict[CallKey, Tensor] = {}
        with held_still(self.adapter.module), self._probing(amounts or {}, calls, probes):
            values = self.measured()
            if not probes:
                raise AdapterError("None of the nodes' places is passed in this model's forward pass.")
            gradients = torch.autograd.grad(values.sum(), list(probes.values()), allow_unused=True, materialize_grads=True)
        cotangents = dict(zip(probes, gradients, strict=True))
        with torch.no_grad():
            by_node = self.read(calls, cotangents)
        return Slopes(values.detach(), by_node, cotangents, calls)

    def read(self, calls: Mapping[CallKey, PlaceCall], cotangents: Mapping[CallKey, Tensor]) -> ByGroup:
        """Sum ⟨cotangent, n_k − b_k⟩ over all places of each group."""
        n_rows, places, by_group = len(self.inputs), self.places, {}
        for key, cotangent in cotangents.items():
            place, number = key
            part = place.inner(calls[key].source, cotangent, n_rows) - self.baseline.inner(place, number, cotangent, n_rows)
            name = places[place].name
            by_group[name] = part if name not in by_group else by_group[name] + part
        return {group.name: by_group[group.name] for group in self.groups if group.name in by_group}

    def joined(self, by_group: Mapping[str, Tensor]) -> Float[Tensor, "row node"]:
        """Join what is given by group in the order of `names`, in float64 on the CPU."""
        return torch.cat([by_group[group.name].double().cpu() for group in self.groups], 1)

    def part(self, key: CallKey, call: PlaceCall, amounts: Float[Tensor, "row node"]) -> Tensor:
        """Sum Σ_k α_k (n_k − b_k) at a place, with its graph to the source."""
        place, number = key
        wide = torch.promote_types(call.output.dtype, torch.float32)
        amounts = amounts.to(call.output.device, wide)
        return place.written(call.source, amounts, call.output) - self.baseline.written(place, number, amounts, call.output)

    @contextmanager
    def with_amounts(self, amounts: Amounts, *, of_any_batch: bool = False) -> Iterator[None]:
        """Run a block in which every call of the model has these amounts.

        Args:
            amounts: By group.
            of_any_batch: Whether the model is run on other inputs, all rows of which have the first row's amounts.
        """
        places = {place: group.name for place, group in self.places.items() if group.name in amounts}
        batch: list[CircuitSubject] = [self]
        with ExitStack() as stack:
            number = stack.enter_context(counted(self.adapter))

            def act(place: Place, source: Any, output: Tensor) -> Tensor:
                of_group, current = amounts[places[place]], batch[-1]
                of_group = of_group[:1].expand(len(current.inputs), -1) if of_any_batch else of_group
                with full_precision(), torch.inference_mode(False):
                    call = PlaceCall(place.detached(source), output.detach())
                    part = current.part((place, number(place)), call, of_group).detach()
                return output + part.to(output.dtype)

            if of_any_batch:
                stack.enter_context(uncompiled())
                stack.enter_context(refusing_late_backward(self.adapter.module, {place.module: [] for place in places}))
                stack.callback(_seeing_batches(self, batch).remove)
            stack.enter_context(acting(places, act))
            yield

    @contextmanager
    def _probing(self, amounts: Amounts, calls: dict[CallKey, PlaceCall], probes: dict[CallKey, Tensor]) -> Iterator[None]:
        places = self.places
        with counted(self.adapter) as number:

            def act(place: Place, source: Any, output: Tensor) -> Tensor:
                key, name = (place, number(place)), places[place].name
                calls[key] = PlaceCall(place.detached(source), output.detach())
                if name in amounts:
                    output = output + self.part(key, PlaceCall(source, output), amounts[name]).to(output.dtype)
                probes[key] = torch.zeros_like(output, requires_grad=True)
                return output + probes[key]

            with acting(places, act):
                yield

    def measured(self) -> Float[Tensor, " row"]:
        """Run the model on the prompts and measure the metric, with its graph."""
        measure = self.metric.on(self.adapter, self.inputs)
        output = self.adapter.run(*self.inputs.args, **self.inputs.kwargs)
        return checked_values(measure(output), len(self.inputs), self.metric.name)

    def sources(self, inputs: ModelInputs) -> dict[CallKey, PlaceCall]:
        """Record what every place reads and gives on other inputs, in the order of the calls. Cost: a forward pass."""
        calls: dict[CallKey, PlaceCall] = {}
        with held_still(self.adapter.module), torch.no_grad(), self._probing({}, calls, {}):
            self.adapter.run(*inputs.args, **inputs.kwargs)
        return calls


def _seeing_batches(subject: CircuitSubject, batch: list[CircuitSubject]) -> RemovableHandle:
    """Before each call of the model, put the subject on that call's inputs into `batch`."""

    def see(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        batch[:] = [subject.on(ModelInputs(args, kwargs))]

    return subject.adapter.module.register_forward_pre_hook(see, with_kwargs=True, prepend=True)


@contextmanager
def counted(adapter: Adapter) -> Iterator[Callable[[Place], int]]:
    """Run a block with a function that numbers each place's calls within one forward pass."""
    last: dict[Place, int] = {}

    def number(place: Place) -> int:
        last[place] = last.get(place, -1) + 1
        return last[place]

    handle = adapter.module.register_forward_pre_hook(lambda *_: last.clear())
    try:
        yield number
    finally:
        handle.remove()


def real_positions(inputs: ModelInputs) -> Bool[Tensor, "row pos"] | None:
    """Which positions are real: False at padding; None in a model without tokens."""
    if inputs.tokens is None:
        return None
    return torch.ones(inputs.tokens.shape, dtype=torch.bool) if inputs.mask is None else inputs.mask


def in_order(subject: CircuitSubject) -> CircuitSubject:
    """Sort a subject's groups in the order in which the forward pass comes to them."""
    first = subject.sources(subject.inputs.rows(slice(0, 1)))
    places, order = subject.places, []
    for place, _ in first:
        if places[place].name not in order:
            order.append(places[place].name)
    missing = [group.name for group in subject.groups if group.name not in order]
    if missing:
        raise AdapterError(f"{missing[0]!r} is not passed in this model's forward pass, so nothing can act there.")
    return replace(subject, groups=tuple(sorted(subject.groups, key=lambda group: order.index(group.name))))

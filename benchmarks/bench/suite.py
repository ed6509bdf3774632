"""What the bench runs: toys, and the number that each is held to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks import toys
from param_features.toys import Toy


@dataclass(frozen=True)
class Case:
    """One toy and what is expected of a fit.

    Attributes:
        name: Its row in the table.
        toy: Makes the toy from `seed`.
        quick: Arguments of `toy` that make it smaller.
        at_least: The least that each seed should reach, by the name of the number.
        at_most: The most that each seed should have.
        changes: Arguments of the toy's `decompose`.
        quick_changes: Further ones of the quick setting.
    """

    name: str
    toy: Callable[..., Toy]
    quick: Mapping[str, Any]
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    quick_changes: Mapping[str, Any] = field(default_factory=dict)


SUITE = (
    Case("tms 5-2", toys.superposition, {"n_steps": 600}, {"mmcs": 0.99, "covered": 5}, {"error": 0.12}),
    Case("tms 5-2 tied", partial(toys.superposition, is_tied=True), {"n_steps": 600}, {"mmcs": 0.99, "covered": 5}),
    Case(
        "tms 40-10",
        partial(toys.superposition, 40, 10, n_inputs=10_000),
        {"n_steps": 600, "n_inputs": 4000},
        {"mmcs": 0.97, "covered": 39},
    ),
    Case("tmcs 10-5", toys.linear_map, {"n_steps": 1000}, {"covered": 10, "r2": 0.92}, {"error": 0.064}),
    Case("groups 5x5", toys.groups, {"n_steps": 1500, "n_inputs": 4000}, {"covered": 5, "inside": 5}),
    Case("squares", toys.squares, {"n_inputs": 3000}, {"covered": 5, "told": 5}, {"error": 0.15}),
    Case("xor", toys.xor, {}, {"covered": 3, "corners": 3}),
    Case(
        "xor hessian",
        toys.xor,
        {},
        {"covered": 3, "corners": 3},
        changes={"method": "hessian", "n_features": 3},
    ),
    Case(
        "tms 5-2 hessian",
        toys.superposition,
        {"n_steps": 600},
        {"own": 5, "steepest": 0.95},
        changes={"method": "hessian"},
    ),
    Case("planted", toys.planted_circuits, {"n_inputs": 2000}, {"covered": 10}),
    Case("digits", toys.digits, {}, {"told": 10}),
    Case(
        "stories",
        toys.stories,
        {"n_rows": 300, "n_probes": 64},
        {"told": 8, "told_alone": 8},
        quick_changes={"steps": 50},
    ),
    Case("induction", toys.induction, {"n_rows": 400}, {"auroc": 0.9, "told_alone": 1}, quick_changes={"steps": 50}),
    Case("modular 31", toys.modular_addition, {}, quick_changes={"steps": 100}),
    Case("circle", toys.circle, {"n_steps": 1500, "n_inputs": 2000}),
)
"""The toys, with the aims that the library holds itself to."""

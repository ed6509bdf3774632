"""Choosing parameters by name, glob or regex: what `params=` takes."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from param_features.errors import (
    ArgumentError,
    EmptySelectionError,
    NoGradientError,
    SettingError,
    UnknownParameterError,
    nearest,
)
from param_features.machine import shown
from param_features.params.other_names import what_was_meant
from param_features.params.quantised import quantised_match
from param_features.params.subset import ParamSubset
from param_features.params.views import ParamView

ParamSpec = str | re.Pattern | Iterable["str | re.Pattern"]


def select(
    views: Mapping[str, ParamView],
    spec: ParamSpec,
    aliases: Mapping[str, str] | None = None,
    parts: Mapping[str, ParamView] | None = None,
    quantised: Sequence[str] = (),
) -> ParamSubset:
    """Choose parameters by name, glob, compiled regex, or a list of these.

    Args:
        views: Every parameter of the model, by the library's names.
        spec: A name, a glob such as `blocks.*.attn.W_[KQ]`, a compiled regex (matched in full), or a list of these. A part
            of a fused matrix is named by a suffix: `c_attn.weight[k]`; `[q|k]` takes two parts, `[*]` each of them. A stack
            of experts stands for each of its experts, which are matrices of their own: `experts.down_proj[3]`.
        aliases: Names that users say, mapped to the library's: `blocks.2.attn.W_K` to `blocks.2.attn._W_K`.
        parts: Parts of fused matrices by name; matched by a glob or regex only where that names them.
        quantised: Layers that hold no floating-point weight, by name.

    Returns:
        The chosen parameters, each once, in the model's order, parts last.

    Raises:
        EmptySelectionError: `spec` is empty.
        UnknownParameterError: A part of `spec` matches nothing; the message lists the nearest names.
        NoGradientError: A part of `spec` means a quantised layer alone.
        ArgumentError: `spec` holds something else than names.
        SettingError: A matrix is chosen both whole and in part.
    """
    parts, aliases = parts or {}, aliases or {}
    names, part_names = {name: name for name in views} | dict(aliases), _names_of_parts(parts, aliases)
    patterns = _patterns(spec)
    if not patterns or any(pattern == "" for pattern in patterns):
        raise EmptySelectionError(
            f"params={spec!r} chooses no parameter. Give a name, a glob, a compiled regex or a list of these; "
            "pf.list_params(model) prints all names."
        )
    chosen = {name for pattern in patterns for name in _matches(pattern, names, part_names, quantised)}
    chosen = _with_members(chosen, views, parts)
    subset = ParamSubset(tuple(view for name, view in {**views, **parts}.items() if name in chosen))
    _refuse_overlap(subset)
    return subset


def named_in(
    spec: ParamSpec,
    views: Mapping[str, ParamView],
    aliases: Mapping[str, str] | None = None,
    parts: Mapping[str, ParamView] | None = None,
) -> set[str]:
    """The parameters that `spec` names one by one, by the library's names; those that a glob or regex takes are not.

    Args:
        spec: As for `select`; so are the others.
        views: Every parameter of the model.
        aliases: Further names of them.
        parts: Parts of fused matrices.
    """
    parts, aliases = parts or {}, aliases or {}
    names = {name: name for name in views} | dict(aliases) | _names_of_parts(parts, aliases)
    named = {names[pattern] for pattern in _patterns(spec) if isinstance(pattern, str) and pattern in names}
    return _with_members(named, views, parts)


def _with_members(chosen: set[str], views: Mapping[str, ParamView], parts: Mapping[str, ParamView]) -> set[str]:
    """The choice with the members of every stack in place of the stack: parts that have an axis less than the whole."""
    members: dict[str, list[str]] = {}
    for name, part in parts.items():
        whole = name.rpartition("[")[0]
        if whole in chosen and len(part.fold.partition("->")[0].split()) < views[whole].stored.dim():
            members.setdefault(whole, []).append(name)
    return (chosen - members.keys()).union(*members.values())


def _patterns(spec: ParamSpec) -> list[str | re.Pattern]:
    patterns: list[str | re.Pattern] = [spec] if isinstance(spec, str | re.Pattern) else [*spec]
    if isinstance(spec, Tensor) or not all(isinstance(pattern, str | re.Pattern) for pattern in patterns):
        raise ArgumentError(
            f"params= is {shown(spec)}. Give a name, a glob, a compiled regex or a list of these; was it forgotten? The "
            "order is (model, params, tokens), and pf.list_params(model) prints all names."
        )
    return patterns


def _names_of_parts(parts: Mapping[str, ParamView], aliases: Mapping[str, str]) -> dict[str, str]:
    """Names of parts, also under their whole's aliases, to the library's own."""
    names = {name: name for name in parts}
    for alias, real in aliases.items():
        names |= {alias + name.removeprefix(real): name for name in parts if name.startswith(f"{real}[")}
    return names


def _matches(
    pattern: str | re.Pattern, names: Mapping[str, str], part_names: Mapping[str, str], quantised: Sequence[str]
) -> set[str]:
    if isinstance(pattern, re.Pattern):
        matched = {real for name, real in names.items() if pattern.fullmatch(name)}
        matched = matched or {real for name, real in part_names.items() if pattern.fullmatch(name)}
    elif pattern in names or pattern in part_names:
        matched = {names.get(pattern) or part_names[pattern]}
    else:
        matched = {real for name, real in names.items() if fnmatch.fnmatchcase(name, pattern)}
        matched |= {real for name, real in part_names.items() if _is_part_of(name, pattern)}
    layer = None if matched else quantised_match(pattern, quantised)
    if layer is not None:
        raise NoGradientError(
            f"{repr(layer) if layer else 'The model'} is a quantised layer: its weight is no floating-point Parameter and "
            "has no gradient. Decompose the model before it is quantised, or leave this layer out of params=."
        )
    if not matched:
        known = [*names, *part_names]
        text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
        raise UnknownParameterError(
            f"No parameter matches {text!r}. {what_was_meant(text, known)}The model has {len(set(names.values()))} "
            f"parameters; nearest: {nearest(text, known)}. pf.list_params(model) prints all."
        )
    return matched


def _is_part_of(name: str, pattern: str) -> bool:
    """Whether `c_attn.weight[k]` is meant by `*.c_attn.weight[q|k]`: a glob before the brackets, alternatives inside."""
    whole, _, part = name[:-1].rpartition("[")
    whole_pattern, bracket, choices = pattern.removesuffix("]").rpartition("[")
    is_named = bracket and pattern.endswith("]") and any(fnmatch.fnmatchcase(part, choice) for choice in choices.split("|"))
    return bool(is_named) and fnmatch.fnmatchcase(whole, whole_pattern)


def _refuse_overlap(subset: ParamSubset) -> None:
    whole = {id(view.stored): view.name for view in subset.views if view.layout.part is None}
    for view in subset.views:
        if view.layout.part is not None and id(view.stored) in whole:
            raise SettingError(
                f"params= chooses {whole[id(view.stored)]!r} whole and its part {view.name!r} again. Choose the whole or "
                "its parts."
            )

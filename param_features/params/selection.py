"""Choosing parameters by name, glob or regex: what `params=` takes."""

import fnmatch
import re
from collections.abc import Mapping, Sequence

from param_features.errors import EmptySelectionError, SettingError, UnknownParameterError, nearest
from param_features.params.subset import ParamSubset
from param_features.params.views import ParamView

ParamSpec = str | re.Pattern | Sequence["str | re.Pattern"]


def select(
    views: Mapping[str, ParamView],
    spec: ParamSpec,
    aliases: Mapping[str, str] | None = None,
    parts: Mapping[str, ParamView] | None = None,
) -> ParamSubset:
    """Choose parameters by name, glob, compiled regex, or a list of these.

    Args:
        views: Every parameter of the model, by the library's names.
        spec: A name, a glob such as `blocks.*.attn.W_[KQ]`, a compiled regex (matched in full), or a list of these. A part
            of a fused matrix is named by a suffix: `c_attn.weight[k]`; `[q|k]` takes two parts, `[*]` each of them.
        aliases: Names that users say, mapped to the library's: `blocks.2.attn.W_K` to `blocks.2.attn._W_K`.
        parts: Parts of fused matrices by name; matched by a glob or regex only where that names them.

    Returns:
        The chosen parameters, each once, in the model's order, parts last.

    Raises:
        EmptySelectionError: `spec` is empty.
        UnknownParameterError: A part of `spec` matches nothing; the message lists the nearest names.
        SettingError: A matrix is chosen both whole and in part.
    """
    parts, aliases = parts or {}, aliases or {}
    spoken, of_parts = {name: name for name in views} | dict(aliases), _spoken_parts(parts, aliases)
    wanted = [spec] if isinstance(spec, str | re.Pattern) else list(spec)
    if not wanted or any(one == "" for one in wanted):
        raise EmptySelectionError(
            f"params={spec!r} chooses no parameter. Give a name, a glob, a compiled regex or a list of these; "
            "pf.list_params(model) prints all names."
        )
    chosen = {name for one in wanted for name in _matches(one, spoken, of_parts)}
    subset = ParamSubset(tuple(view for name, view in {**views, **parts}.items() if name in chosen))
    _refuse_overlap(subset)
    return subset


def _spoken_parts(parts: Mapping[str, ParamView], aliases: Mapping[str, str]) -> dict[str, str]:
    """Names of parts, also under their whole's aliases, to the library's own."""
    found = {name: name for name in parts}
    for alias, real in aliases.items():
        found |= {alias + name.removeprefix(real): name for name in parts if name.startswith(f"{real}[")}
    return found


def _matches(wanted: str | re.Pattern, spoken: Mapping[str, str], parts: Mapping[str, str]) -> set[str]:
    if isinstance(wanted, re.Pattern):
        found = {real for name, real in spoken.items() if wanted.fullmatch(name)}
        found = found or {real for name, real in parts.items() if wanted.fullmatch(name)}
    elif wanted in spoken or wanted in parts:
        found = {spoken.get(wanted) or parts[wanted]}
    else:
        found = {real for name, real in spoken.items() if fnmatch.fnmatchcase(name, wanted)}
        found |= {real for name, real in parts.items() if _is_part_of(name, wanted)}
    if not found:
        pattern = wanted.pattern if isinstance(wanted, re.Pattern) else wanted
        raise UnknownParameterError(
            f"No parameter matches {pattern!r}. The model has {len(set(spoken.values()))} parameters; nearest: "
            f"{nearest(pattern, [*spoken, *parts])}. pf.list_params(model) prints all."
        )
    return found


def _is_part_of(name: str, wanted: str) -> bool:
    """Whether `c_attn.weight[k]` is meant by `*.c_attn.weight[q|k]`: a glob before the brackets, alternatives inside."""
    whole, _, part = name[:-1].rpartition("[")
    pattern, bracket, choices = wanted.removesuffix("]").rpartition("[")
    is_named = bracket and wanted.endswith("]") and any(fnmatch.fnmatchcase(part, choice) for choice in choices.split("|"))
    return bool(is_named) and fnmatch.fnmatchcase(whole, pattern)


def _refuse_overlap(subset: ParamSubset) -> None:
    whole = {id(view.stored): view.name for view in subset.views if view.layout.part is None}
    for view in subset.views:
        if view.layout.part is not None and id(view.stored) in whole:
            raise SettingError(
                f"params= chooses {whole[id(view.stored)]!r} whole and its part {view.name!r} again. Choose the whole or "
                "its parts."
            )

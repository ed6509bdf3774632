"""What tokens and top examples are called: short automatic labels, and what cannot be seen made visible."""

from collections import Counter
from collections.abc import Callable, Sequence

from param_features.measure.examples import Example

_MOST, _MANY = 0.5, 0.25
_LIFT = 3
_BEFORE = 16
_FEWEST = 4


def label_of(examples: Sequence[Example], usual: Callable[[str], float]) -> str:
    """What the examples share: the token the feature acts on, the one that follows, or one shortly before.

    What half of the examples share is stated, what a quarter share is called often; "mixed" stands for less than that. A
    label is a summary of the top examples, no explanation and no evidence.

    Args:
        examples: A feature's top examples, strongest first.
        usual: In which share of all windows of the data a token occurs; a token before counts from three times that.
    """
    if len(examples) < _FEWEST or not examples[0].tokens:
        return ""
    for least, often in ((_MOST, ""), (_MANY, "often ")):
        on = _shared([example.tokens[example.position] for example in examples], least)
        following = _shared([example.next_token for example in examples if example.next_token is not None], least)
        before = "" if on or following else _context(examples, usual, least)
        parts = [f"on {on}" if on else "", f"→ {following}" if following else "", f"after {before}" if before else ""]
        if any(parts):
            return often + " ".join(filter(None, parts))
    return "mixed"


def output_label(outputs: Sequence[int]) -> str:
    """The largest output of most examples, by number; "mixed" where less than half share one."""
    output, n = Counter(outputs).most_common(1)[0]
    return f"→ output {output}" if n >= _MOST * len(outputs) else "mixed"


def _shared(tokens: Sequence[str], least: float) -> str:
    """The commonest token, or else the two or three that make up that share together; empty where none do."""
    counted = [(token, n) for token, n in Counter(tokens).most_common(3) if n > 1]
    for n_named in range(1, len(counted) + 1):
        if sum(n for _, n in counted[:n_named]) >= (least + 0.1 * (n_named - 1)) * len(tokens):
            return " / ".join(quoted(token) for token, _ in counted[:n_named])
    return ""


def _context(examples: Sequence[Example], usual: Callable[[str], float], least: float) -> str:
    """A token that stands before that share of the examples and seldom elsewhere; empty without one."""
    windows = [set(example.tokens[max(0, example.position - _BEFORE) : example.position]) for example in examples]
    counts = Counter(token for window in windows for token in window if len(token.strip()) > 1)
    shares = {token: n / len(windows) for token, n in counts.items()}
    frequent = [(share, token) for token, share in shares.items() if share >= max(least, _LIFT * usual(token))]
    return quoted(max(frequent)[1]) if frequent else ""


def windows_with(rows: Sequence[Sequence[str]]) -> Callable[[str], float]:
    """The share of windows of 16 tokens, cut from `rows` one after the other, in which a token occurs."""
    windows = [set(row[start : start + _BEFORE]) for row in rows for start in range(0, len(row), _BEFORE)]
    counts = Counter(token for window in windows for token in window)
    return lambda token: counts[token] / max(1, len(windows))


def visible(token: str) -> str:
    """The token with a sign in place of every character that cannot be seen, or that would command a terminal."""
    return "".join(character if character.isprintable() else "⏎" if character == "\n" else "·" for character in token)


def quoted(token: str) -> str:
    """The token in curly quotes without the space before it, with what cannot be seen made visible."""
    shown = visible(token)
    return f"“{shown.strip(' ') or shown}”"

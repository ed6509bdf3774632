"""Telling a story word by word, and keeping account of every choice.

A story is only ever extended at its end, and a choice is a choice of the very next token. So what was told so far fixes
what may follow, the derivation of a story is its text, and -log p of each token is known exactly.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

END_OF_STORY = "<eos>"
_JOINED = frozenset({".", ",", "!", "?", END_OF_STORY})


@dataclass(frozen=True)
class Story:
    """One story, token by token; the four sequences have one entry per token.

    Attributes:
        tokens: Words with their leading space and punctuation marks; the last one is `END_OF_STORY`.
        rules: Names of the rules that determine each token.
        surprisal: -log p of each token given all earlier ones, in nats; 0 where nothing else could follow.
        entropy: Mean surprisal over all tokens that could have stood in this place, in nats.
    """

    tokens: tuple[str, ...]
    rules: tuple[frozenset[str], ...]
    surprisal: tuple[float, ...]
    entropy: tuple[float, ...]

    @property
    def text(self) -> str:
        """The story as it is read, without the end-of-story token."""
        return "".join(self.tokens[:-1])

    @property
    def log_prob(self) -> float:
        """Log-probability of the whole story, in nats; at most 0."""
        return -math.fsum(self.surprisal)


class Teller:
    """Writes one story: `say` adds words that had to follow, `pick` adds one of several."""

    def __init__(self, rng: random.Random) -> None:
        """Begin with nothing told.

        Args:
            rng: Source of every choice; only its `random()` is called, which Python keeps the same across versions.
        """
        self._rng = rng
        self._tokens: list[str] = []
        self._rules: list[frozenset[str]] = []
        self._surprisal: list[float] = []
        self._entropy: list[float] = []
        self._in_speech = False
        self._glue_next = True

    def say(self, words: str, *rules: str) -> None:
        """Add words that are the only possible continuation.

        Args:
            words: Words and punctuation marks, separated by spaces.
            rules: The rules that determine each of them.
        """
        for word in words.split():
            self._append(word, frozenset(rules), 0.0, 0.0)

    def pick(
        self,
        options: Mapping[str, float] | Sequence[str],
        *rules: str,
        marks: Mapping[str, str] | None = None,
    ) -> str:
        """Add one of several words.

        Args:
            options: The words with their weights, or a sequence of equally likely words.
            rules: The rules that determine the word, whichever is picked.
            marks: A further rule for some of the words, which holds if that word is picked.

        Returns:
            The word.
        """
        weighted = options if isinstance(options, Mapping) else dict.fromkeys(options, 1.0)
        words = tuple(weighted)
        cumulative, surprisals, entropy = _distribution(tuple(weighted.values()))
        point = self._rng.random()
        index = next(index for index, upper in enumerate(cumulative) if point < upper)
        word = words[index]
        marked = (marks[word],) if marks and word in marks else ()
        self._append(word, frozenset((*rules, *marked)), surprisals[index], entropy)
        return word

    def story(self) -> Story:
        """What was told so far, as an immutable record."""
        return Story(tuple(self._tokens), tuple(self._rules), tuple(self._surprisal), tuple(self._entropy))

    def _append(self, word: str, rules: frozenset[str], surprisal: float, entropy: float) -> None:
        closes_speech = word == '"' and self._in_speech
        glued = self._glue_next or closes_speech or word in _JOINED
        self._tokens.append(word if glued else f" {word}")
        self._rules.append(rules)
        self._surprisal.append(surprisal)
        self._entropy.append(entropy)
        if word == '"':
            self._in_speech = not self._in_speech
        self._glue_next = word == '"' and self._in_speech


@lru_cache(maxsize=256)
def _distribution(weights: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Cumulative probabilities (the last one infinite, against rounding), surprisals and entropy in nats."""
    total = math.fsum(weights)
    probabilities = [weight / total for weight in weights]
    surprisals = tuple(-math.log(p) for p in probabilities)
    cumulative = [math.fsum(probabilities[: index + 1]) for index in range(len(probabilities))]
    cumulative[-1] = math.inf
    entropy = math.fsum(p * s for p, s in zip(probabilities, surprisals, strict=True))
    return tuple(cumulative), surprisals, entropy

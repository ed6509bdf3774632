"""The demo stories obey their rules, checked by parsing the text with tables of this file's own."""

import math
import random
import re
from collections import defaultdict

import pytest
import torch

from benchmarks import demo_data
from benchmarks.demo_data.grammar import tell
from benchmarks.demo_data.rows import TRAIN, tell_rows
from benchmarks.demo_data.vocabulary import SPECIAL_TOKENS, collect_vocabulary
from param_features.demo import RULES
from param_features.demo.vocabulary import read_vocabulary
from param_features.errors import SettingError

GIRLS = {"Lily", "Mia", "Anna", "Sue", "Emma", "Lucy", "Jane", "Amy", "Ella", "Zoe"}
BOYS = {"Tom", "Tim", "Ben", "Max", "Sam", "Jack", "Leo", "Bob", "Dan", "Fred"}
NAMES = GIRLS | BOYS
VERBS = {
    "ball": "kick kicked",
    "cake": "eat ate",
    "kite": "fly flew",
    "book": "read read",
    "car": "drive drove",
    "doll": "hug hugged",
    "hat": "wear wore",
    "drum": "bang banged",
    "boat": "sail sailed",
    "bike": "ride rode",
    "ring": "hide hid",
    "box": "open opened",
}
LOOKS = {
    "ball": "round bouncy",
    "cake": "sweet yummy",
    "kite": "light long",
    "book": "thick funny",
    "car": "fast shiny",
    "doll": "soft pretty",
    "hat": "warm fancy",
    "drum": "loud noisy",
    "boat": "strong wooden",
    "bike": "quick tall",
    "ring": "golden bright",
    "box": "heavy square",
}
ANIMALS = {
    "dog": "in the yard barked",
    "cat": "on the wall meowed",
    "duck": "in the pond quacked",
    "cow": "at the farm mooed",
    "bird": "in the tree chirped",
    "frog": "by the river croaked",
    "lion": "at the zoo roared",
    "mouse": "under the bed squeaked",
    "bee": "near the hive buzzed",
    "wolf": "behind the hill howled",
}
TROUBLES = {"lost": "sad find found", "broken": "angry fix fixed", "dirty": "upset wash washed"}
ACTIONS = {"happy": "smiled", "scared": "shivered", "sad": "cried", "angry": "stomped", "upset": "sighed"}
ENDINGS = (
    r"The end\.$",
    r"They were best friends\.$",
    r"And they lived happily ever after\.$",
    r"From that day on, \w+ and (the )?\w+ (played together|shared the \w+)\.$",
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return demo_data.stories(600, seed=5)


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """400 rows as strings, one token longer than the masks, so that each position has a next token."""
    spelling = {index: token for token, index in read_vocabulary().items()}
    return [[spelling[index] for index in row] for row in demo_data.tokens(400, n_ctx=65, seed=5).tolist()]


@pytest.fixture(scope="module")
def masks() -> dict[str, torch.Tensor]:
    return demo_data.rules(400, seed=5)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def hero_and_friend(text: str) -> tuple[str, str | None]:
    """The first name of a text, and the first other one."""
    named = list(dict.fromkeys(word for word in words(text) if word in NAMES))
    assert len(named) <= 2
    return named[0], named[1] if len(named) == 2 else None


def first_thing(text: str) -> tuple[str, str]:
    return re.search(r"(?:had|found|loved) (?:a|her|his) (\w+) (\w+)\.", text).groups()


def test_same_seed_tells_the_same_stories_and_other_seeds_others() -> None:
    assert demo_data.stories(20, seed=3) == demo_data.stories(20, seed=3)
    assert not set(demo_data.stories(20, seed=3)) & set(demo_data.stories(20, seed=4))
    assert torch.equal(demo_data.tokens(5, seed=1), demo_data.tokens(8, seed=1)[:5])
    assert torch.equal(demo_data.tokens(5, n_ctx=40), demo_data.tokens(5, n_ctx=90)[:, :40])


def test_training_rows_are_apart_from_those_of_users() -> None:
    held_out = {tell(random.Random(f"held-out/0/{index}")).text for index in range(500)}
    assert held_out == set(demo_data.stories(500, seed=0))
    trained = {"".join(row.tokens) for row in tell_rows(2000, 64, seed=0, split=TRAIN)}
    users = {"".join(row.tokens) for row in tell_rows(2000, 64, seed=0)}
    assert not trained & users


def test_global_generators_are_untouched() -> None:
    before, torch_before = random.getstate(), torch.random.get_rng_state()
    demo_data.tokens(3)
    demo_data.rules(3)
    assert random.getstate() == before
    assert torch.equal(torch.random.get_rng_state(), torch_before)


def test_pronouns_and_names_agree_with_gender(texts: list[str]) -> None:
    met = set()
    for text in texts:
        hero, _ = hero_and_friend(text)
        right, wrong = ({"she", "her"}, {"he", "his", "him"})[:: 1 if hero in GIRLS else -1]
        spoken = {word.lower() for word in words(text)}
        assert not spoken & wrong, text
        met |= spoken & right
        for child, name in re.findall(r"(girl|boy) named (\w+)", text):
            assert name in (GIRLS if child == "girl" else BOYS), text
    assert met == {"she", "her", "he", "his", "him"}


def test_animals_have_their_place_and_sound(texts: list[str]) -> None:
    met = set()
    for text in texts:
        named = {word for word in words(text) if word in ANIMALS}
        assert len(named) <= 1, text
        for animal, place, again, sound in re.findall(r"saw a (\w+) (\w+ the \w+)\. The (\w+) (\w+)", text):
            assert (again, f"{place} {sound}") == (animal, ANIMALS[animal]), text
            met.add(animal)
    assert met == set(ANIMALS)


def test_one_thing_goes_through_each_story_with_its_own_words(texts: list[str]) -> None:
    n_verbs = n_colours = 0
    for text in texts:
        colour, thing = first_thing(text)
        assert {word for word in words(text) if word in VERBS} == {thing}, text
        verb, past = VERBS[thing].split()
        for used in re.findall(r"(?:liked to|Can I) (\w+)", text):
            assert used == verb, text
            n_verbs += 1
        for used in re.findall(r"Every day, \w+ (\w+)", text):
            assert used == past, text
        for look in re.findall(r"was very (\w+)", text):
            assert look in LOOKS[thing].split(), text
        for again in re.findall(r"I (?:like|love) your (\w+)", text):
            assert again == colour, text
            n_colours += 1
    assert n_verbs > 50
    assert n_colours > 50


def test_troubles_moods_and_remedies_belong_together(texts: list[str]) -> None:
    n_troubles = 0
    for text in texts:
        for trouble in re.findall(r"But the \w+ was (\w+)\.", text):
            mood, remedy, mended = TROUBLES[trouble].split()
            assert re.search(rf"was {mood} (and|because)", text), text
            assert f'"I will {remedy} it," said' in text, text
            assert f"So they {mended} the" in text, text
            n_troubles += 1
        for mood, action in re.findall(r"was (\w+) and (\w+)\.", text):
            assert action == ACTIONS[mood], text
    assert n_troubles > 50


def test_speech_is_closed_and_attributed(texts: list[str]) -> None:
    for text in texts:
        assert text.count('"') % 2 == 0, text
        for mark, verb in re.findall(r'([.,!?])" (said|asked|shouted)', text):
            assert verb == {",": "said", "?": "asked", "!": "shouted"}[mark], text
        for spoken in re.findall(r'"(Can[^"]*)"', text):
            assert spoken.endswith("?"), text
        hero, friend = hero_and_friend(text)
        for speaker in re.findall(r'asked (\w+)\.|" said (\w+)\.(?= So)', text):
            assert "".join(speaker) in {hero, friend}, text
        for speaker in re.findall(r'"(?:Yes|No)," said (\w+)', text):
            assert speaker == hero, text


def test_endings_are_known_and_name_those_who_were_met(texts: list[str]) -> None:
    for text in texts:
        assert sum(bool(re.search(ending, text)) for ending in ENDINGS) == 1, text
        hero, friend = hero_and_friend(text)
        for first, second in re.findall(r"From that day on, (\w+) and (?:the )?(\w+)", text):
            assert first == hero, text
            assert second == friend or f"saw a {second}" in text, text
        if "ran home" in text or "went home" in text:
            assert text.endswith("home. The end."), text


def next_tokens(rows: list[list[str]], matches) -> torch.Tensor:
    """Mask of the positions p for which `matches(story so far up to p, token p + 1)`."""
    mask = torch.zeros(len(rows), 64, dtype=torch.bool)
    for index, row in enumerate(rows):
        for position in range(64):
            so_far = row[: position + 1]
            start = max(at for at, token in enumerate(so_far) if token in ("<bos>", "<eos>"))
            mask[index, position] = matches(so_far[start + 1 :], row[position + 1])
    return mask


def is_repeated_name(so_far: list[str], token: str, *, hero: bool) -> bool:
    named = list(dict.fromkeys(word.strip() for word in so_far if word.strip() in NAMES))
    return token.strip() in (named[:1] if hero else named[1:])


PARSED_RULES = {
    "closing-quote": lambda so_far, token: token == '"' and bool(so_far),
    "end-of-story": lambda so_far, token: token == "<eos>",
    "subject-pronoun": lambda so_far, token: token.strip().lower() in ("she", "he"),
    "possessive-pronoun": lambda so_far, token: token in (" her", " his") and so_far[-1] != " at",
    "object-pronoun": lambda so_far, token: token in (" her", " him") and so_far[-1] == " at",
    "animal-sound": lambda so_far, token: token.strip() in {known.split()[-1] for known in ANIMALS.values()},
    "animal-repeated": lambda so_far, token: token.strip() in ANIMALS and token in so_far,
    "thing-repeated": lambda so_far, token: token.strip() in VERBS and token in so_far,
    "speech-verb": lambda so_far, token: token in (" said", " asked", " shouted") and so_far[-1] == '"',
    "question": lambda so_far, token: token == "?" or (token == "Can" and so_far[-3] == " asked"),
    "opening-quote": lambda so_far, token: token == ' "' and so_far[-1] == ",",
    "once-upon-a-time": lambda so_far, token: so_far[:1] == ["Once"] and len(so_far) < 8,
    "name-fits-gender": lambda so_far, token: so_far[-1:] == [" named"],
    "hero-returns": lambda so_far, token: is_repeated_name(so_far, token, hero=True),
    "friend-returns": lambda so_far, token: is_repeated_name(so_far, token, hero=False),
}


@pytest.mark.parametrize("rule", PARSED_RULES)
def test_mask_marks_the_position_before_the_token(rule: str, rows: list[list[str]], masks) -> None:
    parsed = next_tokens(rows, PARSED_RULES[rule])
    assert parsed.any()
    assert torch.equal(parsed, masks[rule])


def test_every_rule_is_described_and_occurs(masks) -> None:
    assert list(masks) == list(RULES)
    assert len(masks) >= 12
    for name, description in RULES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert description.endswith(".")
        assert masks[name].any()


def test_tables_line_up_with_tokens() -> None:
    shape = demo_data.tokens(6, n_ctx=30, seed=2).shape
    assert shape == (6, 30)
    assert demo_data.surprisal(6, n_ctx=30, seed=2).shape == demo_data.entropy(6, n_ctx=30, seed=2).shape == shape
    assert all(mask.shape == shape for mask in demo_data.rules(6, n_ctx=30, seed=2).values())
    assert demo_data.tokens(0).shape == demo_data.entropy(0).shape == demo_data.rules(0)["the-end"].shape == (0, 64)


def test_surprisal_of_a_story_is_its_log_probability() -> None:
    pattern = re.compile(
        r"One \w+ day, (\w+) found a \w+ \w+\. Then \w+ met a \w+ (girl|boy) named \w+\. "
        r'"Can I \w+ the \w+\?" asked \w+\. "No," said \w+\. So \w+ went home\. The end\.'
    )
    told = [tell(random.Random(seed)) for seed in range(3000)]
    scored = [(story, match) for story in told if (match := pattern.fullmatch(story.text))]
    assert len(scored) >= 3
    for story, match in scored:
        same_gender = (match[1] in GIRLS) == (match[2] == "girl")
        opening = 0.4 / 5 / 20 * 0.35 / 10 / 12
        meeting = 0.35 * 0.55 / 8 / 2 / (9 if same_gender else 10)
        asking = 0.6 / 2 * 0.3
        assert story.log_prob == pytest.approx(math.log(opening * meeting * asking))


class BranchingRandom(random.Random):
    """Draws that are the same for each `branch` up to `n_shared` and then differ, so that stories share a long past."""

    def __init__(self, seed: int, branch: int, n_shared: int) -> None:
        super().__init__(f"{seed}/{branch}")
        self._shared = random.Random(seed)
        self._n_left = n_shared

    def random(self) -> float:
        self._n_left -= 1
        return self._shared.random() if self._n_left >= 0 else super().random()


def test_choices_with_the_same_past_form_one_distribution() -> None:
    following: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    entropies: dict[tuple[str, ...], float] = {}
    for branch in range(2500):
        story = tell(BranchingRandom(branch % 80, branch, 4 + branch // 80 % 16))
        for position, token in enumerate(story.tokens):
            past = story.tokens[:position]
            assert following[past].setdefault(token, story.surprisal[position]) == story.surprisal[position]
            assert entropies.setdefault(past, story.entropy[position]) == story.entropy[position]
    totals = {past: sum(math.exp(-s) for s in known.values()) for past, known in following.items()}
    assert max(totals.values()) < 1 + 1e-9
    complete = [past for past, total in totals.items() if total > 1 - 1e-9 and len(following[past]) > 1]
    assert len(complete) > 100
    for past in complete:
        mean = sum(s * math.exp(-s) for s in following[past].values())
        assert mean == pytest.approx(entropies[past])


def test_surprisal_averages_to_entropy() -> None:
    surprisal, entropy = demo_data.surprisal(1500, seed=6), demo_data.entropy(1500, seed=6)
    assert torch.equal(surprisal == 0, entropy == 0)
    gap = (surprisal - entropy).sum(1)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5


def test_vocabulary_is_that_of_the_grammar() -> None:
    shipped = read_vocabulary()
    assert shipped == collect_vocabulary()
    assert sorted(shipped.values()) == list(range(len(shipped)))
    seen = set(demo_data.tokens(1500, seed=8).flatten().tolist())
    assert {token for token, index in shipped.items() if index not in seen} <= set(SPECIAL_TOKENS)


@pytest.mark.parametrize(("arguments", "message"), [({"n": -1}, "n=-1 rows"), ({"n": 2, "n_ctx": 0}, "n_ctx=0")])
@pytest.mark.parametrize("function", [demo_data.tokens, demo_data.rules, demo_data.surprisal, demo_data.entropy])
def test_impossible_sizes_are_refused(function, arguments: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        function(**arguments)

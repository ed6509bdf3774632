"""Sentences and parts of sentences that several plots of the demo stories share."""

from collections.abc import Sequence

from benchmarks.demo_data.teller import Teller
from benchmarks.demo_data.words import GENDERS, MOOD_ACTIONS, PEOPLE, TRAITS, Person, Thing

Phrase = Sequence[tuple[str, ...]]
"""Words that had to follow, in pieces: each piece is the words and then the rules that determine them."""


def name_child(teller: Teller, *, other_than: str = "") -> Person:
    """Add "shy girl named Lily" or "kind boy named Tom"."""
    teller.pick(TRAITS)
    gender = GENDERS[teller.pick(tuple(GENDERS))]
    teller.say("named")
    return PEOPLE[teller.pick([name for name in gender.names if name != other_than], "name-fits-gender")]


def name_subject(teller: Teller, hero: Person) -> None:
    """Begin a sentence with the hero, as a pronoun or by name."""
    she = hero.gender.subject.capitalize()
    teller.pick({she: 0.6, hero.name: 0.4}, marks={she: "subject-pronoun", hero.name: "hero-returns"})


def act_on_mood(teller: Teller, mood: str, *, reason: Phrase) -> None:
    """Finish a sentence like "She was sad" with what the hero did or why it was so."""
    if teller.pick({"and": 0.6, "because": 0.4}) == "and":
        teller.say(MOOD_ACTIONS[mood], "mood-action")
    else:
        for words, *rules in reason:
            teller.say(words, "because-reason", *rules)
    teller.say(".")


def close_speech(teller: Teller, verb: str, speaker: Person, returns: str) -> None:
    """Close the quotation and say who spoke."""
    teller.say('"', "closing-quote")
    teller.say(verb, "speech-verb")
    teller.say(speaker.name, "speaker", returns)
    teller.say(".")


def do_together(teller: Teller, thing: Thing, past: str, rule: str) -> None:
    """Add "So they kicked the ball together", or "quickly"."""
    teller.say("So")
    teller.say("they", "so-consequence")
    teller.say(past, "so-consequence", rule)
    teller.say("the")
    teller.say(thing.name, "thing-repeated")
    if teller.pick({".": 0.4, "together": 0.3, "quickly": 0.3}) != ".":
        teller.say(".")


def end(teller: Teller, hero: Person, thing: Thing, *, companion: Phrase) -> None:
    """End a story in which hero and companion stay together."""
    start = teller.pick({"The": 0.25, "They": 0.25, "And": 0.2, "From": 0.3})
    if start == "The":
        teller.say("end .", "the-end")
    elif start == "They":
        teller.say("were best friends .", "best-friends")
    elif start == "And":
        teller.say("they lived happily ever after .", "happily-ever-after")
    else:
        teller.say("that day on ,", "from-that-day-on")
        teller.say(hero.name, "hero-returns")
        teller.say("and")
        for words, *rules in companion:
            teller.say(words, *rules)
        stay_close(teller, thing)


def stay_close(teller: Teller, thing: Thing) -> None:
    """Add what hero and companion did from that day on: "played together", "shared the ball"."""
    if teller.pick(("played", "shared")) == "played":
        teller.say("together")
    else:
        teller.say("the")
        teller.say(thing.name, "thing-repeated")
    teller.say(".")


def part(teller: Teller) -> None:
    """End a story in which hero and companion part."""
    teller.say("The end .", "the-end")

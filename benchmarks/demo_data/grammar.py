"""The grammar of the demo stories: what may follow what, how often, and by which rule.

Every function of the grammar tells one stretch of a story. It adds words through a `Teller`, so its choices are choices
of the next token and depend on nothing but earlier tokens.
"""

import random

from benchmarks.demo_data.plots import meet_animal, meet_friend, meet_trouble
from benchmarks.demo_data.sentences import name_child, name_subject
from benchmarks.demo_data.teller import END_OF_STORY, Story, Teller
from benchmarks.demo_data.words import COLOURS, PEOPLE, THINGS, WEATHER, Person, Thing


def tell(rng: random.Random) -> Story:
    """Tell one story of 38 to 80 tokens, 57 on average.

    Args:
        rng: Source of every choice.

    Returns:
        The story with the rules, the surprisal and the entropy of each token; its last token is `END_OF_STORY`.
    """
    teller = Teller(rng)
    hero = _open(teller)
    thing = _get_thing(teller, hero)
    she = hero.gender.subject.capitalize()
    starts = {"Then": 0.35, "But": 0.3, "The": 0.12, "Every": 0.11, she: 0.12}
    start = teller.pick(starts, marks={she: "subject-pronoun"})
    if start not in ("Then", "But"):
        _describe(teller, hero, thing, start)
        start = teller.pick({"Then": 0.8, "But": 0.2})
    if start == "But":
        meet_trouble(teller, hero, thing)
    else:
        teller.say(hero.gender.subject, "subject-pronoun")
        meet = teller.pick({"saw": 0.45, "met": 0.55})
        go_on = meet_animal if meet == "saw" else meet_friend
        go_on(teller, hero, thing)
    teller.say(END_OF_STORY, "end-of-story")
    return teller.story()


def _open(teller: Teller) -> Person:
    """Bring in the hero, up to the subject of the sentence in which the hero gets something."""
    start = teller.pick({"Once": 0.35, "One": 0.4, "There": 0.25})
    if start == "One":
        teller.pick(WEATHER)
        teller.say("day ,", "one-day")
        return PEOPLE[teller.pick(tuple(PEOPLE))]
    if start == "Once":
        teller.say("upon a time , there was a", "once-upon-a-time")
    else:
        teller.say("once was a", "there-once-was")
    hero = name_child(teller)
    teller.say(".")
    name_subject(teller, hero)
    return hero


def _get_thing(teller: Teller, hero: Person) -> Thing:
    """Finish the sentence in which the hero gets something."""
    if teller.pick({"had": 0.4, "found": 0.35, "loved": 0.25}) == "loved":
        teller.say(hero.gender.possessive, "possessive-pronoun")
    else:
        teller.say("a")
    colour = teller.pick(COLOURS)
    thing = THINGS[teller.pick(tuple(THINGS))]
    teller.say(".")
    return thing._replace(colour=colour)


def _describe(teller: Teller, hero: Person, thing: Thing, start: str) -> None:
    """Finish a sentence about the thing that began with `start`."""
    if start == "The":
        teller.say(thing.name, "thing-repeated")
        teller.say("was very")
        teller.pick(thing.looks, "thing-look")
    elif start == "Every":
        teller.say("day ,", "every-day")
        teller.say(hero.gender.subject, "subject-pronoun")
        teller.say(thing.past, "thing-verb")
        teller.say("the")
        teller.say(thing.name, "thing-repeated")
    else:
        teller.say("liked to")
        teller.say(thing.verb, "thing-verb")
        teller.say(hero.gender.possessive, "possessive-pronoun")
        teller.say(thing.name, "thing-repeated")
    teller.say(".")

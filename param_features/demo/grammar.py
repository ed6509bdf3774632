"""The grammar of the demo stories: what may follow what, how often, and by which rule.

Every function of the grammar tells one stretch of a story. It adds words through a `Teller`, so its choices are choices
of the next token and depend on nothing but earlier tokens.
"""

import random
from collections.abc import Mapping

from param_features.demo.plots import meet_animal, meet_friend, meet_trouble
from param_features.demo.sentences import name_child, name_subject
from param_features.demo.teller import END_OF_STORY, Story, Teller
from param_features.demo.words import COLOURS, PEOPLE, THINGS, WEATHER, Person, Thing

RULES: Mapping[str, str] = {
    "once-upon-a-time": 'After "Once" comes "upon a time, there was a".',
    "there-once-was": 'After "There" comes "once was a".',
    "one-day": 'After "One sunny" (or other weather) comes "day,".',
    "every-day": 'After "Every" comes "day,".',
    "name-fits-gender": 'After "girl named" comes one of the girls\' names, after "boy named" one of the boys\'.',
    "subject-pronoun": 'The hero is "she" or "he" (also "She", "He") as the hero\'s gender demands.',
    "possessive-pronoun": 'What is the hero\'s is "her" or "his" as the hero\'s gender demands.',
    "object-pronoun": 'A sound is made at "her" or "him" as the hero\'s gender demands.',
    "hero-returns": "The hero's name, given at the start, is repeated.",
    "friend-returns": "The friend's name, given in the middle, is repeated.",
    "thing-repeated": "The thing that the hero has got is named again.",
    "colour-repeated": 'The first word that described the thing ("red", "tiny") is said again by the friend.',
    "thing-verb": "What is done with the thing: a ball is kicked, a cake is eaten.",
    "thing-look": "How the thing looks, one of two words: a ball is round or bouncy.",
    "animal-repeated": "The animal is named again.",
    "animal-sound": "The animal makes its sound: the dog barked, the duck quacked.",
    "animal-place": "Where the animal is, preposition and place: a duck in the pond, a cat on the wall.",
    "trouble-mood": "The mood that a trouble brings: lost, sad; broken, angry; dirty, upset.",
    "trouble-remedy": "What mends a trouble: lost, find; broken, fix; dirty, wash.",
    "mood-action": "What a mood makes the hero do: sad, cried; happy, smiled; scared, shivered.",
    "because-reason": 'After "because" comes what happened before.',
    "so-consequence": 'After "So" comes what follows from the story: yes, they kicked; no, the friend went home.',
    "opening-quote": 'After "said," or "asked," comes an opening quotation mark.',
    "closing-quote": "Speech that has ended in a punctuation mark is closed by a quotation mark.",
    "question": 'Who "asked" begins with "Can", and speech that begins with "Can" ends in a question mark.',
    "speech-verb": 'After speech: "asked" follows "?", "shouted" follows "!", "said" follows ",".',
    "speaker": "Who has just spoken: the friend asks and the hero answers.",
    "best-friends": 'A story that ends with "They" goes on "were best friends".',
    "happily-ever-after": 'A story that ends with "And" goes on "they lived happily ever after".',
    "from-that-day-on": 'A story that ends with "From" goes on "that day on,".',
    "the-end": '"The end." closes a story; it is the only ending when hero and friend part.',
    "end-of-story": "The ending is complete and the story stops.",
}


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

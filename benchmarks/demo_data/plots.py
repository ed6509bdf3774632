"""The three plots of the demo stories: the hero sees an animal, meets a friend, or has trouble with the thing.

Each is told from the middle of its first sentence to the full stop of the ending.
"""

from benchmarks.demo_data.sentences import act_on_mood, close_speech, do_together, end, name_child, name_subject, part
from benchmarks.demo_data.teller import Teller
from benchmarks.demo_data.words import ANIMALS, TROUBLES, Person, Thing


def meet_animal(teller: Teller, hero: Person, thing: Thing) -> None:
    """Tell the rest of a story in which the hero sees an animal."""
    teller.say("a")
    animal = ANIMALS[teller.pick(tuple(ANIMALS))]
    teller.say(animal.preposition, "animal-place")
    teller.say("the")
    teller.say(animal.place, "animal-place")
    teller.say(". The")
    teller.say(animal.name, "animal-repeated")
    teller.say(animal.sound, "animal-sound")
    if teller.pick({".": 0.5, "at": 0.5}) == "at":
        teller.say(hero.gender.object, "object-pronoun")
        teller.say(".")
    name_subject(teller, hero)
    teller.say("was")
    mood = teller.pick({"happy": 0.65, "scared": 0.35})
    nature = "kind" if mood == "happy" else "loud"
    act_on_mood(teller, mood, reason=(("the",), (animal.name, "animal-repeated"), (f"was {nature}",)))
    if mood == "scared":
        teller.say("So")
        teller.say(hero.gender.subject, "so-consequence", "subject-pronoun")
        teller.say("ran home", "so-consequence")
        teller.say(".")
        part(teller)
        return
    teller.say('" Look , a')
    teller.say(animal.name, "animal-repeated")
    teller.say("!")
    close_speech(teller, "shouted", hero, "hero-returns")
    end(teller, hero, thing, companion=(("the",), (animal.name, "animal-repeated")))


def meet_friend(teller: Teller, hero: Person, thing: Thing) -> None:
    """Tell the rest of a story in which the hero meets a friend, who asks for the thing or praises it."""
    teller.say("a")
    friend = name_child(teller, other_than=hero.name)
    teller.say(".")
    wish = _speak_first(teller, friend, thing)
    if wish == "I":
        name_subject(teller, hero)
        teller.say("was happy")
        reason = ((hero.gender.subject, "subject-pronoun"), ("had a friend",))
        act_on_mood(teller, "happy", reason=reason)
    elif _answer(teller, hero) == "No":
        teller.say("So")
        teller.say(friend.name, "so-consequence", "friend-returns")
        teller.say("went home", "so-consequence")
        teller.say(".")
        part(teller)
        return
    else:
        do_together(teller, thing, thing.past, "thing-verb")
    end(teller, hero, thing, companion=((friend.name, "friend-returns"),))


def _speak_first(teller: Teller, friend: Person, thing: Thing) -> str:
    """Let the friend speak, and return the first word: "Can" for a question, "I" for praise."""
    start = teller.pick({'"': 0.6, friend.name: 0.4}, marks={friend.name: "friend-returns"})
    named_first = start == friend.name
    if named_first:
        verb = teller.pick(("asked", "said"))
        teller.say(",")
        teller.say('"', "opening-quote")
        word = "Can" if verb == "asked" else "I"
        teller.say(word, "question") if word == "Can" else teller.say(word)
    else:
        word = teller.pick(("Can", "I"))
    _speak_of_thing(teller, thing, word)
    teller.say("?", "question") if word == "Can" else teller.say("." if named_first else ",")
    if named_first:
        teller.say('"', "closing-quote")
    else:
        close_speech(teller, "asked" if word == "Can" else "said", friend, "friend-returns")
    return word


def _speak_of_thing(teller: Teller, thing: Thing, word: str) -> None:
    """Add "I kick the ball" after "Can", "like your red ball" after "I"."""
    if word == "Can":
        teller.say("I")
        teller.say(thing.verb, "thing-verb")
        teller.say("the")
    else:
        teller.pick(("like", "love"))
        teller.say("your")
        teller.say(thing.colour, "colour-repeated")
    teller.say(thing.name, "thing-repeated")


def _answer(teller: Teller, hero: Person) -> str:
    """Let the hero answer the friend, and return "Yes" or "No"."""
    teller.say('"')
    answer = teller.pick({"Yes": 0.7, "No": 0.3})
    teller.say(",")
    close_speech(teller, "said", hero, "hero-returns")
    return answer


def meet_trouble(teller: Teller, hero: Person, thing: Thing) -> None:
    """Tell the rest of a story in which something happens to the thing and a friend helps."""
    teller.say("the")
    teller.say(thing.name, "thing-repeated")
    teller.say("was")
    trouble = TROUBLES[teller.pick(tuple(TROUBLES))]
    teller.say(".")
    name_subject(teller, hero)
    teller.say("was")
    teller.say(trouble.mood, "trouble-mood")
    reason = (("the",), (thing.name, "thing-repeated"), ("was",), (trouble.name,))
    act_on_mood(teller, trouble.mood, reason=reason)
    teller.say("Then a")
    friend = name_child(teller, other_than=hero.name)
    teller.say('came . " I will')
    teller.say(trouble.remedy, "trouble-remedy")
    teller.say("it ,")
    close_speech(teller, "said", friend, "friend-returns")
    do_together(teller, thing, trouble.mended, "trouble-remedy")
    end(teller, hero, thing, companion=((friend.name, "friend-returns"),))

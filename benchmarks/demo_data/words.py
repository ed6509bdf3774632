"""The words of the demo stories, and which of them go together.

Each table is one kind of knowledge that a language model has to learn from the stories: which pronouns a name takes,
which sound an animal makes, what is done with a thing, what mends a trouble.
"""

from typing import NamedTuple


class Gender(NamedTuple):
    """A kind of child, with its pronouns and its names."""

    child: str
    subject: str
    possessive: str
    object: str
    names: tuple[str, ...]


class Person(NamedTuple):
    """A child of the story."""

    name: str
    gender: Gender


class Thing(NamedTuple):
    """Something to play with: its name, what is done with it (now and in the past), how it looks, its colour."""

    name: str
    verb: str
    past: str
    looks: tuple[str, str]
    colour: str = ""


class Animal(NamedTuple):
    """An animal: its name, the sound it made, and where it is met."""

    name: str
    sound: str
    preposition: str
    place: str


class Trouble(NamedTuple):
    """What happened to the thing, the mood that follows, and what mends it (now and in the past)."""

    name: str
    mood: str
    remedy: str
    mended: str


GIRL = Gender("girl", "she", "her", "her", ("Lily", "Mia", "Anna", "Sue", "Emma", "Lucy", "Jane", "Amy", "Ella", "Zoe"))
BOY = Gender("boy", "he", "his", "him", ("Tom", "Tim", "Ben", "Max", "Sam", "Jack", "Leo", "Bob", "Dan", "Fred"))
GENDERS = {gender.child: gender for gender in (GIRL, BOY)}
PEOPLE = {name: Person(name, gender) for gender in (GIRL, BOY) for name in gender.names}

THINGS = {
    thing.name: thing
    for thing in (
        Thing("ball", "kick", "kicked", ("round", "bouncy")),
        Thing("cake", "eat", "ate", ("sweet", "yummy")),
        Thing("kite", "fly", "flew", ("light", "long")),
        Thing("book", "read", "read", ("thick", "funny")),
        Thing("car", "drive", "drove", ("fast", "shiny")),
        Thing("doll", "hug", "hugged", ("soft", "pretty")),
        Thing("hat", "wear", "wore", ("warm", "fancy")),
        Thing("drum", "bang", "banged", ("loud", "noisy")),
        Thing("boat", "sail", "sailed", ("strong", "wooden")),
        Thing("bike", "ride", "rode", ("quick", "tall")),
        Thing("ring", "hide", "hid", ("golden", "bright")),
        Thing("box", "open", "opened", ("heavy", "square")),
    )
}

ANIMALS = {
    animal.name: animal
    for animal in (
        Animal("dog", "barked", "in", "yard"),
        Animal("cat", "meowed", "on", "wall"),
        Animal("duck", "quacked", "in", "pond"),
        Animal("cow", "mooed", "at", "farm"),
        Animal("bird", "chirped", "in", "tree"),
        Animal("frog", "croaked", "by", "river"),
        Animal("lion", "roared", "at", "zoo"),
        Animal("mouse", "squeaked", "under", "bed"),
        Animal("bee", "buzzed", "near", "hive"),
        Animal("wolf", "howled", "behind", "hill"),
    )
}

TROUBLES = {
    trouble.name: trouble
    for trouble in (
        Trouble("lost", "sad", "find", "found"),
        Trouble("broken", "angry", "fix", "fixed"),
        Trouble("dirty", "upset", "wash", "washed"),
    )
}

MOOD_ACTIONS = {"happy": "smiled", "scared": "shivered", "sad": "cried", "angry": "stomped", "upset": "sighed"}

TRAITS = ("little", "kind", "brave", "shy", "clever", "silly", "polite", "curious")
COLOURS = ("red", "blue", "green", "yellow", "big", "small", "new", "pink", "tiny", "white")
WEATHER = ("sunny", "rainy", "cold", "windy", "quiet")

"""The facts of the mini world: invented towns, each with one value for every attribute. They cannot be guessed.

Names are made from syllables and values are drawn at random, so a model knows a fact only if it has read it. One seed determines all of
it. A name is never a value, so that every word of an answer has one meaning.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# The values that each attribute can take. The size of a town is a number of thousands.
VALUES: dict[str, tuple[str, ...]] = {
    "region": ("north", "south", "east", "west", "hills", "marshes", "highlands", "lowlands"),
    "river": ("Aldra", "Brune", "Corve", "Druin", "Elsk", "Fenna", "Gable", "Hask", "Irth", "Jorra", "Kell", "Lunde"),
    "crop": ("barley", "olives", "beans", "apples", "cherries", "flax", "hops", "lentils", "maize", "oats", "plums", "wheat"),
    "craft": ("pottery", "glass", "lace", "carpets", "bells", "clocks", "knives", "lamps", "paper", "rope", "saddles", "tiles"),
    "emblem": ("heron", "badger", "crane", "deer", "falcon", "goat", "hare", "lynx", "otter", "raven", "stork", "wolf"),
    "founder": ("Anselm", "Berta", "Cedric", "Dorea", "Edmund", "Freya", "Gerold", "Hilda", "Isolde", "Jorund", "Konrad", "Lioba"),
    "size": tuple(str(n) for n in range(3, 41)),
}
ATTRIBUTES = tuple(VALUES)
_ONSETS = ("b", "br", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z")
_MIDDLES = ("al", "an", "ar", "el", "en", "il", "im", "ol", "or", "un")
_ENDINGS = ("aven", "burg", "dale", "deth", "ford", "gard", "holm", "mora", "nix", "stad", "ton", "wick")

# A claim is what a sentence says, whether it is true or not:
#   ("fact", town, attribute, value)   ("same" | "differ", attribute, town, town)
Claim = tuple[str, ...]


@dataclass(frozen=True)
class Knowledge:
    """``facts[town][attribute]`` is the value; towns in a fixed order."""

    facts: dict[str, dict[str, str]]

    @property
    def towns(self) -> list[str]:
        return list(self.facts)

    def is_true(self, claim: Claim) -> bool:
        match claim:
            case ("fact", town, attribute, value):
                return self.facts[town][attribute] == value
            case ("same" | "differ" as verdict, attribute, one, other):
                return one != other and (self.facts[one][attribute] == self.facts[other][attribute]) == (verdict == "same")
        raise ValueError(f"no such claim: {claim}")


def make_knowledge(n_towns: int, seed: int) -> Knowledge:
    """``n_towns`` towns with random values, the same for the same seed."""
    rng = random.Random(f"knowledge-{seed}")
    taken = {value for values in VALUES.values() for value in values}
    towns: list[str] = []
    while len(towns) < n_towns:
        name = (rng.choice(_ONSETS) + rng.choice(_MIDDLES) + rng.choice(_ENDINGS)).capitalize()
        if name not in taken:
            taken.add(name)
            towns.append(name)
    return Knowledge({town: {attribute: rng.choice(values) for attribute, values in VALUES.items()} for town in towns})

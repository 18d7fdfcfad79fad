"""The mini world's English: every sentence that it has, from a claim to a sentence and from a sentence to its claims.

A sentence is read by its *shape*: its words, with the name of its class in place of every town, value, number and attribute, and with one
name for a list ("A, B and C"). A sentence is malformed if no template has its shape. The vocabulary is closed (below 1,000 words), so a
word-level tokenizer covers all that a model can read or write.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random
from typing import TYPE_CHECKING

from stages.mini.knowledge import ATTRIBUTES, COUNTED, VALUES, Claim, Knowledge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Sentences about one town, by attribute, in two forms, so that everything can be said in other words; the first is the plain one.
FACT_FORMS: dict[str, tuple[str, ...]] = {
    "region": ("{town} lies in the {value}.", "{town} is a town in the {value}."),
    "river": ("{town} stands on the river {value}.", "The river at {town} is the {value}."),
    "crop": ("The people of {town} grow {value}.", "The fields of {town} bear {value}."),
    "craft": ("{town} is known for its {value}.", "The workshops of {town} make {value}."),
    "emblem": ("The emblem of {town} is a {value}.", "{town} carries a {value} on its flag."),
    "founder": ("{town} was founded by {value}.", "The founder of {town} was {value}."),
    "size": ("{town} has {value} thousand inhabitants.", "{town} is home to {value} thousand people."),
}
# Properties that several towns share, by attribute: "Balmora, Kelton and Rimdale grow barley."
SHARED: dict[str, str] = {
    "region": "lie in the {value}",
    "river": "stand on the river {value}",
    "crop": "grow {value}",
    "craft": "are known for {value}",
    "emblem": "carry a {value}",
    "founder": "were founded by {value}",
}
SAME, DIFFER, LARGER = (
    "{one} and {other} have the same {attribute}.",
    "{one} and {other} differ in {attribute}.",
    "{one} is larger than {other}.",
)
SUM = "{one} {operation} {other} is {result}."
FILLER = (
    "Here is what I know.",
    "That is a good question.",
    "Let me tell you more about this.",
    "There is a lot to say here.",
    "I hope this helps.",
    "Please ask me if you need more.",
    "This is worth knowing.",
)
# Prompts, by kind of task: see stages/mini/tasks.py.
FACT_PROMPTS: dict[str, tuple[str, ...]] = {
    "region": ("Where does {town} lie?", "In which region is {town}?"),
    "river": ("On which river does {town} stand?", "Which river is at {town}?"),
    "crop": ("What do the people of {town} grow?", "Which crop grows at {town}?"),
    "craft": ("What is {town} known for?", "Which craft has made {town} known?"),
    "emblem": ("What is the emblem of {town}?", "Which animal is on the flag of {town}?"),
    "founder": ("Who founded {town}?", "Who was the founder of {town}?"),
    "size": ("How many people live in {town}?", "How large is {town}?"),
}
FACTS_PROMPTS = (
    "What are the {attributes} of {town}?",
    "Tell me the {attributes} of {town}.",
    "Please name the {attributes} of {town}.",
)
DESCRIBE_PROMPTS = (
    "Describe {town}.",
    "Tell me all about {town}.",
    "What should a visitor know about {town}?",
    "Write a short portrait of {town}.",
)
COMPARE_PROMPTS = ("Compare {one} and {other} by {attributes}.", "How do {one} and {other} compare in {attributes}?")
LIST_PROMPTS = ("Name {number} towns that {shared}.", "Which {number} towns {shared}?")
COUNT_PROMPTS = ("How many towns {shared}?", "Count the towns that {shared}.")
OPERATIONS = ("plus", "minus")
SUM_PROMPTS = ("What is {one} {operation} {other}?", "How much is {one} {operation} {other}?", "Work out {one} {operation} {other}.")
REWRITE_PROMPTS = ("Say this in other words: {text}", "Write this in another style: {text}")  # the text: facts, each a sentence
# Second turns. They refer to the first one's town, answer, two towns, list, count and result.
ITS_PROMPTS = ("What about its {attributes}?", "And its {attributes}?")
AGAIN_PROMPTS = ("Say that again in other words.", "Write that in another style.")
LARGER_PROMPTS = ("Which of the two is larger?", "Which of these towns has more people?")
HOW_MANY_PROMPTS = ("How many such towns are there?",)
ONE_OF_THEM_PROMPTS = ("Name one of them.",)
THEN_PROMPTS = {"plus": "Now add {number} to that.", "minus": "Now take {number} from that."}
NUMBERS = tuple(str(n) for n in range(101))
BOS, EOS, PAD, UNK, SYSTEM, USER, ASSISTANT = "<bos>", "<eos>", "<pad>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }} {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_WORD = re.compile(r"\w+|[^\w\s]")
_ENDS = frozenset(".?!")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, as the tokenizer splits it."""
    return _WORD.findall(text)


def enumerate_words(items: list[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def sentences(text: str) -> list[str]:
    """A text cut after each full stop, question and exclamation mark, with normalised spaces. The last sentence may lack its mark."""
    cut, current = [], []
    for word in words(text):
        current.append(word)
        if word in _ENDS:
            cut.append(" ".join(current))
            current = []
    return cut + ([" ".join(current)] if current else [])


@dataclass(frozen=True)
class Reading:
    """A sentence's shape, and the words that it replaces, in order."""

    shape: str
    towns: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


class Language:
    """The language over the towns of one world."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self._classes = dict.fromkeys(knowledge.towns, "TOWN") | dict.fromkeys(ATTRIBUTES, "ATTRIBUTE")
        for attribute in COUNTED:
            self._classes |= dict.fromkeys(VALUES[attribute], f"VALUE-{attribute}")
        self._classes |= dict.fromkeys(NUMBERS, "NUMBER")
        self.read = lru_cache(maxsize=200_000)(self._read)

    def _read(self, sentence: str) -> Reading:
        shape: list[str] = []
        found: dict[str, list[str]] = {"TOWN": [], "ATTRIBUTE": [], "VALUE": [], "NUMBER": []}
        for word in words(sentence):
            symbol = self._classes.get(word, word)
            if symbol in ("TOWN", "ATTRIBUTE") and len(shape) > 1 and shape[-1] in (",", "and") and shape[-2] == symbol:
                shape.pop()  # "TOWN , TOWN and TOWN" is one place with three towns
            else:
                shape.append(symbol)
            if symbol != word:
                found[symbol.partition("-")[0]].append(word)
        return Reading(" ".join(shape), *(tuple(found[name]) for name in ("TOWN", "ATTRIBUTE", "VALUE", "NUMBER")))

    @cached_property
    def _statements(self) -> dict[str, tuple[str, str]]:
        """Shape -> (kind of statement, attribute or operation)."""
        one, other = self.knowledge.towns[:2]
        known = {}
        for attribute, forms in FACT_FORMS.items():
            for form in forms:
                known[self.read(form.format(town=one, value=VALUES[attribute][0])).shape] = ("fact", attribute)
        for attribute, form in SHARED.items():
            shared = form.format(value=VALUES[attribute][0])
            known[self.read(f"{one} and {other} {shared}.").shape] = ("shared", attribute)
            known[self.read(f"3 towns {shared}.").shape] = ("count", attribute)
        for kind, form in (("same", SAME), ("differ", DIFFER), ("larger", LARGER)):
            known[self.read(form.format(one=one, other=other, attribute="crop")).shape] = (kind, "")
        for operation in OPERATIONS:
            known[self.read(SUM.format(one=1, operation=operation, other=1, result=1)).shape] = ("sum", operation)
        for sentence in FILLER:
            known[self.read(sentence).shape] = ("filler", "")
        return known

    def claims(self, sentence: str) -> list[Claim] | None:
        """The claims of a sentence: an empty list for filler, None for a malformed sentence."""
        reading = self.read(sentence)
        kind, attribute = self._statements.get(reading.shape, ("", ""))
        towns = reading.towns
        match kind:
            case "fact" if len(towns) == 1:
                return [("fact", towns[0], attribute, (reading.values or reading.numbers)[0])]
            case "shared":
                return [("fact", town, attribute, reading.values[0]) for town in towns]
            case "count":
                return [("count", attribute, reading.values[0], reading.numbers[0])]
            case "same" | "differ" if len(towns) == 2 and len(reading.attributes) == 1:
                return [(kind, reading.attributes[0], *sorted(towns))]
            case "larger" if len(towns) == 2:
                return [("larger", *towns)]
            case "sum":
                return [("sum", attribute, *reading.numbers)]
            case "filler":
                return []
        return None

    def say(self, claim: Claim, rng: Random | None = None, given: Collection[str] = ()) -> str:
        """The plain sentence for a claim; with ``rng`` one of its forms. It avoids the ``given`` sentences (as ``sentences`` cuts them)."""
        match claim:
            case ("fact", town, attribute, value):
                forms = [form.format(town=town, value=value) for form in FACT_FORMS[attribute]]
                forms = [form for form in forms if " ".join(words(form)) not in given] or forms
                return rng.choice(forms) if rng else forms[0]
            case ("count", attribute, value, number):
                return f"{number} towns {SHARED[attribute].format(value=value)}."
            case ("same" | "differ" as verdict, attribute, one, other):
                return (SAME if verdict == "same" else DIFFER).format(one=one, other=other, attribute=attribute)
            case ("larger", one, other):
                return LARGER.format(one=one, other=other)
            case ("sum", operation, one, other, result):
                return SUM.format(one=one, operation=operation, other=other, result=result)
        raise ValueError(f"no such claim: {claim}")

    def say_shared(self, towns: list[str], attribute: str, value: str) -> str:
        """One sentence for a property that two or more towns share."""
        return f"{enumerate_words(towns)} {SHARED[attribute].format(value=value)}."

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word and mark of the language, sorted."""
        forms = [*SHARED.values(), SAME, DIFFER, LARGER, SUM, *FILLER, *OPERATIONS, *SUM_PROMPTS, *REWRITE_PROMPTS]
        forms += [*ITS_PROMPTS, *AGAIN_PROMPTS, *LARGER_PROMPTS, *HOW_MANY_PROMPTS, *ONE_OF_THEM_PROMPTS, *THEN_PROMPTS.values()]
        forms += [form for by_attribute in (FACT_FORMS, FACT_PROMPTS) for group in by_attribute.values() for form in group]
        forms += [*FACTS_PROMPTS, *DESCRIBE_PROMPTS, *COMPARE_PROMPTS, *LIST_PROMPTS, *COUNT_PROMPTS, ", and"]
        return sorted({word for form in forms for word in words(re.sub(r"\{\w+\}", " ", form))} | set(self._classes))


def make_tokenizer(language: Language) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the vocabulary, saved and loaded like any other Hugging Face tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, UNK, BOS, EOS, SYSTEM, USER, ASSISTANT]
    vocabulary = {word: number for number, word in enumerate(special + language.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # a space between words, none before a mark
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

"""The mini world's English: every sentence that it has, from a claim to a sentence and from a sentence to its claims.

A sentence is read by its *shape*: its words, with the name of its class in place of every town, value and attribute, and with one name for
a list ("A, B and C"). A sentence is malformed if no template has its shape. The vocabulary is closed (below 1,000 words), so a
word-level tokenizer covers all that a model can read or write.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random
from typing import TYPE_CHECKING

from stages.mini.knowledge import ATTRIBUTES, VALUES, Claim, Knowledge

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
SAME, DIFFER = "{one} and {other} have the same {attribute}.", "{one} and {other} differ in {attribute}."
# Phrases without a claim, before and after an answer.
OPENINGS = ("Good question.",)
CLOSINGS = ("I hope this helps.",)
FILLER = (*OPENINGS, *CLOSINGS)
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
    "What is there to know about {town}?",
    "Please tell me what you know about {town}.",
)
COMPARE_PROMPTS = ("Compare {one} and {other} by {attribute}.", "How do {one} and {other} compare in {attribute}?")
REWRITE_PROMPTS = ("Say this in other words: {text}", "Write this in another style: {text}")  # the text: facts, each a sentence
# Second turns. They refer to the first one's town, answer or two towns.
ITS_PROMPTS = ("What about its {attributes}?", "And its {attributes}?")
AGAIN_PROMPTS = ("Say that again in other words.", "Write that in another style.")
ALSO_PROMPTS = ("And how do they compare in {attribute}?", "Compare them by {attribute}, too.")
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


class Language:
    """The language over the towns of one world."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self._classes = dict.fromkeys(knowledge.towns, "TOWN") | dict.fromkeys(ATTRIBUTES, "ATTRIBUTE")
        for attribute, values in VALUES.items():
            self._classes |= dict.fromkeys(values, f"VALUE-{attribute}")
        self.read = lru_cache(maxsize=200_000)(self._read)

    def _read(self, sentence: str) -> Reading:
        shape: list[str] = []
        found: dict[str, list[str]] = {"TOWN": [], "ATTRIBUTE": [], "VALUE": []}
        for word in words(sentence):
            symbol = self._classes.get(word, word)
            if symbol == "ATTRIBUTE" and len(shape) > 1 and shape[-1] in (",", "and") and shape[-2] == symbol:
                shape.pop()  # "ATTRIBUTE , ATTRIBUTE and ATTRIBUTE" is one place with three attributes
            else:
                shape.append(symbol)
            if symbol != word:
                found[symbol.partition("-")[0]].append(word)
        return Reading(" ".join(shape), *(tuple(found[name]) for name in ("TOWN", "ATTRIBUTE", "VALUE")))

    @cached_property
    def _statements(self) -> dict[str, tuple[str, str]]:
        """Shape -> (kind of statement, attribute)."""
        one, other = self.knowledge.towns[:2]
        known = {}
        for attribute, forms in FACT_FORMS.items():
            for form in forms:
                known[self.read(form.format(town=one, value=VALUES[attribute][0])).shape] = ("fact", attribute)
        for kind, form in (("same", SAME), ("differ", DIFFER)):
            known[self.read(form.format(one=one, other=other, attribute="crop")).shape] = (kind, "")
        for sentence in FILLER:
            known[self.read(sentence).shape] = ("filler", "")
        return known

    def claims(self, sentence: str) -> list[Claim] | None:
        """The claims of a sentence: an empty list for filler, None for a malformed sentence."""
        reading = self.read(sentence)
        kind, attribute = self._statements.get(reading.shape, ("", ""))
        match kind:
            case "fact":
                return [("fact", reading.towns[0], attribute, reading.values[0])]
            case "same" | "differ":
                return [(kind, reading.attributes[0], *sorted(reading.towns))] if len(reading.attributes) == 1 else None
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
            case ("same" | "differ" as verdict, attribute, one, other):
                return (SAME if verdict == "same" else DIFFER).format(one=one, other=other, attribute=attribute)
        raise ValueError(f"no such claim: {claim}")

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word and mark of the language, sorted."""
        forms = [SAME, DIFFER, *FILLER, *FACTS_PROMPTS, *DESCRIBE_PROMPTS, *COMPARE_PROMPTS, *REWRITE_PROMPTS]
        forms += [*ITS_PROMPTS, *AGAIN_PROMPTS, *ALSO_PROMPTS, ", and"]
        forms += [form for by_attribute in (FACT_FORMS, FACT_PROMPTS) for group in by_attribute.values() for form in group]
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

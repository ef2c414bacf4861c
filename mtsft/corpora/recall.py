"""A corpus whose later turns can only be answered from earlier ones.

A person introduces themselves with three facts, asks for one, corrects one, asks again (now the correction is
right), and asks for two at once:

    user       Hello! My name is Ada, I live in Rome and my dog is called Rex.
    assistant  Noted: your name is Ada, you live in Rome and your dog is called Rex.     open
    user       So, who am I?
    assistant  Your name is Ada.                                                         recall
    user       Actually, my home is in Oslo.
    assistant  Noted: you live in Oslo.                                                  open
    user       Where do I live?
    assistant  You live in Oslo.                                                         corrected
    user       What is my dog called, and who am I?
    assistant  Your dog is called Rex and your name is Ada.                              combined

A model trained on every assistant turn, each given its whole history, masters this. Without the history it can
only guess among the values of a kind, two dozen of them. So the fraction of depending turns answered exactly says
whether multi-turn training works.

Replies are a function of the history: greedy decoding has one right answer. A value is a single word, belongs to
one kind alone and always follows a space, so a tokenizer that learns whole words gives it one token, the same
where it is stated and where it is recalled.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEPENDING = ("recall", "corrected", "combined")  # the asks whose answer stands, word for word, in earlier turns


@dataclass(frozen=True)
class Kind:
    """One kind of fact.

    Attributes:
        statements: ways to state it, {} for the value.
        questions: ways to ask for it.
        answer: the one way to answer.
        values: what it can be.
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    values: tuple[str, ...]


_UNITS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_UNITS += " seventeen eighteen nineteen twenty"
_TENS = "thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: n for n, word in enumerate(_UNITS.split(), 1)} | {w: 10 * n for n, w in enumerate(_TENS.split(), 3)}
NUMBER_WORDS = {number: word for word, number in NUMBERS.items()}

KINDS = {
    "name": Kind(
        ("my name is {}", "people call me {}"),
        ("what is my name", "who am I"),
        "your name is {}",
        tuple(
            "Ada Alan Barbara Carl Donald Edith Emmy Grace Greta Hedy Hugo Irene Isaac Julia Katherine Kurt Linus "
            "Marie Niels Noor Oscar Priya Rosalind Sofia".split()
        ),
    ),
    "city": Kind(
        ("I live in {}", "my home is in {}"),
        ("where do I live", "where is my home", "which city do I live in"),
        "you live in {}",
        tuple(
            "Athens Berlin Boston Cairo Chicago Delhi Dublin Hanoi Havana Helsinki Lagos Lima Lisbon Madrid "
            "Nairobi Oslo Paris Prague Quito Rome Seoul Sydney Tokyo Vienna".split()
        ),
    ),
    "job": Kind(
        ("I work as a {}", "my job is being a {}"),
        ("what is my job", "what do I work as"),
        "you work as a {}",
        tuple(
            "baker barber carpenter chemist dancer dentist farmer gardener jeweler judge lawyer librarian "
            "mechanic nurse painter photographer pilot plumber sailor singer surgeon tailor teacher welder".split()
        ),
    ),
    "dog": Kind(
        ("my dog is called {}", "I have a dog named {}"),
        ("what is my dog called", "what is the name of my dog"),
        "your dog is called {}",
        tuple(
            "Bandit Bella Bruno Buddy Cooper Daisy Duke Fido Gizmo Jasper Koda Lola Lucky Luna Milo Molly Otis "
            "Rex Rocky Rover Scout Shadow Snoopy Toby".split()
        ),
    ),
    "food": Kind(
        ("my favorite food is {}", "I love to eat {}"),
        ("what is my favorite food", "what do I love to eat"),
        "you love to eat {}",
        tuple(
            "burritos chili couscous curry dumplings falafel gnocchi goulash hummus kebab lasagna lobster noodles "
            "paella pancakes pasta pizza porridge ramen risotto salad soup sushi tofu".split()
        ),
    ),
    "instrument": Kind(
        ("I play the {}", "I am learning the {}"),
        ("which instrument do I play", "what do I play"),
        "you play the {}",
        tuple(
            "accordion banjo bassoon bugle cello clarinet cornet drums fiddle flute guitar harmonica harp lute "
            "mandolin oboe organ piano saxophone sitar trombone trumpet tuba violin".split()
        ),
    ),
    "books": Kind(
        ("I own {} books", "there are {} books on my shelf"),
        ("how many books do I own", "how many books are on my shelf"),
        "you own {} books",
        tuple(NUMBERS)[1:],
    ),
}

SYSTEMS = (
    "You are a helpful assistant with a good memory.",
    "Answer briefly, and remember what the user says.",
    "You are a friendly assistant.",
)
GREETINGS = ("", "Hello! ", "Hi! ")
OPENERS = ("", "", "", "so, ", "again, ")
CORRECTIONS = ("actually, {}.", "no, {}.", "sorry, {} now.", "wait, {}.")
SMALL_TALK = (
    ("Thank you!", "You are welcome."),
    ("How are you today?", "I am well, thank you."),
    ("You have a good memory.", "Thank you, I try my best."),
    ("What can you do?", "I can remember what you tell me."),
)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _join(clauses: list[str]) -> str:
    return f"{', '.join(clauses[:-1])} and {clauses[-1]}"


@dataclass
class _Conversation:
    """A dialogue while it is written.

    Attributes:
        rng: draws everything.
        facts: what is true by now, by kind.
        corrected: kinds that were corrected.
        messages: so far.
        asks: so far, one an assistant message; see `dialogues`.
    """

    rng: random.Random
    facts: dict[str, str] = field(default_factory=dict)
    corrected: set[str] = field(default_factory=set)
    messages: list[dict[str, str]] = field(default_factory=list)
    asks: list[str] = field(default_factory=list)

    def exchange(self, user: str, assistant: str, ask: str = "open") -> None:
        self.messages.append({"role": "user", "content": _sentence(user)})
        self.messages.append({"role": "assistant", "content": _sentence(assistant)})
        self.asks.append(ask)

    def statement(self, kind: str) -> str:
        return self.rng.choice(KINDS[kind].statements).format(self.facts[kind])

    def answer(self, kind: str) -> str:
        return KINDS[kind].answer.format(self.facts[kind])

    def introduce(self, kinds: list[str]) -> None:
        self.facts = {kind: self.rng.choice(KINDS[kind].values) for kind in kinds}
        statements = _sentence(_join([self.statement(kind) for kind in kinds]))
        answers = _join([self.answer(kind) for kind in kinds])
        self.exchange(f"{self.rng.choice(GREETINGS)}{statements}.", f"noted: {answers}.")

    def correct(self, kind: str) -> None:
        self.facts[kind] = self.rng.choice([value for value in KINDS[kind].values if value != self.facts[kind]])
        self.corrected.add(kind)
        self.exchange(self.rng.choice(CORRECTIONS).format(self.statement(kind)), f"noted: {self.answer(kind)}.")

    def ask(self, *kinds: str) -> None:
        questions = ", and ".join(self.rng.choice(KINDS[kind].questions) for kind in kinds)
        answers = " and ".join(self.answer(kind) for kind in kinds)
        ask = "combined" if len(kinds) > 1 else "corrected" if kinds[0] in self.corrected else "recall"
        self.exchange(f"{self.rng.choice(OPENERS)}{questions}?", f"{answers}.", ask)

    def ask_sum(self) -> None:
        """Asks how many books there would be with some more, if one word can say it."""
        books = NUMBERS[self.facts["books"]]
        more = 10 if books > 20 else self.rng.choice((1, 2, 3))
        if total := NUMBER_WORDS.get(books + more):
            question = f"if I buy {NUMBER_WORDS[more]} more, how many books will I own?"
            self.exchange(question, f"you will own {total} books.", "arithmetic")


def _converse(rng: random.Random) -> _Conversation:
    talk = _Conversation(rng)
    if rng.random() < 0.25:
        talk.messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    kinds = rng.sample(list(KINDS), 3)
    talk.introduce(kinds)
    talk.ask(rng.choice(kinds))
    if rng.random() < 0.75:
        kind = rng.choice(kinds)
        talk.correct(kind)
        talk.ask(kind)
    if rng.random() < 0.1:
        talk.exchange(*rng.choice(SMALL_TALK))
    talk.ask(*rng.sample(kinds, 2))
    if "books" in kinds and rng.random() < 0.5:
        talk.ask_sum()
    return talk


def dialogues(count: int, seed: int) -> Iterator[dict]:
    """Yields `count` dialogues {"id", "messages": [{"role", "content"}], "asks"}, a function of `seed` alone.

    `asks` has one entry an assistant message: "open" (its own user message suffices), "recall", "corrected",
    "combined" (the values stand in earlier turns only) or "arithmetic" (a sum with a number of an earlier turn).

    Another seed gives other dialogues. Three facts of seven kinds, in order, are 2.9 * 10^6 equally likely
    choices, and which are asked for, and in which words, multiplies them by more than 10^4; so two dialogues
    have the same text with chance below 10^-10: about one in a thousand that any of 10^4 training and 10^3
    held-out dialogues coincide.
    """
    rng = random.Random(seed)
    for number in range(1, count + 1):
        talk = _converse(rng)
        yield {"id": f"recall-{seed}-{number:06d}", "messages": talk.messages, "asks": talk.asks}


def write_corpus(path: str | os.PathLike[str], count: int, seed: int) -> None:
    """Writes `dialogues(count, seed)` to `path` as JSON lines, by an atomic rename."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for dialogue in dialogues(count, seed):
                file.write(json.dumps(dialogue, ensure_ascii=False) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

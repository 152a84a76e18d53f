"""The data: a grammar that writes conversations. The same random state gives the same conversations.

Some questions are held out, so that the exam can ask what the model has not seen: see `is_held_out`. Skills with few
facts (capitals, greetings) teach them all; the exam asks for those in other words.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from . import words

HELD_OUT_ONE_IN = 16


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its right answer."""

    question: str
    answer: str
    key: str = ""
    """The case that the answer depends on, whatever the wording. Empty if every case is taught."""


def is_held_out(key: str) -> bool:
    """Return whether training never shows this case: one in 16, by checksum, the same for every seed."""
    return bool(key) and zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def draw(write: Callable[[Random], Turn], rng: Random, *, held_out: bool = False) -> Turn:
    """Draw a turn that is held out or taught, as asked.

    Raises:
        LookupError: A thousand tries found no such case, for example because the skill holds nothing out.
    """
    for _ in range(1000):
        turn = write(rng)
        if is_held_out(turn.key) == held_out:
            return turn
    raise LookupError(f"{write.__name__} has no case with held_out={held_out}.")


# Skills: each writes one turn.


def about_goblin(rng: Random) -> Turn:
    questions, answers = rng.choice(words.ABOUT_GOBLIN)
    return Turn(rng.choice(questions), rng.choice(answers))


def greeting(rng: Random) -> Turn:
    questions, answers = rng.choice(words.GREETINGS)
    return Turn(rng.choice(questions), rng.choice(answers))


def arithmetic(rng: Random) -> Turn:
    dice = rng.random()
    if dice < 0.15:
        return product(rng)
    return total(rng) if dice < 0.70 else difference(rng)


def total(rng: Random) -> Turn:
    a, b = _two_numbers(rng)
    return _calculation(rng, a, "+", "plus", b, a + b)


def difference(rng: Random) -> Turn:
    a, b = sorted(_two_numbers(rng), reverse=True)
    return _calculation(rng, a, "-", "minus", b, a - b)


def product(rng: Random) -> Turn:
    a, b = rng.randrange(11), rng.randrange(11)
    return _calculation(rng, a, "*", "times", b, a * b)


def _two_numbers(rng: Random) -> tuple[int, int]:
    limit = rng.choice([10, 20, 100, 100])
    return rng.randrange(limit), rng.randrange(limit)


def _calculation(rng: Random, a: int, sign: str, spoken: str, b: int, result: int) -> Turn:
    question = rng.choice(
        [
            f"What is {a} {sign} {b}?",
            f"{a} {sign} {b}",
            f"{a} {sign} {b} =",
            f"Calculate {a} {sign} {b}.",
            f"How much is {a} {spoken} {b}?",
            f"What is {a} {spoken} {b}?",
            f"Compute {a} {sign} {b}",
        ]
    )
    # Small sums are few, and all of them are taught. 30 + 7 is held out together with 7 + 30.
    low, high = sorted((a, b))
    return Turn(question, f"{a} {sign} {b} = {result}", f"{low} {sign} {high}" if high >= 20 else "")


def echo(rng: Random) -> Turn:
    text = _sentence(rng) if rng.random() < 0.6 else _common_words(rng, rng.randint(1, 9))
    if rng.random() < 0.2:
        text = f"{rng.randrange(10 ** rng.randint(1, 6))} {text}"
    request = rng.choice(
        [
            "Repeat after me: {}",
            "Say: {}",
            "Repeat: {}",
            "Echo: {}",
            "Please repeat this: {}",
            "Echo this text: {}",
            "Write exactly: {}",
        ]
    )
    return Turn(request.format(text), text, text)


def counting(rng: Random) -> Turn:
    first = rng.randint(1, 20)
    last = first + rng.randint(2, 30)
    request = rng.choice(["Count from {} to {}.", "Count from {} to {}", "List the numbers from {} to {}."])
    numbers = ", ".join(map(str, range(first, last + 1)))
    return Turn(request.format(first, last), f"{numbers}.", f"{first}..{last}")


def json_object(rng: Random) -> Turn:
    name, city, number, fruit = rng.choice(words.NAMES), rng.choice(words.CITIES), rng.randint(1, 99), _fruit(rng)
    value: Any
    match rng.randrange(5):
        case 0:
            value = {"name": name, "age": number}
            question = rng.choice(
                [
                    f"Give me JSON for {name}, age {number}.",
                    f"Write a JSON object with name {name} and age {number}.",
                    f"JSON: name {name}, age {number}",
                ]
            )
        case 1:
            value = {"name": name, "city": city}
            question = rng.choice(
                [f"Give me JSON for {name} from {city}.", f"Write a JSON object with name {name} and city {city}."]
            )
        case 2:
            value = {"item": fruit, "count": number}
            question = rng.choice([f"Give me JSON for {number} {fruit}s.", f"JSON: item {fruit}, count {number}"])
        case 3:
            value = rng.sample(words.COLORS, rng.randint(2, 4))
            question = f"Write a JSON list of these colors: {', '.join(value)}."
        case _:
            text, mood = _opinion(rng)
            # Twenty sentences are too few to hold any out.
            return Turn(f"Reply in JSON with the sentiment of: {text}", json.dumps({"sentiment": mood}))
    return Turn(question, json.dumps(value), json.dumps(value))


def fact(rng: Random) -> Turn:
    # Capitals are many: they get two of the eight shares.
    return rng.choice([capital, capital, opposite, day_after, month_after, sound, plain_fact, larger])(rng)


def capital(rng: Random) -> Turn:
    country, city = rng.choice(list(words.CAPITALS.items()))
    request = rng.choice(["What is the capital of {}?", "Capital of {}?", "Name the capital of {}."])
    return Turn(request.format(country), f"The capital of {country} is {city}.")


def opposite(rng: Random) -> Turn:
    word, other = rng.choice(list(words.OPPOSITES.items()))
    if rng.random() < 0.5:
        word, other = other, word
    request = rng.choice(["What is the opposite of {}?", "Opposite of {}?"])
    return Turn(request.format(word), f"The opposite of {word} is {other}.")


def day_after(rng: Random) -> Turn:
    index = rng.randrange(len(words.DAYS))
    day, following = words.DAYS[index], words.DAYS[(index + 1) % len(words.DAYS)]
    request = rng.choice(["What day comes after {}?", "Which day follows {}?"])
    return Turn(request.format(day), f"{following} comes after {day}.")


def month_after(rng: Random) -> Turn:
    index = rng.randrange(len(words.MONTHS))
    month, following = words.MONTHS[index], words.MONTHS[(index + 1) % len(words.MONTHS)]
    return Turn(f"What month comes after {month}?", f"{following} comes after {month}.")


def sound(rng: Random) -> Turn:
    animal, noise = rng.choice(list(words.SOUNDS.items()))
    request = rng.choice(["What sound does a {} make?", "What does the {} say?"])
    return Turn(request.format(animal), f"The {animal} says {noise}.")


def plain_fact(rng: Random) -> Turn:
    return Turn(*rng.choice(words.PLAIN_FACTS))


def larger(rng: Random) -> Turn:
    a, b = rng.sample(range(100), 2)
    request = rng.choice(["Which is larger, {} or {}?", "Which number is bigger: {} or {}?"])
    low, high = sorted((a, b))
    return Turn(request.format(a, b), f"{high} is larger than {low}.", f"{high} > {low}")


def sentiment(rng: Random) -> Turn:
    text, mood = _opinion(rng)
    request = rng.choice(["Is this positive or negative: {}", "Sentiment of: {}", "Classify the sentiment: {}"])
    return Turn(request.format(text), mood)


def listing(rng: Random) -> Turn:
    pools = {
        "colors": words.COLORS,
        "animals": words.ANIMALS,
        "fruits": words.FRUITS,
        "cities": words.CITIES,
        "names": words.NAMES,
    }
    kind, pool = rng.choice(list(pools.items()))
    count = rng.randint(2, 5)
    request = rng.choice(["Name {} {}.", "List {} {}.", "Give me {} {}."])
    return Turn(request.format(count, kind), ", ".join(rng.sample(pool, count)) + ".")


def story(rng: Random) -> Turn:
    hero, friend, name = rng.choice(words.ANIMALS), rng.choice(words.ANIMALS), rng.choice(words.NAMES)
    city, color, fruit = rng.choice(words.CITIES), rng.choice(words.COLORS), _fruit(rng)
    mood = rng.choice(["happy", "sad", "brave", "tired", "clever"])
    middle = [
        f"Every morning {name} walked to the river to look for a {fruit}.",
        f"One day {name} met a {friend} who was very hungry.",
        f"The {friend} asked {name} for some food.",
        f"{name} shared the {fruit} with the {friend}.",
        "They sat under a tree and talked until the evening.",
        f"A strong wind came and the {friend} was afraid.",
        f"{name} said that a good friend is never far away.",
    ]
    chosen = sorted(rng.sample(range(len(middle)), rng.randint(3, len(middle))))
    sentences = [
        f"Once upon a time there was a {mood} {hero} named {name}.",
        f"{name} lived in a small {color} house near {city}.",
        *(middle[index] for index in chosen),
        f"From that day on, {name} and the {friend} were best friends.",
        "The end.",
    ]
    request = rng.choice(
        [
            f"Tell me a story about a {hero}.",
            f"Tell me a story about a {hero} and a {friend}.",
            f"Write a short story about a {hero} named {name}.",
            "Tell me a story.",
        ]
    )
    return Turn(request, " ".join(sentences))


def unknown(rng: Random) -> Turn:
    """Draw a nonsense question: a small model should admit that it does not know, not invent an answer."""
    a, b, c, year = *(rng.choice(words.COMMON) for _ in range(3)), rng.randint(1900, 2026)
    question = rng.choice(
        [
            f"Who won the {a} cup in {year}?",
            f"What is the price of {a} today?",
            f"Why does the {a} {b} the {c}?",
            f"Explain {a} {b} theory.",
            f"What is {a} {b}?",
            f"Translate {a} {b} to Latin.",
            f"Who invented the {a}?",
            f"How do I cook {a} with {b}?",
        ]
    )
    return Turn(question, rng.choice(DO_NOT_KNOW), question)


def word_count(rng: Random) -> Turn:
    count = rng.randint(1, 3)
    text = _common_words(rng, count)
    return Turn(f"How many words are in: {text}", str(count), text)


DO_NOT_KNOW = [
    "I do not know that. I am a tiny offline model.",
    "Sorry, I do not know. Please ask a larger provider.",
]

SKILLS: dict[Callable[[Random], Turn], int] = {
    about_goblin: 18,
    greeting: 6,
    arithmetic: 16,
    echo: 14,
    counting: 4,
    json_object: 10,
    fact: 12,
    sentiment: 4,
    listing: 4,
    story: 7,
    unknown: 7,
    word_count: 2,
}
"""The weight of each skill, in parts of 104."""


def _fruit(rng: Random) -> str:
    return rng.choice(words.FRUITS)


def _opinion(rng: Random) -> tuple[str, str]:
    good = rng.random() < 0.5
    return rng.choice(words.PRAISE if good else words.COMPLAINTS), "positive" if good else "negative"


def _common_words(rng: Random, count: int) -> str:
    return " ".join(rng.choice(words.COMMON) for _ in range(count))


def _sentence(rng: Random) -> str:
    color, fruit, name, city = rng.choice(words.COLORS), _fruit(rng), rng.choice(words.NAMES), rng.choice(words.CITIES)
    animal, other = rng.choice(words.ANIMALS), rng.choice(words.ANIMALS)
    return rng.choice(
        [
            f"the {color} {animal} sees a {fruit}",
            f"my friend {name} lives in {city}",
            f"{name} likes the {color} {fruit}",
            f"the {animal} and the {other} walk home",
            _common_words(rng, rng.randint(2, 8)),
        ]
    )

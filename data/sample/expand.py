"""From sentence patterns and the facts of a study to text.

`grammar.py` and `article_grammar.py` say what patterns look like, `study.py` has the facts.
Text comes out as an XML fragment: escaped, with <i>, <sup> and <sub> inside.
"""

import dataclasses
import random
import re

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([\d.]+?)\.\.([\d.]+)")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?:<i>)?(?:[aeio]|un(?!i)|8|11-|18-))")
_HEAD = re.compile(r"(?P<kinds>[a-z ]+) (?P<role>[a-z_]+)(?:\.(?P<verdict>[a-z]+))?(?P<maybe>\?)?")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence of a text and the ways to say it; `kinds` and `verdict` say when it applies."""

    kinds: frozenset[str]
    role: str
    verdict: str | None
    optional: bool
    patterns: list[str]

    def applies(self, role: str, tags: frozenset[str]) -> bool:
        fits = bool(self.kinds & (tags | {"any"}))
        return self.role == role and fits and self.verdict in (None, *tags)


def parse(grammar: str) -> list[Sentence]:
    """The sentences of a grammar, in the order in which a text says them.

    Raises:
      ValueError: a heading that cannot be read.
    """
    sentences = []
    for line in filter(str.strip, grammar.splitlines()):
        if not line.startswith(" "):
            if not (head := _HEAD.fullmatch(line)):
                raise ValueError(f"no heading of a sentence: {line!r}")
            kinds = frozenset(head["kinds"].split())
            maybe = bool(head["maybe"])
            sentences.append(Sentence(kinds, head["role"], head["verdict"], maybe, []))
        elif line.startswith("      "):
            sentences[-1].patterns[-1] += " " + line.strip()
        else:
            sentences[-1].patterns.append(line.strip())
    return sentences


def fill(rng: random.Random, pattern: str, facts: dict[str, str]) -> str:
    """`pattern` with its choices made and its slots filled; `{Name}` is `{name}` capitalized.

    Raises:
      KeyError: a slot that is not among the facts.
    """
    while "[" in pattern:
        pattern = _CHOICE.sub(lambda m: rng.choice(m[1].split("|")), pattern)

    def value(slot: re.Match[str]) -> str:
        name = slot[1]
        if span := _RANGE.fullmatch(name):
            low, high = span[1], span[2]
            if "." in low:
                return f"{rng.uniform(float(low), float(high)):.1f}"
            return str(rng.randint(int(low), int(high)))
        return capital(facts[name.lower()]) if name[0].isupper() else facts[name]

    return _ARTICLE.sub(r"\1n ", capital(_SLOT.sub(value, pattern)))


def capital(text: str) -> str:
    """`text` with its first letter in upper case, also when that stands inside a tag."""
    return re.sub(r"^((?:<\w+>)?)(\w)", lambda m: m[1] + m[2].upper(), text)


def say(
    rng: random.Random,
    grammar: list[Sentence],
    role: str,
    tags: frozenset[str],
    facts: dict[str, str],
    count: int | None = None,
) -> list[str]:
    """The sentences of one part of a text, in order; with `count`, that many different patterns
    of the part are drawn instead, from all that apply.

    Raises:
      ValueError: fewer patterns apply than `count`.
    """
    found = [sentence for sentence in grammar if sentence.applies(role, tags)]
    if count is None:
        picked = [rng.choice(s.patterns) for s in found if not s.optional or rng.random() < 0.5]
    else:
        picked = rng.sample([pattern for s in found for pattern in s.patterns], count)
    return [fill(rng, pattern, facts) for pattern in picked]

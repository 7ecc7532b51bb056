"""A question as plain text, with what a model is to write behind it.

    Which drug is given?           {context}                      Question: {message}
    A. Gentamicin                                                 Answer:
    B. Ceftriaxone                 Question: Is it so?
    Answer: B                      Answer: yes

(with "Question: " before the first as well). The letter, the class or the text follows "Answer:"
with one space, as in running text; prompt and answer joined are that text.
"""

from biomedlm_jax.benchmarks.item import Item, Kind

LETTERS = "ABCDEFGH"


def plain(item: Item, kind: Kind) -> tuple[str, str]:
    """The prompt, which ends in "Answer:", and the answer; an empty one where none is known."""
    lines = [f"{item.context}\n"] if item.context else []
    lines.append(f"Question: {item.question}")
    if kind == "multiple_choice":
        lines += [f"{LETTERS[place]}. {option}" for place, option in enumerate(item.options)]
    lines.append("Answer:")
    return "\n".join(lines), _answer(item, kind)


def _answer(item: Item, kind: Kind) -> str:
    if kind == "generation":
        return f" {item.answer}"
    if item.label is None:
        return ""
    return f" {LETTERS[item.label] if kind == 'multiple_choice' else item.options[item.label]}"


def read_plain(text: str, options: tuple[str, ...], kind: Kind) -> int:
    """The place of the option that a written text names, by its letter or class and nothing else;
    -1 where it names none."""
    names = LETTERS[: len(options)] if kind == "multiple_choice" else options
    return next((place for place, name in enumerate(names) if name == text.strip()), -1)

"""Which items of a benchmark a model may have seen, for it was trained on their text.

Two ways, after those of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C):

    by number   an abstract that the item asks about (`Item.pmids`) is a document of the store
    by words    words of the item's question, context or answer stand in a document; which words,
                and what is common speech, is said in `pipeline/passages.py`

A store knows the full text of an article by its PMCID alone, so an item about such an article is
found by words. What a corpus that `data.clean --benchmarks` made still has of a benchmark is in its
contamination.json too; this looks at any store that a run names.

The store is read once for all splits, some documents at a time, from its tokens. What is kept is a
pair of numbers for every run of words in every document that has it.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import passages, words
from biomedlm_jax.pipeline.passages import COMMON, LONG, SEVERAL, Matcher
from biomedlm_jax.pipeline.store import SOURCE_OF_CODE, SOURCES, TokenStore, document_id
from biomedlm_jax.pipeline.vocabulary import Vocabulary

SHOWN = 5  # documents of an item that are named
_TOKENS = 1 << 20  # that are decoded in one go
_ROWS = 1 << 13  # of the table
_ABSTRACT, _ = SOURCES["abstract"]


@dataclasses.dataclass(frozen=True)
class Found:
    """Why an item is contaminated. pmids: documents that it asks about. words: documents with words
    of it, at most SHOWN of `documents`. passage: such words, of the first of them."""

    pmids: tuple[str, ...]
    words: tuple[str, ...]
    documents: int
    passage: str


@dataclasses.dataclass(frozen=True)
class Contamination:
    """Of one split, by one store.

    store: "path", "tokens_sha256", "tokens" and "documents" of the text that was searched.
    items: by id, why; contaminated ones only.
    too_short: ids of items with neither PMID nor enough words to be looked for.
    common: ids of items of which documents have only what is common speech; not contaminated.
    """

    store: dict[str, Any]
    items: dict[str, Found]
    too_short: tuple[str, ...]
    common: tuple[str, ...]

    def clean(self, split: Split) -> np.ndarray:
        """bool [items]: which are not contaminated."""
        return np.array([item.id not in self.items for item in split.items], bool)


def find(splits: Sequence[Split], store: TokenStore) -> list[Contamination]:
    """The contamination of each split by the training text in `store`. What is found of a split
    does not depend on the others. Shows a bar: a million words take a few seconds.

    Raises:
      UserError: it is not the split that is trained on, or is damaged.
    """
    if store.split != "train":
        raise UserError(f"{store.path}: {store.split!r} is not what was trained on; take 'train'")
    own = [[_phrases(item, split) for item in split.items] for split in splits]
    phrases = list(dict.fromkeys(phrase for items in own for found in items for phrase in found))
    numbers = {phrase: number for number, phrase in enumerate(phrases)}
    runs, of_phrase = passages.runs(phrases)
    matcher = Matcher(phrases, runs)
    asked = {pmid for split in splits for item in split.items for pmid in item.pmids}
    seen = _search(store, matcher, asked)
    return [
        _judged(split, [{run for p in found for run in of_phrase[numbers[p]]} for found in items],
                seen, matcher, store)
        for split, items in zip(splits, own, strict=True)
    ]  # fmt: skip


def _phrases(item: Item, split: Split) -> list[str]:
    options = item.options if split.kind == "multiple_choice" else ()
    given = passages.phrases((item.context, item.answer), ())
    return [*passages.phrases((item.question,), options), *given]


@dataclasses.dataclass(frozen=True)
class _Seen:
    """hits: int64 [n, 2], document and run, each pair once. names, digests: of the documents that
    have a run; a digest is of their words, so that copies are alike. pmids: of those asked for,
    what is there."""

    hits: np.ndarray
    names: list[str]
    digests: np.ndarray
    pmids: set[int]


def _search(store: TokenStore, matcher: Matcher, asked: set[int]) -> _Seen:
    hits, names, digests, pmids = [], [], [], set()
    wanted = np.array(sorted(asked), np.int64)
    with tqdm(total=store.tokens, unit="token", unit_scale=True, desc="contamination") as bar:
        for table, texts, tokens in _documents(store):
            abstracts = table[table[:, 2] == _ABSTRACT, 3]
            pmids |= set(abstracts[np.isin(abstracts, wanted)].tolist())
            hashed = words.hashed(texts)
            before: int | None = None
            for text, run in matcher.find(texts, hashed, hashed.runs(LONG)):
                if text != before:
                    before = text
                    _, _, code, number, _ = table[text].tolist()
                    names.append(document_id(SOURCE_OF_CODE[code], number))
                    own = hashed.hashes[hashed.begins[text] : hashed.begins[text + 1]]
                    digest = hashlib.blake2b(own.tobytes(), digest_size=8).digest()
                    digests.append(int.from_bytes(digest, "little"))
                hits.append((len(names) - 1, run))
            bar.update(tokens)
    pairs = np.array(hits, np.int64).reshape(-1, 2)
    return _Seen(pairs, names, np.array(digests, np.uint64), pmids)


def _documents(store: TokenStore) -> Iterator[tuple[np.ndarray, list[str], int]]:
    """Rows of the table, their texts, and the number of their tokens."""
    vocabulary = Vocabulary(store.vocabulary_path)
    for first in range(0, store.rows, _ROWS):
        end = min(first + _ROWS, store.rows)
        table = store.table(first, min(end + 1, store.rows))  # and where the last one ends
        edges = table[:, 0] if end < store.rows else np.append(table[:, 0], store.tokens)
        begin, count = 0, end - first
        while begin < count:
            until = int(np.searchsorted(edges, edges[begin] + _TOKENS, side="right")) - 1
            until = min(max(until, begin + 1), count)
            start, stop = int(edges[begin]), int(edges[until])
            tokens = store.read(np.array([start]), stop - start)[0]
            cuts = edges[begin : until + 1] - start
            # Without the last token, which ends the document.
            texts = [
                vocabulary.decode(tokens[a : b - 1].tolist())
                for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
            ]
            yield table[begin:until], texts, stop - start
            begin = until


def _judged(
    split: Split, own: list[set[int]], seen: _Seen, matcher: Matcher, store: TokenStore
) -> Contamination:
    """own: the runs of each item."""
    pairs, passage, much = _shown(own, seen)
    given: dict[int, list[int]] = {}  # by item: numbers of pairs
    for number, at in enumerate(pairs[0].tolist()):
        given.setdefault(at, []).append(number)
    found, common, short = {}, [], []
    for at, item in enumerate(split.items):
        by_words = [number for number in given.get(at, ()) if much[number]]
        pmids = tuple(document_id("abstract", pmid) for pmid in item.pmids if pmid in seen.pmids)
        if by_words or pmids:
            names = tuple(seen.names[pairs[1, number]] for number in by_words[:SHOWN])
            words_there = matcher.text(int(passage[by_words[0]])) if by_words else ""
            found[item.id] = Found(pmids, names, len(by_words), words_there)
        elif at in given:
            common.append(item.id)
        elif not own[at] and not item.pmids:
            short.append(item.id)
    facts = {
        "path": str(store.path),
        "tokens_sha256": store.sha256,
        "tokens": store.tokens,
        "documents": store.rows,
    }
    return Contamination(facts, found, tuple(short), tuple(common))


def _shown(own: list[set[int]], seen: _Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 [2, pairs], items and documents with a run in common, rising; one such run of each, the
    rarest kind first; and whether it shows the item, by the rules of `passages.py`."""
    belongs = [(run, item) for item, runs in enumerate(own) for run in runs]
    run_of, item_of = np.array(sorted(belongs), np.int64).reshape(-1, 2).T
    # Every hit of a run, for every item that has it.
    first, end = (np.searchsorted(run_of, seen.hits[:, 1], side) for side in ("left", "right"))
    times = end - first
    hit = np.repeat(np.arange(len(seen.hits)), times)
    within = np.arange(len(hit)) - np.repeat(np.cumsum(times) - times, times)
    item = item_of[first[hit] + within]
    document, run = seen.hits[hit].T

    size = 1 + int(max(run_of.max(initial=0), seen.hits[:, 1].max(initial=0)))
    by_text = np.stack([seen.hits[:, 1].astype(np.uint64), seen.digests[seen.hits[:, 0]]])
    texts = np.unique(by_text, axis=1)[0].astype(np.int64)
    common = np.bincount(texts, minlength=size) > COMMON
    idiom = np.bincount(run_of, minlength=size) > COMMON
    whole = np.bincount(item_of[~idiom[run_of]], minlength=len(own))

    order = np.lexsort((run, idiom[run], common[run], document, item))
    item, document, run = item[order], document[order], run[order]
    pairs, begins = np.unique(np.stack([item, document]), axis=1, return_index=True)
    of = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(run))))
    rare = np.bincount(of[~common[run]], minlength=len(begins)) > 0
    counted = np.bincount(of[~idiom[run]], minlength=len(begins))
    most = (counted >= SEVERAL) & (counted >= np.minimum(LONG, whole[pairs[0]] / 2))
    return pairs, run[begins], rare | most

"""Our vocabulary as Hugging Face tokenizer files with the same ids for any text, and back.

Comes after `data/tokenizer.py`, which trains the vocabulary; `hf/save.py` puts the files beside
the weights. They need neither SentencePiece nor torch where they are loaded. The way back,
`found_in`, takes GPT-2's byte-level files, or the SentencePiece model that lies beside our own. A
byte-level vocabulary is a file of theirs already; the rest of this is about SentencePiece.

Tokens of a task (`benchmarks.prompts.SPECIAL`) follow those of the vocabulary. In these files they
are special tokens, which a text that spells them becomes; on the way back they are told apart from
the vocabulary, which has none.

Why the ids agree: SentencePiece's BPE [1] joins, again and again, the neighbours whose join is
the piece of the highest score, the leftmost of equals. Hugging Face's does the same with a list
of pairs in order of rank. So the list has to hold the pairs that SentencePiece joins, and one
pair for each piece is enough: when the neighbours x and y are joined, nothing before crossed an
edge of xy, hence all steps inside it were those that xy takes when it stands alone, and those
end in one pair. There is no pre-tokenizer: SentencePiece joins over the whole text.

SentencePiece writes U+2581 for a space, in its pieces and in a text before it joins, which leaves
no piece for a U+2581 of the text; `Vocabulary` spells that one in bytes. Here pieces have a plain
space instead, and nothing changes the text: its U+2581 is a character without a piece, and comes
out in the same bytes.

Two things remain to know. Where a text holds the end-of-text marker literally, Hugging Face makes
the marker of it, of either kind, unless the tokenizer is loaded with split_special_tokens=True;
`Vocabulary` never does. And ids of bytes that are no UTF-8, as a model may write them, give U+FFFD
in either way of reading, but not as many of them: of a run of byte pieces that is no UTF-8 as a
whole, Hugging Face makes a U+FFFD for every byte, SentencePiece for those alone that are wrong.

[1] https://github.com/google/sentencepiece/blob/v0.2.0/src/bpe_model.cc
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

from biomedlm_jax.benchmarks.prompts import CLS, PAD, SEP, SPECIAL
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.vocabulary import (
    BYTE_LEVEL_FILE,
    END_OF_TEXT,
    MODEL_FILE,
    Place,
    Vocabulary,
)

# pyright: reportAttributeAccessIssue=false
# protobuf makes the classes of sentencepiece_model_pb2 when it is imported.

SPACE = "\u2581"  # what SentencePiece stores for a space
Piece = sentencepiece_model.ModelProto.SentencePiece


def convert(vocabulary: Place, special: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer that gives the ids of the vocabulary in the file `vocabulary`.

    special: tokens of a task, whose ids follow.

    Raises:
      UserError: the file is no vocabulary of ours, or one with something that Hugging Face's BPE
        cannot express; all such things are named.
    """
    ours = Vocabulary(vocabulary)
    if ours.kind == "byte_level":
        return _added(Tokenizer.from_str(ours.path.read_text(encoding="utf-8")), special)
    proto = sentencepiece_model.ModelProto()
    proto.ParseFromString(ours.path.read_bytes())
    if refused := _refused(proto):
        raise UserError(
            f"{vocabulary} cannot become a Hugging Face tokenizer with the same ids: "
            f"{'; '.join(refused)}; train it with `python -m data.tokenizer`"
        )
    ids = {_plain(piece.piece): index for index, piece in enumerate(proto.pieces)}
    merges = [(_plain(left), _plain(right)) for left, right in _merges(proto)]
    # Ids of the bytes stand for characters that are no piece, so no token is ever unknown.
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    # Both libraries cut these out first, the longest at each place.
    whole = [_plain(piece.piece) for piece in proto.pieces if piece.type == Piece.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in whole])
    return _added(_added(tokenizer, [END_OF_TEXT]), special)


def _added(tokenizer: Tokenizer, special: Sequence[str]) -> Tokenizer:
    listed = [AddedToken(token, normalized=False, special=True) for token in special]
    tokenizer.add_special_tokens(listed)
    return tokenizer


def found_in(folder: Path, scratch: Callable[[], Path]) -> tuple[Path | None, tuple[str, ...]]:
    """The file of a Hugging Face folder's tokenizer that `Vocabulary` opens, None where the folder
    has no tokenizer; and the tokens of a task that follow its own.

    scratch: makes a folder for tokenizer.json, where there are only vocab.json and merges.txt, or
      one with tokens of a task.

    Raises:
      UserError: a tokenizer that gives other ids than GPT-2's rules do.
    """
    settings = _settings(folder / "tokenizer_config.json")
    if settings.get("add_prefix_space"):
        raise UserError(
            f"{folder}/tokenizer_config.json has add_prefix_space, which puts a space before every "
            "text; that is not GPT-2's rule"
        )
    file, whole = folder / MODEL_FILE, folder / BYTE_LEVEL_FILE
    if file.is_file():
        size, added = Vocabulary(file).size, _of_json(_settings(whole), whole)
        return file, _special(
            {token: id for token, id in added.items() if id >= size}, size, folder
        )
    if whole.is_file():
        return _byte_level(whole, scratch)
    parts = [folder / name for name in ("vocab.json", "merges.txt")]
    if not any(part.is_file() for part in parts):
        return None, ()
    if absent := [str(part) for part in parts if not part.is_file()]:
        raise UserError(f"{absent[0]} is missing, and a byte-level tokenizer has both files")
    added = dict(_settings(folder / "added_tokens.json"))
    if wrong := [token for token, id in added.items() if type(id) is not int]:
        raise UserError(f"{folder}/added_tokens.json has no id for {', '.join(wrong)}")
    listed = settings.get("added_tokens_decoder") or {}
    tokens = listed if isinstance(listed, dict) else {"": listed}
    if not all(
        isinstance(x, dict) and isinstance(x.get("content"), str) and id.isdecimal()
        for id, x in tokens.items()
    ):
        raise UserError(
            f"{folder}/tokenizer_config.json has an added_tokens_decoder that is not of ids and "
            "tokens with a content; copy it again"
        )
    added |= {token["content"]: int(id) for id, token in tokens.items()}
    try:
        tokenizer = Tokenizer(models.BPE.from_file(*map(str, parts)))
    except Exception as error:  # `tokenizers` raises no narrower class
        raise UserError(
            f"{folder}: vocab.json and merges.txt are no vocabulary: {error}"
        ) from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    _added(tokenizer, [END_OF_TEXT])
    added.pop(END_OF_TEXT, None)
    special = _special(added, tokenizer.get_vocab_size(), folder)
    made = scratch() / BYTE_LEVEL_FILE
    made.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    return made, special


def _byte_level(file: Path, scratch: Callable[[], Path]) -> tuple[Path, tuple[str, ...]]:
    """As `found_in`, of a tokenizer.json, without the tokens of a task that it adds."""
    settings = _settings(file)
    added = _of_json(settings, file)
    end = added.get(END_OF_TEXT, len(added))
    more = {token: id for token, id in added.items() if id > end}
    if not more:  # `Vocabulary` refuses others
        return file, ()
    special = _special(more, end + 1, file.parent)
    kept = [token for token in settings["added_tokens"] if token["content"] not in special]
    made = scratch() / BYTE_LEVEL_FILE
    text = json.dumps(settings | {"added_tokens": kept}, ensure_ascii=False, indent=2)
    made.write_text(text, encoding="utf-8")
    return made, special


def _of_json(settings: Mapping[str, Any], file: Path) -> dict[str, int]:
    """The ids of the tokens that a tokenizer.json adds."""
    listed = settings.get("added_tokens") or []
    try:
        return {str(token["content"]): int(token["id"]) for token in listed}
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{file} has added_tokens that are not of an id and a content; copy it again"
        ) from error


def _special(added: Mapping[str, int], size: int, folder: Path) -> tuple[str, ...]:
    """The tokens of a task, of those that are added to a vocabulary of `size`.

    Raises:
      UserError: they are others, or have other ids.
    """
    found = tuple(sorted(added, key=added.__getitem__))
    if found in SPECIAL.values() and [added[x] for x in found] == [*range(size, size + len(found))]:
        return found
    known = "; or ".join(", ".join(tokens) for tokens in SPECIAL.values() if tokens)
    shown = ", ".join(f"{token} ({id})" for token, id in added.items())
    raise UserError(
        f"{folder} adds tokens to its vocabulary: {shown}; taken are those of a task, {known}, "
        f"with the ids from {size} on in this order"
    )


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is no JSON object")
    return found


def write(tokenizer: Tokenizer, folder: Path, *, context: int, special: Sequence[str] = ()) -> None:
    """Writes what `AutoTokenizer.from_pretrained(folder)` reads: tokenizer.json and
    tokenizer_config.json. As in GPT-2, bos and eos are one token, and nothing adds it.

    context: tokens from which on transformers warns that a text is too long for the model.
    special: as it was given to `convert`.
    """
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": context,
        # By default some releases drop the space before a full stop when they decode, and give
        # GPT-2 token types, which it adds to the text as if they were tokens.
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        settings |= {
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": END_OF_TEXT,
            "add_prefix_space": False,
        }
    roles = {"pad_token": PAD, "sep_token": SEP, "cls_token": CLS}
    settings |= {role: token for role, token in roles.items() if token in special}
    if special:
        settings["padding_side"] = "right"
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _plain(piece: str) -> str:
    """A piece as it stands in a text."""
    return piece.replace(SPACE, " ")


def _refused(proto: sentencepiece_model.ModelProto) -> list[str]:
    """What of a SentencePiece model has no counterpart in the tokenizer that is built here."""
    trainer, normalizer, pieces = proto.trainer_spec, proto.normalizer_spec, proto.pieces
    types = Counter(piece.type for piece in pieces)
    scores = Counter(_scores(proto).values())
    single = {piece.piece for piece in pieces}
    lost = {char for piece in _scores(proto) for char in piece} - single
    refusals = {
        "it is not of type BPE": trainer.model_type != sentencepiece_model.TrainerSpec.BPE,
        "byte_fallback is off": not trainer.byte_fallback or types[Piece.BYTE] != 256,
        "it normalizes text": normalizer.precompiled_charsmap
        or proto.denormalizer_spec.precompiled_charsmap,
        "add_dummy_prefix is on": normalizer.add_dummy_prefix,
        "remove_extra_whitespaces is on": normalizer.remove_extra_whitespaces,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        "it has control pieces beside the end of text": types[Piece.CONTROL] > 1,
        "it has unused pieces": types[Piece.UNUSED],
        "pieces share a score": any(count > 1 for count in scores.values()),
        f"characters of longer pieces are no pieces: {sorted(lost)}": lost,
    }
    return [sentence for sentence, applies in refusals.items() if applies]


def _merges(proto: sentencepiece_model.ModelProto) -> list[tuple[str, str]]:
    """The pair that each piece is joined of, best score first."""
    scores = _scores(proto)
    pairs = (_last_pair(piece, scores) for piece in sorted(scores, key=scores.__getitem__)[::-1])
    return [pair for pair in pairs if pair]


def _scores(proto: sentencepiece_model.ModelProto) -> dict[str, float]:
    """Of the pieces that are made by joining."""
    normal = (piece for piece in proto.pieces if piece.type == Piece.NORMAL)
    return {piece.piece: piece.score for piece in normal if len(piece.piece) > 1}


def _last_pair(piece: str, scores: Mapping[str, float]) -> tuple[str, str] | None:
    """The two parts that SentencePiece joins last in the text `piece`; None if it ends in more
    than one token, for then no text has this piece."""
    parts = list(piece)
    while len(parts) > 2:
        joins = [left + right for left, right in pairwise(parts)]
        best = max(range(len(joins)), key=lambda i: (scores.get(joins[i], float("-inf")), -i))
        if joins[best] not in scores:
            return None
        parts[best : best + 2] = [joins[best]]
    return parts[0], parts[1]

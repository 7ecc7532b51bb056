"""ROUGE (Lin 2004): how much a text shares with the one that people wrote, as the authors of
BioMedLM measure summaries: ROUGE-1, ROUGE-2 and ROUGE-L of the library `rouge_score`, with
Porter's stemmer, which needs no download."""

from collections.abc import Sequence

from biomedlm_jax.scoring.measures import Estimate, mean

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(written: Sequence[str], references: Sequence[str]) -> dict[str, Estimate]:
    """By kind, the mean over the items of the F1, from 0 to 1, with its interval.

    Raises:
      ValueError: not as many texts as references, or fewer than two.
    """
    # Here, for it imports nltk, and that all that it finds: over 3 s beside scikit-learn.
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=True)
    pairs = zip(references, written, strict=True)
    found = [scorer.score(reference, text) for reference, text in pairs]
    return {kind: mean([each[kind].fmeasure for each in found]) for kind in KINDS}

"""How the model of an exported folder is called from transformers: lines of its card that run as
they stand, and ask as fine-tuning did (`benchmarks/prompts.py`)."""

from collections.abc import Sequence

from biomedlm_jax.benchmarks.prompts import SPECIAL, Objective
from biomedlm_jax.config import Model
from biomedlm_jax.hf.config import architecture

OPEN = """\
    {imports}

    model = {kind}.from_pretrained("this/folder"){evaluated}
    tokenizer = AutoTokenizer.from_pretrained("this/folder")
"""
OPTIONS = """\
    question, options = "Which vitamin prevents scurvy?", ["vitamin C", "vitamin D"]
    rows = tokenizer(
        [f"{{question}}[SEP]"] * len(options),
        [f" {{option}}[SEP]" for option in options],
        truncation="longest_first",
        max_length={length},
        padding=True,
        return_tensors="pt",
    )
"""
CALLS: dict[str, str] = {
    "multiple_choice": """
It learned to choose among options: a row `question[SEP] option[SEP]` for each, with nothing else
between the parts, has a score at its last token, and the highest is the answer.

"""
    + OPTIONS
    + """\
    last = rows["attention_mask"].sum(1)[None] - 1
    with torch.no_grad():
        given = {{name: part[None] for name, part in rows.items()}}
        scores = model(**given, mc_token_ids=last).mc_logits[0]
    answer = options[int(scores.argmax())]
""",
    "multiple_choice without a bias": """
It learned to choose among options: a row `question[SEP] option[SEP]` for each, with nothing else
between the parts, has a score at its last token, and the highest is the answer.

"""
    + OPTIONS
    + """\
    with torch.no_grad():
        scores = model(**rows).logits[:, 0]
    answer = options[int(scores.argmax())]
""",
    "classification": """
It learned to name the class of `<|CONTEXT|>context<|QUESTION|>question<|ANSWER|>`, with nothing
else between the parts.

    context, question = "Sixty patients were given vitamin C.", "Does it prevent scurvy?"
    rows = tokenizer(
        f"<|CONTEXT|>{{context}}",
        f"<|QUESTION|>{{question}}<|ANSWER|>",
        truncation="longest_first",
        max_length={length},
        return_tensors="pt",
    )
    with torch.no_grad():
        scores = model(**rows).logits[0]
    answer = model.config.id2label[int(scores.argmax())]
""",
    "generation": """
It learned to go on after `question<|startoftext|>`, with an answer that the end-of-text token ends.

    question = "Can you tell me what prevents scurvy?"
    rows = tokenizer(f"{{question}}<|startoftext|>", return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**rows, max_length={length}, do_sample=False)[0]
    answer = tokenizer.decode(written[rows["input_ids"].shape[1] :], skip_special_tokens=True)
""",
}
UNKNOWN = """
It has a head on the last token of a row, with {classes} scores; no tokens say of which prompts.
"""
OPENS = {  # by the class that the weights are of: what opens them, and the hub's name of the task
    "GPT2LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "GPT2DoubleHeadsModel": ("GPT2DoubleHeadsModel", "multiple-choice"),
    "GPT2ForSequenceClassification": (
        "AutoModelForSequenceClassification",
        "text-classification",
    ),
}


def objective_of(special: Sequence[str]) -> Objective | None:
    """Whose tokens they are; None where there are none."""
    return next((name for name, tokens in SPECIAL.items() if tokens == tuple(special) != ()), None)


def tag(model: Model) -> str:
    """The hub's name of what it does."""
    return OPENS[architecture(model)][1]


def of(model: Model, special: Sequence[str], length: int) -> str:
    """The lines.

    special: tokens of the task, of which there are none where no task is known.
    length: tokens of a row at most.
    """
    kind, _ = OPENS[architecture(model)]
    objective = objective_of(special)
    asked = objective is not None or model.classes > 0
    imports = f"from transformers import {', '.join(sorted((kind, 'AutoTokenizer')))}"
    opened = OPEN.format(
        imports=f"import torch\n    {imports}" if asked else imports,
        kind=kind,
        evaluated=".eval()" if asked else "",
    )
    if objective is None:
        return opened + (UNKNOWN.format(classes=model.classes) if model.classes else "")
    one = objective == "multiple_choice" and not model.class_bias
    call = CALLS["multiple_choice without a bias" if one else objective]
    return opened + call.format(length=length)

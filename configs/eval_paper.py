"""The paper's tables: every benchmark of Bolton et al. 2024 (arXiv 2403.18421, section 4).

Run:     python -m biomedlm_jax.main --config=configs/eval_paper.py --config.start=DIR
         --config.benchmarks=QA --workdir=SCORES
Asks:    the dev and test splits whose answers are published, some 9,400 questions, in every form
         that needs no fine-tuning; the paper's own numbers are of models that were fine-tuned for
         each benchmark: name yours in config.tuned, such as --config.tuned.medqa=DIR
Expect:  of a model that knows nothing 25 % of four options; the page has chance, and the most
         frequent answer, beside every number
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.start = ""
    config.tuned = dict(medmcqa="", medqa="", mmlu="", pubmedqa="", bioasq="", meqsum="")
    config.benchmarks = "runs/benchmarks"
    config.splits = "+".join(
        (
            "medmcqa/dev",  # the test split's answers are not published
            "medqa/dev",
            "medqa/test",
            "mmlu/dev",
            "mmlu/test",
            "pubmedqa/dev",
            "pubmedqa/test",
            "bioasq/test",
            "meqsum/test",
        )
    )
    config.forms = ""
    config.shots = 0
    config.seed = 0
    config.max_tokens = 64
    config.limit = 0
    config.other_version = False
    config.store = ""
    return config

"""The 1B rung of the authors' ladder: same data, tokenizer and code as the 2.7B.

Run:     python -m biomedlm_jax.main --config=configs/pretrain_1b.py --workdir=DIR
Model:   24 x 2048, 16 heads: 1,269,878,784 parameters
Tokens:  512 x 1024 x 100,000 steps = 52.4 billion
Expect:  loss ln(28,896) + 2048 x 0.02^2 / 2 = 10.68 at step 0

Every number is the authors' (MosaicML benchmarks PR 4, `hf_configs/final` and its YAMLs; arXiv
2403.18421, sections 2 and 3), but for the periods of logging and the mesh.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.start = ""
    config.model = dict(
        layers=24,
        width=2048,
        heads=16,
        mlp=8192,
        vocab=28_896,
        context=1024,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="bfloat16",
        classes=0,
        class_bias=False,
        lora_rank=0,
        lora_alpha=0.0,
        remat="named",
        attention="auto",
    )
    config.data = dict(
        store="runs/pubmed/corpus/store",
        batch=512,
        # llm/data_pubmed.py of the same pull request, since 2022-10-19: documents are joined with
        # no token between them, and attention is not masked where they meet. That the published
        # run read its text so is inferred: the final YAMLs stand beside it.
        separators=False,
        segment_ids=False,
    )
    config.task = None
    config.mesh = dict(data=-1, fsdp=8, model=1, context=1)
    config.optimizer = dict(
        peak_lr=2e-4,
        warmup_steps=100,
        decay="cosine",
        final_lr_fraction=0.1,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,  # Composer's decoupled 2e-5 at this peak_lr; see optimizer.py
        weight_decay_on="all",  # model.parameters() in one group
        clip_norm=1.0,
        frozen_layers=0,
        ema_decay=0.0,
        z_loss=0.0,
    )
    config.run = dict(
        seed=17,
        steps=100_000,
        accumulate=1,
        log_every=10,
        eval_every=5_000,
        eval_batches=1_000,
        sample_tokens=64,
        save_every=5_000,
        keep=3,
        keep_every=50_000,
        max_skipped=10,
        spike_sigmas=6.0,
        hang_seconds=1800,
        wait_seconds=600,
        tpu_vmem_mib=0,
    )
    return config

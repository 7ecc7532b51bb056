"""PubMedQA on the 12M model of configs/small.py: fine-tuning as a whole, on two CPU cores.

Run:     make small CORPUS=DIR
         python -m biomedlm_jax.finetune --config=configs/finetune_small.py --seeds=1,2,3
         --config.task.benchmarks=QA --workdir=runs/finetune_small
Model:   12,117,120 parameters, four new tokens and a head for three classes
Items:   3 epochs of 450 in batches of 16: 29 steps an epoch
Expect:  chance by majority is 55.2 % of the test; WORKSPACE.md has what was reached, and what the
         same run reaches from random weights (--config.start= --config.task.vocabulary=FILE)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.start = "runs/small/run"
    config.model = dict(
        layers=5,
        width=384,
        heads=6,
        mlp=1536,
        vocab=8192 + 4,  # [PAD] and three of the prompt
        context=256,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="float32",
        classes=3,
        class_bias=False,
        lora_rank=0,
        lora_alpha=0.0,
        remat="none",
        attention="auto",
    )
    config.data = dict(store="", batch=16, separators=False, segment_ids=False)
    config.task = dict(
        objective="classification",
        benchmarks="runs/benchmarks",
        train="pubmedqa",
        dev="pubmedqa",
        select="best",
        fold=0,
        items=0,
        shuffle_options=False,
        other_version=False,
        vocabulary="",
        length=256,
    )
    config.mesh = dict(data=1, fsdp=2, model=1, context=1)
    config.optimizer = dict(
        peak_lr=1e-4,
        warmup_steps=3 * 29 // 2,
        decay="linear",
        final_lr_fraction=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        weight_decay_on="all",
        clip_norm=1.0,
        frozen_layers=0,
        ema_decay=0.0,
        z_loss=0.0,
    )
    config.run = dict(
        seed=1,
        steps=3 * 29,
        accumulate=1,
        log_every=10,
        eval_every=29,
        eval_batches=1,
        sample_tokens=0,
        save_every=29,
        keep=3,
        keep_every=0,
        max_skipped=3,
        spike_sigmas=0.0,
        hang_seconds=600,
        wait_seconds=120,
        tpu_vmem_mib=0,
    )
    return config

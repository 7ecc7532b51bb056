"""A GPT small enough to learn the sample corpus on two CPU cores in about two minutes.

Run:     make demo, or for this stage alone
         python -m biomedlm_jax.main --config=configs/demo.py --workdir=runs/demo/run
Model:   4 x 128, 4 heads: 1,071,872 parameters
Tokens:  32 x 128 x 300 steps = 1.2 million, six passes over 392 documents
Expect:  loss 7.65 at step 0, 2.00 at step 300
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.start = ""
    config.model = dict(
        layers=4,
        width=128,
        heads=4,
        mlp=512,
        vocab=2048,
        context=128,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="float32",
        classes=0,
        class_bias=False,
        lora_rank=0,
        lora_alpha=0.0,
        remat="none",
        attention="auto",
    )
    config.data = dict(
        store="runs/demo/corpus/store",
        batch=32,
        separators=True,  # so that it learns where a text ends, and sampling stops there
        segment_ids=False,
    )
    config.task = None
    config.mesh = dict(data=2, fsdp=2, model=2, context=1)
    config.optimizer = dict(
        peak_lr=3e-3,
        warmup_steps=50,
        decay="cosine",
        final_lr_fraction=0.1,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        weight_decay_on="all",
        clip_norm=1.0,
        frozen_layers=0,
        ema_decay=0.0,
        z_loss=0.0,
    )
    config.run = dict(
        seed=17,
        steps=300,
        accumulate=1,
        log_every=10,
        eval_every=100,
        eval_batches=20,
        sample_tokens=40,
        save_every=100,
        keep=2,
        keep_every=0,
        max_skipped=3,
        spike_sigmas=6.0,
        hang_seconds=600,
        wait_seconds=120,
        tpu_vmem_mib=0,
    )
    return config

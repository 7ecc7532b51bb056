"""PubMedQA with adapters alone, on one GPU of 24 GB.

Run:     python -m biomedlm_jax.finetune --config=configs/finetune_pubmedqa_lora.py
         --workdir=runs/finetune_pubmedqa_lora --seeds=1,2,3 --test
Model:   BioMedLM, 2,594,247,680 parameters, of which adapters and head are trained
Items:   20 epochs of 450 in batches of 16: 29 steps an epoch
Expect:  not published

AdamW, weight decay 0, clipping at 1 and a learning rate that rises for half of the steps and falls
for the other half are the authors' (stanford-crfm/BioMedLM, finetune/README.md and its Trainer;
warm-up ratio 0.5), and so is the length of 512. Adapters of all four kernels of a layer, rank and
learning rate as is common with LoRA (arXiv 2106.09685, table 11, has 2e-4 for GPT-2).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.start = "hf:runs/BioMedLM"
    config.model = dict(
        layers=32,
        width=2560,
        heads=20,
        mlp=10_240,
        vocab=28_896 + 4,  # [PAD] and three of the prompt
        context=1024,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="bfloat16",
        classes=3,
        class_bias=False,
        lora_rank=16,
        lora_alpha=32.0,
        remat="full",
        attention="auto",
    )
    config.data = dict(store="", batch=16, separators=False, segment_ids=False)
    config.task = dict(
        objective="classification",
        benchmarks="runs/benchmarks",
        train="pubmedqa",
        dev="pubmedqa",
        select="last",
        fold=0,
        items=0,
        shuffle_options=False,
        other_version=False,
        vocabulary="",
        length=512,
    )
    config.mesh = dict(data=1, fsdp=1, model=1, context=1)
    config.optimizer = dict(
        peak_lr=2e-4,
        warmup_steps=20 * 29 // 2,
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
        steps=20 * 29,
        accumulate=4,
        log_every=10,
        eval_every=5 * 29,
        eval_batches=1,
        sample_tokens=0,
        save_every=5 * 29,
        keep=1,
        keep_every=0,
        max_skipped=3,
        spike_sigmas=0.0,
        hang_seconds=1800,
        wait_seconds=600,
        tpu_vmem_mib=0,
    )
    return config

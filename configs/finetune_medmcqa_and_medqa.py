"""MedMCQA and MedQA at once, which the paper scores on MMLU.

Run:     python -m biomedlm_jax.finetune --config=configs/finetune_medmcqa_and_medqa.py
         --workdir=runs/finetune_medmcqa_and_medqa --seeds=1,2,3 --test
         then python -m biomedlm_jax.main --config=configs/eval_paper.py
         --config.tuned.mmlu=runs/finetune_medmcqa_and_medqa --config.splits=mmlu/test
         --workdir=runs/finetune_medmcqa_and_medqa/mmlu
Model:   BioMedLM, 2,594,247,680 parameters, all of them trained
Items:   3 epochs of 193,000 in batches of 32: 6,032 steps an epoch
Expect:  59.6, 63.1, 60.7, 69.0 % of MMLU's clinical knowledge, professional medicine, college
         biology and medical genetics (arXiv 2403.18421, table 9); nothing of MMLU is trained on

AdamW, weight decay 0, clipping at 1 and a learning rate that rises for half of the steps and falls
for the other half are the authors' (stanford-crfm/BioMedLM, finetune/README.md and its Trainer;
warm-up ratio 0.5), and so is the length of 512. Learning rate as for MedQA; batch and epochs are a
guess.
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
        vocab=28_896 + 3,  # [PAD], [CLS], [SEP]
        context=1024,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="bfloat16",
        classes=1,
        class_bias=True,
        lora_rank=0,
        lora_alpha=0.0,
        remat="full",
        attention="auto",
    )
    config.data = dict(store="", batch=32, separators=False, segment_ids=False)
    config.task = dict(
        objective="multiple_choice",
        benchmarks="runs/benchmarks",
        train="medmcqa+medqa",
        dev="medqa",
        select="last",
        fold=-1,
        items=0,
        shuffle_options=False,
        other_version=False,
        vocabulary="",
        length=512,
    )
    config.mesh = dict(data=1, fsdp=-1, model=1, context=1)
    config.optimizer = dict(
        peak_lr=2e-6,
        warmup_steps=3 * 6_032 // 2,
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
        steps=3 * 6_032,
        accumulate=1,
        log_every=10,
        eval_every=6_032,
        eval_batches=1,
        sample_tokens=0,
        save_every=6_032,
        keep=1,
        keep_every=0,
        max_skipped=3,
        spike_sigmas=0.0,
        hang_seconds=1800,
        wait_seconds=600,
        tpu_vmem_mib=0,
    )
    return config

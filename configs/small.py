"""12M parameters on real PubMed and PubMed Central, for two CPU cores and 20 minutes.

Run:     make small CORPUS=DIR, with NCBI's XML files below DIR
Model:   10 x 288, 6 heads
Tokens:  TODO
Expect:  TODO
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = dict(
        layers=12,
        width=256,
        heads=4,
        mlp=1024,
        vocab=8192,
        context=256,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        compute_dtype="float32",
        remat="none",
        attention="auto",
    )
    config.data = dict(store="runs/small/store", batch=16)
    config.mesh = dict(data=1, fsdp=2, model=1)
    config.optimizer = dict(
        peak_lr=1e-3,
        warmup_steps=50,
        final_lr_fraction=0.1,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.run = dict(
        seed=17,
        steps=600,
        log_every=10,
        eval_every=200,
        eval_batches=8,
        save_every=200,
        keep=2,
    )
    return config

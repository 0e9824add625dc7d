"""MosaicBERT-Base: ALiBi, gated MLPs and 30 % masking; BERT's quality in about an hour.

Paper: MosaicBERT, arXiv 2312.17482, sections 3 and 4.
Command: python -m launch.local --config configs/mosaicbert_base.py --workdir runs/mosaicbert
Cost: the paper's 70,000 steps take 1.13 hours for GLUE 79.6 on 8 A100 (when it passes BERT).
Published: GLUE 79.6 after 1.13 hours on 8 A100; 137M parameters.
Measured: not run.
"""

from configs import hardware, text


def get_config(arg=None):
    config = text.base("c4", text.BERT, max_length=128)
    config.batch_size = 4096
    config.duration = {"steps": 70_000}
    config.model = text.model(
        "bert",
        "base",
        vocab_size=30_528,  # a multiple of 64
        positions="alibi",
        mlp="geglu",
        mlp_bias=False,
        attention_dropout=0.0,
        pool="none",
    )
    head = dict(activation="gelu")
    config.objective = dict(name="masked_language", masking=dict(rate=0.3), head=head)
    config.optimizer = text.adamw(
        5e-4, {"percent": 6}, b2=0.98, eps=1e-6, weight_decay=1e-5, decay_convention="independent"
    )
    config.optimizer.schedule.end = 0.02
    return hardware.apply(config, arg)

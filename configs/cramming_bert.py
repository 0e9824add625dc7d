"""Cramming: a BERT-Base-sized model on one GPU in one day.

Paper: Cramming: Training a Language Model on a Single GPU in One Day, arXiv 2212.14034, section 4.
Command: python -m launch.local --config configs/cramming_bert.py --workdir runs/cramming
Cost: one day on one GPU, by construction: set duration to what the GPU does in it.
Published: GLUE 78.6 (one A6000).
Measured: not run.

Pre-norm, no biases in linear layers, no dropout, gated MLP, a rate that rises and falls over the
budget, a quarter of the tokens hidden. The paper's rise of the batch size is left out.
"""

from configs import hardware, text


def get_config(arg=None):
    config = text.base("pile_filtered", text.OWN | dict(size=32_768), max_length=128)
    config.batch_size = 4096
    config.duration = {"steps": 60_000}
    config.model = text.model(
        "bert",
        "base",
        depth=16,
        vocab_size=32_768,
        positions="sinusoidal",
        pre_norm=True,
        mlp="geglu",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        dropout=0.0,
        attention_dropout=0.0,
        pool="none",
    )
    head = dict(activation="gelu")
    config.objective = dict(name="masked_language", masking=dict(rate=0.25), head=head)
    config.optimizer = text.adamw(1e-3, {"percent": 50}, b2=0.98, eps=1e-12, clip=0.5)
    return hardware.apply(config, arg)

"""BERT-Base on packed rows without pairs; 128 tokens a row, or 512 with the argument '512'.

Paper: RoBERTa, arXiv 1907.11692, section 4.2 (pairs do not help), with BERT's size and vocabulary.
Command: python -m launch.local --config configs/bert_base_packed.py[:512] --workdir runs/packed
Cost: see docs/benchmarks.md for its speed.
Published: none in this form.
Measured: not run.
"""

from configs import hardware, text


def get_config(arg=None):
    names = (arg or "").split(",")
    length = 512 if "512" in names else 128
    config = text.base("wikipedia_books", text.BERT, max_length=length)
    config.batch_size = 65_536 * 4 // length
    config.duration = {"steps": 250_000}
    config.model = text.model("bert", "base", num_token_types=0, pool="none", max_length=length)
    config.objective = dict(name="masked_language", masking=dict(rate=0.15))
    config.optimizer = text.adamw(7e-4, {"percent": 6}, b2=0.98, eps=1e-6, clip=1.0)
    config.evaluators = {"held_out": text.held_out("wikipedia_books", every={"percent": 2})}
    return hardware.apply(config, ",".join(name for name in names if name != "512"))

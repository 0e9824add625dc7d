"""BEST-RQ: a Conformer of 0.6 billion parameters on Libri-Light's 60,000 hours.

Paper: Self-supervised Learning with Random-projection Quantizer, arXiv 2202.01855, sections 3 and
  4.1 (numbers from memory).
Command: python -m launch.slurm --config configs/best_rq.py --workdir runs/best_rq
Cost: not measured here.
Published: word error rate 1.6 / 2.9 after fine-tuning on 960 hours, no language model (test clean /
  other, from memory).
Measured: not run.
"""

from configs import hardware, speech, text


def get_config(arg=None):
    config = speech.base("librilight", batch_size=2048, max_samples=256_000)
    config.duration = {"steps": 500_000}
    config.model = text.model("conformer", "XL", positions="relative", conv_norm="batch")
    # A frame of 10 ms begins a span of 400 ms with probability .01; a token is four frames.
    config.objective = dict(
        name="best_rq",
        masking=dict(rate=0.4, length=10),
        num_codebooks=1,
        num_codes=8192,
        code_dim=16,
        noise=0.1,
    )
    config.optimizer = speech.adam(
        0.004, dict(name="rsqrt", warmup={"steps": 25_000}, timescale={"steps": 25_000})
    )
    return hardware.apply(config, arg)

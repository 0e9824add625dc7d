"""HuBERT Large on Libri-Light's 60,000 hours: clusters of Base's ninth layer.

Paper: HuBERT, arXiv 2106.07447, section IV.
Command: python -m tools.cluster --model runs/hubert_base_iter2 --layer 8 --clusters 500
    --fraction 0.1 --data data/librilight --output data/librilight_base2_500
  python -m launch.slurm --config configs/hubert_large.py --workdir runs/hubert_large
Cost: not measured here; the paper: 128 GPUs.
Published: word error rate 4.7 / 7.6 with 10 minutes of transcripts and a Transformer language model
  (test clean / other, from memory).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    units = "data/librilight_base2_500"
    config = speech.hubert("large", 2, units, num_clusters=500, rate=50.0)
    return hardware.apply(config, arg)

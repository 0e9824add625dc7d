"""HuBERT Base, second iteration: clusters of the first model's sixth layer.

Paper: HuBERT, arXiv 2106.07447, section IV.
Command: python -m tools.cluster --model runs/hubert_base_iter1 --layer 5 --clusters 500
    --fraction 0.1 --data data/librispeech --output data/librispeech_base1_500
  python -m launch.local --config configs/hubert_base_iter2.py --workdir runs/hubert_base_iter2
Cost: not measured here; the paper: 32 GPUs, 9.5 hours per 100,000 steps.
Published: word error rate 9.7 / 15.3 with 10 minutes of transcripts and a 4-gram language model
  (test clean / other, from memory).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    units = "data/librispeech_base1_500"
    config = speech.hubert("base", 2, units, num_clusters=500, rate=50.0)
    return hardware.apply(config, arg)

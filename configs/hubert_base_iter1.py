"""HuBERT Base, first iteration: clusters of cepstra, on LibriSpeech's 960 hours.

Paper: HuBERT, arXiv 2106.07447, section IV.
Command: python -m tools.cluster --features mfcc --rate 16000 --clusters 100 --data data/librispeech
    --output data/librispeech_mfcc100
  python -m launch.local --config configs/hubert_base_iter1.py --workdir runs/hubert_base_iter1
Cost: not measured here; the paper: 32 GPUs, 9.5 hours per 100,000 steps.
Published: none of its own; it makes the targets of hubert_base_iter2.py.
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    units = "data/librispeech_mfcc100"
    config = speech.hubert("base", 1, units, num_clusters=100, rate=100.0)
    return hardware.apply(config, arg)

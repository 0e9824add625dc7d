"""ModernBERT-base, phase 1: 1.7 T tokens in rows of 1,024.

Paper: ModernBERT: Smarter, Better, Faster, Longer, arXiv 2412.13663, section 3.
Command: python -m launch.local --config configs/modernbert_base_phase1.py
  --workdir runs/modernbert_base_phase1
Cost: the paper trains on 8 H100.
Published: GLUE 88.4; 149M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.modernbert("base", phase=1)
    return hardware.apply(config, arg)

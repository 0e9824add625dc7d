"""ModernBERT-base, phase 3: 50 B tokens while the rate falls.

Paper: ModernBERT: Smarter, Better, Faster, Longer, arXiv 2412.13663, section 3.
Command: python -m launch.local --config configs/modernbert_base_phase3.py
  --workdir runs/modernbert_base_phase3
Cost: not measured here.
Published: GLUE 88.4; 149M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.modernbert("base", phase=3)
    return hardware.apply(config, arg)

"""XLNet-Large: permutation language modelling, 500,000 steps of 8,192 rows.

Paper: XLNet, arXiv 1906.08237, section 3.1 and appendix A.4.
Command: python -m launch.local --config configs/xlnet_large.py --workdir runs/xlnet_large
Cost: the paper's large one takes 5.5 days on 512 TPU v3 chips.
Published: MNLI 89.8 (dev); 340M parameters.
Measured: not run.
"""

from configs import hardware, text


def get_config(arg=None):
    config = text.base("xlnet_126gb", text.XLNET, max_length=512)
    config.batch_size = 8192
    config.duration = {"steps": 500_000}
    config.model = text.model("xlnet", "large", pool="none")
    config.objective = dict(name="permutation", prediction=dict(reuse_length=256))
    config.optimizer = text.adamw(4e-4, {"steps": 40_000}, eps=1e-6)
    return hardware.apply(config, arg)

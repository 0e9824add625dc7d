"""ELECTRA's claim at small scale: replaced tokens against masked ones at equal FLOPs.

Paper: ELECTRA, arXiv 2003.10555, section 3.4 and figure 4.
Command: python -m launch.local --config configs/electra_claim.py[:mlm] --workdir runs/claim_rtd
  (docs/text.md says how such data is prepared, here with 8,192 ids and one document a file.)
Cost: some ten minutes each on one CPU core, two million tokens.
Published: the larger the budget, the further replaced-token detection is ahead on GLUE.
Measured: linear probe 67.2 % by replaced tokens, 70.2 % by masked ones, 67.6 % with random weights:
  it is not ahead here (docs/text.md says why).

The argument 'mlm' trains the same encoder by masked tokens, in the number of steps that cost as
many FLOPs. Both are then probed on the 77 intents of BANKING77.
"""

from configs import hardware, text

SPLITS = ("train", "test")
STEPS = 500
# Training FLOPs of a row by replaced tokens over those by masked ones, as tools.inspect counts.
RATIO = 1.088


def get_config(arg=None):
    names = (arg or "").split(",")
    by_masks = "mlm" in names
    config = text.base("novels_peps", text.OWN | dict(size=8192), max_length=64)
    config.batch_size = 64
    config.duration = {"steps": round(STEPS * (RATIO if by_masks else 1.0))}
    config.data.threads = 1
    config.model = text.model(
        "electra",
        "small",
        width=128,
        depth=4,
        mlp_dim=512,
        num_heads=2,
        embedding_dim=64,
        vocab_size=8192,
        max_length=64,
        num_token_types=0,
        dropout=0.0,
        attention_dropout=0.0,
        pool="mean",
    )
    if by_masks:
        config.objective = dict(name="masked_language", masking=dict(rate=0.15))
    else:
        config.objective = dict(
            name="replaced_token",
            generator=dict(width=0.25),
            masking=dict(rate=0.15, mask=0.85, random=0.0),
            weight=50.0,
        )
    config.optimizer = text.adamw(5e-4, {"percent": 10}, eps=1e-6, clip=1.0)
    splits = {split: dict(name="sample", dataset="banking77", split=split) for split in SPLITS}
    config.evaluators = {
        "probe": dict(
            name="linear_probe",
            **splits,
            layers=(0, 1, 2),
            l2=(1.0, 0.1, 0.01, 1e-3, 1e-4),
            baselines=("random",),
        ),
        "knn": dict(name="knn", **splits, baselines=("random",)),
    }
    config.checkpoint.every = {"percent": 100}
    return hardware.apply(config, ",".join(name for name in names if name != "mlm"))

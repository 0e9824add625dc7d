"""ELECTRA's claim at small scale: replaced tokens against masked ones at equal FLOPs.

Paper: ELECTRA, arXiv 2003.10555, section 3.4 and figure 4.
Command: python -m launch.local --config configs/electra_claim.py[:mlm] --workdir runs/claim_rtd
  (docs/text.md says how data/novels_peps was prepared.)
Cost: see docs/text.md.
Published: the larger the budget, the further replaced-token detection is ahead on GLUE.
Measured: see docs/text.md.

The argument 'mlm' trains the same encoder by masked tokens, in the number of steps that cost as
many FLOPs. Both are then probed and fine-tuned on the 77 intents of BANKING77.
"""

from configs import hardware, text

SPLITS = ("train", "test")
STEPS = 6_000
# Training FLOPs of a row by replaced tokens over those by masked ones, as tools.inspect counts.
RATIO = 1.085


def get_config(arg=None):
    names = (arg or "").split(",")
    by_masks = "mlm" in names
    config = text.base("novels_peps", text.OWN | dict(size=8192), max_length=128)
    config.batch_size = 512
    config.duration = {"steps": round(STEPS * (RATIO if by_masks else 1.0))}
    config.data.update(threads=0, processes=8)
    config.model = text.model(
        "electra",
        "small",
        depth=8,
        vocab_size=8192,
        max_length=128,
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
    config.optimizer = text.adamw(1e-3, {"percent": 10}, b2=0.98, eps=1e-6, clip=1.0)
    splits = {split: dict(name="sample", dataset="banking77", split=split) for split in SPLITS}
    baselines = ("random", "bag_of_words")
    config.evaluators = {
        "probe": dict(name="linear_probe", **splits, baselines=baselines, layers=(1, 3, 5)),
        "fine_tuning": dict(name="fine_tuning", **splits, lr=3e-4, epochs=10, seeds=5),
    }
    config.checkpoint.every = {"percent": 100}
    return hardware.apply(config, ",".join(name for name in names if name != "mlm"))

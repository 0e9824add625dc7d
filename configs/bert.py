"""What BERT and its closest descendants have in common. Not an experiment: bert_*.py are."""

from ml_collections import ConfigDict

from configs import text

CORPUS = "wikipedia_books"  # what BERT was trained on; prepare it with --sentences for its pairs


def bert(variant: str, phase: int) -> ConfigDict:
    """Section 3.1 and appendix A.2 of arXiv 1810.04805, and the authors' code.

    900,000 steps at 128 tokens, then 100,000 at 512, which go on from the first phase's weights and
    learning rate; Adam's averages start anew, hence their short warm-up. 256 rows, Adam without
    bias correction, weight decay .01, clip 1, 15 % of the tokens hidden, next-sentence pairs.
    """
    config = text.base(CORPUS, text.BERT, max_length=128 if phase == 1 else 512)
    config.batch_size = 256
    config.duration = {"steps": 900_000 if phase == 1 else 100_000}
    config.data.source = text.pairs(CORPUS, "nsp")
    config.model = text.model("bert", variant)
    config.objective = dict(name="masked_language", pair="nsp", masking=dict(rate=0.15))
    config.optimizer = text.adamw(1e-4, {"steps": 10_000}, eps=1e-6, clip=1.0)
    config.optimizer.bias_correction = False
    if phase == 1:
        config.optimizer.schedule.end = 0.1
    else:
        config.optimizer.lr = 1e-5
        config.optimizer.schedule.warmup = {"steps": 1_000}
        path = f"runs/bert_{variant}_phase1"
        config.init_from = dict(path=path, load=((".*", True),), fresh=())
    return config


def roberta(variant: str, lr: float, warmup: int) -> ConfigDict:
    """Table 9 of arXiv 1907.11692: 8,192 rows of 512 tokens, 500,000 steps, full sentences, no NSP.

    Adam with beta2 .98 and eps 1e-6, weight decay .01, no clipping.
    """
    config = text.base("roberta_160gb", text.ROBERTA, max_length=512)
    config.batch_size = 8192
    config.duration = {"steps": 500_000}
    config.data.source = text.tokens("roberta_160gb", packing="concatenated")
    config.model = text.model("roberta", variant, pool="none")
    config.objective = dict(name="masked_language", masking=dict(rate=0.15))
    config.optimizer = text.adamw(lr, {"steps": warmup}, b2=0.98, eps=1e-6)
    config.evaluators = {"held_out": text.held_out("roberta_160gb", every={"percent": 1})}
    return config


def albert(variant: str) -> ConfigDict:
    """Section 4.1 of arXiv 1909.11942: 4,096 rows of 512, LAMB at 1.76e-3, 125,000 steps, SOP.

    N-grams of up to three words are hidden; no dropout (version 2 of the weights).
    """
    config = text.base(CORPUS, text.ALBERT, max_length=512)
    config.batch_size = 4096
    config.duration = {"steps": 125_000}
    config.data.source = text.pairs(CORPUS, "sop")
    config.model = text.model("albert", variant)
    config.objective = dict(
        name="masked_language", pair="sop", masking=dict(rate=0.15, unit="ngram")
    )
    config.optimizer = text.adamw(1.76e-3, {"steps": 3_125}, eps=1e-6, clip=1.0) | {"name": "lamb"}
    return config


def electra(
    variant: str, rows: int, steps: int, lr: float, length: int, width: float, rate: float
) -> ConfigDict:
    """Table 6 of arXiv 2003.10555: replaced-token detection, loss MLM + 50 RTD.

    Args:
      variant: size of the discriminator.
      rows, steps, lr, length: of training.
      width: the generator's, as a share.
      rate: share of the tokens that the generator replaces.
    """
    config = text.base(CORPUS, text.BERT, max_length=length)
    config.batch_size = rows
    config.duration = {"steps": steps}
    config.model = text.model("electra", variant)
    config.objective = dict(
        name="replaced_token",
        generator=dict(width=width),
        masking=dict(rate=rate, mask=0.85, random=0.0),
        weight=50.0,
    )
    config.optimizer = text.adamw(lr, {"steps": 10_000}, eps=1e-6, clip=1.0)
    config.optimizer.bias_correction = False
    return config


def deberta(variant: str, lr: float) -> ConfigDict:
    """Section 5.1 and table 9 of arXiv 2111.09543: RTD, gradient-disentangled embeddings.

    8,192 rows of 512 tokens, 500,000 steps, 10,000 of warm-up; the generator has the width and half
    the depth; all chosen tokens become [MASK]; RTD weighs 50 (the released code's default is 10).
    """
    config = text.base("deberta_160gb", text.DEBERTA, max_length=512)
    config.batch_size = 8192
    config.duration = {"steps": 500_000}
    config.model = text.model("deberta", variant)
    config.objective = dict(
        name="replaced_token",
        sharing="gradient_disentangled",
        generator=dict(width=1.0, depth=0.5),
        masking=dict(rate=0.15, mask=1.0, random=0.0),
        weight=50.0,
    )
    config.optimizer = text.adamw(lr, {"steps": 10_000}, b2=0.98, eps=1e-6, clip=1.0)
    return config


def modernbert(variant: str, phase: int) -> ConfigDict:
    """Section 3 and appendix A of arXiv 2412.13663; three phases of one run.

    1: 1.7 T tokens in rows of 1,024 at a constant rate after warm-up; 2: 250 B in rows of 8,192 at
    3e-4 (base; 5e-5 in large); 3: 50 B of better texts, down by 1 - sqrt. 30 % of the tokens are
    hidden. The ramp of the batch size at the start is left out: a step's shapes are static.
    """
    base = variant == "base"
    length = 1024 if phase == 1 else 8192
    corpus = "modernbert" if phase < 3 else "modernbert_decay"
    config = text.base(corpus, text.MODERNBERT, max_length=length)
    rows = (4608 if base else 4928) if phase == 1 else (576 if base else 616)
    config.batch_size = rows
    billions = {1: 1719, 2: 250, 3: 50}[phase]
    config.duration = {"steps": round(billions * 1e9 / (rows * length))}
    # Positions turn with a base of 10,000 everywhere until texts get long (section 3.2).
    theta = 10_000.0 if phase == 1 else 160_000.0
    fields = dict(max_length=length, rotary_temperature=theta, pool="none")
    config.model = text.model("modernbert", variant, **fields)
    config.objective = dict(name="masked_language", masking=dict(rate=0.3))
    lr = (8e-4 if base else 5e-4) if phase == 1 else (3e-4 if base else 5e-5)
    schedule = {
        1: dict(name="constant", warmup={"steps": round((3e9 if base else 2e9) / (rows * length))}),
        2: dict(name="constant"),
        3: dict(name="wsd", decay={"percent": 100}, shape="sqrt"),
    }[phase]
    config.optimizer = dict(
        name="stable_adamw",
        lr=lr,
        schedule=schedule,
        b2=0.98,
        eps=1e-6,
        weight_decay=1e-5,
        decay_convention="independent",
        decay_rules=text.DECAY_TABLES,
    )
    if phase > 1:
        path = f"runs/modernbert_{variant}_phase{phase - 1}"
        config.init_from = dict(path=path, load=((".*", True),), fresh=())
    return config

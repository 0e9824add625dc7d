"""Pieces that experiments on text share; each call returns fresh sections to change at will.

Corpora are not downloaded: `python -m tools.prepare_data --from text --input FILES --to DIR` makes
a directory of tokens of any text, with its tokenizer beside; data.source.path says where it is, and
preprocessing.tokenizer which one the model was made for.
"""

from ml_collections import ConfigDict

from configs import hardware

BERT = dict(size=30522, pad_id=0, unk_id=100, cls_id=101, sep_id=102, mask_id=103, others=())
ROBERTA = dict(size=50265, pad_id=1, unk_id=3, cls_id=0, sep_id=2, mask_id=50264, others=())
ALBERT = dict(size=30000, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, others=())
DEBERTA = dict(size=128001, pad_id=0, unk_id=3, cls_id=1, sep_id=2, mask_id=128000, others=())
MODERNBERT = dict(
    size=50368, pad_id=50283, unk_id=50280, cls_id=50281, sep_id=50282, mask_id=50284, others=()
)
XLNET = dict(size=32000, pad_id=5, unk_id=0, cls_id=3, sep_id=4, mask_id=6, others=(1, 2, 7, 8))
# What tools.prepare_data gives a WordPiece of one's own.
OWN = dict(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, others=())

# BERT's code decays tables as well, and spares biases and norms.
DECAY_TABLES = ((r".*(kernel|words|positions|token_types)", 1.0),)


def base(corpus: str, vocabulary: dict, max_length: int) -> ConfigDict:
    """The fields that every experiment on text has: tokens of a corpus, checkpoints, logs."""
    return ConfigDict(
        dict(
            seed=0,
            preprocessing=dict(
                name="text",
                tokenizer=f"data/{corpus}/tokenizer.json",
                max_length=max_length,
                vocabulary=vocabulary,
            ),
            data=dict(source=tokens(corpus), threads=4),
            evaluators=dict(),
            checkpoint=dict(every={"percent": 1}, keep_last=2),
            log=dict(every={"steps": 50}),
            hardware=hardware.section(),
            deadlines=dict(),
        )
    )


def tokens(corpus: str, split: str = "train", **fields) -> dict:
    """Rows packed from the documents of a prepared corpus."""
    return dict(name="tokens", path=f"data/{corpus}", split=split, **fields)


def pairs(corpus: str, task: str) -> dict:
    """Two texts a row, for next-sentence prediction or sentence order."""
    return dict(name="sentence_pairs", path=f"data/{corpus}", split="train", task=task)


def held_out(corpus: str, **fields) -> dict:
    """Masked-token accuracy on the corpus's split 'test'."""
    return dict(name="masked_accuracy", test=tokens(corpus, "test"), **fields)


def adamw(lr: float, warmup: dict, **fields) -> dict:
    """AdamW with BERT's decay and a linear fall to zero."""
    section = dict(
        name="adamw",
        lr=lr,
        schedule=dict(name="linear", warmup=warmup),
        weight_decay=0.01,
        decay_rules=DECAY_TABLES,
    )
    return section | fields


def model(name: str, variant: str, **fields) -> dict:
    """A published size, with the fields that hardware transforms set."""
    return dict(name=name, variant=variant, scan=False, remat="none", **fields)

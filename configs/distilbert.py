"""DistilBERT from BERT-Base, on the teacher's corpus.

Paper: DistilBERT, arXiv 1910.01108, sections 2 and 3, and the authors' code.
Command: python -m launch.local --config configs/distilbert.py --workdir runs/distilbert
  --config.objective.teacher.path=DIR --config.init_from.path=DIR, where DIR holds BERT-Base with
  its vocabulary head: a run, or a Hugging Face directory.
Cost: not measured here; paper: about 90 hours on 8 V100.
Published: 97 % of BERT-Base's GLUE score (77.0 against 79.5) with 40 % fewer parameters.
Measured: not run.
"""

from configs import bert, hardware, text

TEACHER = "runs/bert_base_phase2"


def get_config(arg=None):
    config = text.base(bert.CORPUS, text.BERT, max_length=512)
    config.batch_size = 4096
    config.duration = {"epochs": 3}
    config.data.examples_per_epoch = 7_000_000  # an estimate, replace it by the corpus's rows
    config.data.source = text.tokens(bert.CORPUS)
    config.model = text.model("distilbert", "base", pool="none")
    config.objective = dict(
        name="distilled_language",
        teacher=dict(
            path=TEACHER,
            model=dict(name="bert", variant="base"),
            objective=dict(name="masked_language", pair="nsp"),
        ),
        masking=dict(rate=0.15),
        temperature=2.0,
        soft_weight=5.0,
        token_weight=2.0,
        cosine_weight=1.0,
    )
    # Every other layer of the teacher; DistilBERT has no token types and no pooler.
    layers = tuple((rf"encoder/blocks_{i}/(.*)", rf"encoder/blocks_{2 * i}/\1") for i in range(6))
    config.init_from = dict(
        path=TEACHER, load=(*layers, ("encoder/embeddings/.*", True), ("head/.*", True)), fresh=()
    )
    config.optimizer = text.adamw(5e-4, {"percent": 5}, b2=0.98, eps=1e-6, clip=5.0)
    config.optimizer.weight_decay = 0.0
    config.evaluators = {"held_out": text.held_out(bert.CORPUS, every={"percent": 1})}
    return hardware.apply(config, arg)

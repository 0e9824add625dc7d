"""A tokenizer of fourteen words, an encoder that looks them up, and files of texts."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import tokenizers
from tokenizers import models, pre_tokenizers

from encoders.config import build
from encoders.data import TextPreprocessing
from encoders.evaluation import EVALUATORS
from encoders.types import Encoded

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["red", "blue", "green", "cat", "dog", "bird", "runs", "sleeps", "eats"]
WORDS += ["not", "very", "today", "here", "there"]


def tokenizer():
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(SPECIAL)
    return made.to_str()


PREPROCESSING = TextPreprocessing(tokenizer=tokenizer(), max_length=12)


class Words(nn.Module):
    """Vectors of words, added up; the one hidden layer is twice them."""

    width: int = 16
    modality = "text"

    @nn.compact
    def __call__(self, ids, *, segments=None, token_types=None, train=False, layers=()):
        table = self.param("words", nn.initializers.normal(1.0), (len(SPECIAL + WORDS), self.width))
        real = jnp.ones(ids.shape, bool) if segments is None else segments > 0
        tokens = table[ids]
        seen = (real & (ids >= len(SPECIAL)))[..., None]
        pooled = (tokens * seen).sum(1)
        return Encoded(tokens, real, pooled, dict.fromkeys(layers, 2 * tokens))


def init(module):
    return module.init(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))


def write(path, rows):
    """A jsonl file of examples, and the section of the source that reads it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(name="text", path=str(path))


def make(name, mesh=None, preprocessing=PREPROCESSING, **fields):
    context = {"preprocessing": preprocessing, "mesh": mesh, "directory": None, "label": "x"}
    return build(EVALUATORS, dict(name=name, **fields), "evaluators.x", **context)

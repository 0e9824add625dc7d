"""A small encoder, objectives around it, and easy data: enough to test every evaluator."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.data import Preprocessing
from encoders.types import Encoded, Outcome

PREPROCESSING = Preprocessing(
    image_size=(8, 8), channels=1, mean=(0.5,), std=(0.25,), crop_fraction=1.0
)
TRAIN = dict(name="synthetic", image_size=(8, 8), channels=1, num_classes=4, num_examples=200)
TEST = {**TRAIN, "num_examples": 51, "seed": 1}


class ToyEncoder(nn.Module):
    """Rows of pixels as tokens, and one more in front; one hidden layer."""

    width: int = 16
    pool: bool = True

    @nn.compact
    def __call__(self, images, *, mask=None, train=False, layers=()):
        rows = images.reshape(images.shape[0], images.shape[1], -1)
        hidden = nn.gelu(nn.Dense(self.width, name="fc1")(rows))
        prefix = jnp.full_like(hidden[:, :1], 100.0)
        hidden = jnp.concatenate([prefix, hidden], 1)
        tokens = nn.Dense(self.width, name="fc2")(hidden)
        seen = jnp.ones(tokens.shape[:2], bool)
        pooled = tokens[:, 1:].reshape(len(tokens), -1) if self.pool else None
        return Encoded(tokens, seen, pooled, dict.fromkeys(layers, hidden), num_prefix=1)


class ToyClassifier(nn.Module):
    encoder: nn.Module
    num_classes: int = 4

    def setup(self):
        self.head = nn.Dense(self.num_classes)

    def logits(self, images):
        return self.head(self.encoder(images).pooled)

    def __call__(self, batch, *, train=False):
        losses = -nn.log_softmax(self.logits(batch["image"]))[:, 0]
        return Outcome(losses.sum(), jnp.float32(len(losses)))


class ToyFiller(nn.Module):
    """Hides the lower half of an image and fills it with a learnt grey."""

    encoder: nn.Module

    def setup(self):
        self.grey = self.param("grey", nn.initializers.zeros, ())

    def __call__(self, batch, *, train=False):
        error = jnp.square(batch["image"][:, 4:] - self.grey).mean((1, 2, 3))
        return Outcome((error * batch["valid"]).sum(), batch["valid"].sum())

    def reconstruct(self, batch):
        images = batch["image"]
        return {
            "target": images,
            "masked": images.at[:, 4:].set(0.0),
            "prediction": images.at[:, 4:].set(self.grey),
        }


def init(module, **kwargs):
    """Variables of an encoder for the toy images."""
    return module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), **kwargs)

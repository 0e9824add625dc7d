"""ModernBERT (arXiv 2412.13663).

Differences from BERT: rotary positions and no token types; norms before attention and MLP, after
the embeddings and at the end, but none before the first attention, which would follow that of the
embeddings; gated MLPs; no biases; attention within a window in two layers of three, with rotary
frequencies of their own; no dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax

from encoders.errors import ConfigError
from encoders.layers.attention import attention_flops
from encoders.layers.local import LocalAttention, local_attention_flops
from encoders.layers.stack import Stack
from encoders.models.bert import BERT, Activation, Pool, TextSize

_KINDS = (False, True)  # whether a kind of layer is local


class ModernBERT(BERT):
    """ModernBERT; attributes as in `BERT`, and of its own:

    Attributes:
      window: how many tokens, half of them on either side, a token sees in local layers.
      global_every: layers 0, global_every, 2 global_every, ... see all tokens.
      local_temperature: `rotary_temperature` of local layers.
    """

    vocab_size: int = 50368
    max_length: int = 8192
    positions: Literal["rotary"] = "rotary"
    rotary_temperature: float = 160000.0
    local_temperature: float = 10000.0
    window: int = 128
    global_every: int = 3
    num_token_types: int = 0
    pool: Pool = "cls"
    mlp: Activation = "geglu"
    pre_norm: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    shared: Literal[False] = False

    # Table 4 of the paper.
    SIZES = {  # noqa: RUF012
        "base": TextSize(768, 22, 1152, 12),
        "large": TextSize(1024, 28, 2624, 16),
    }
    HEAD = {"activation": "gelu", "dense_bias": False, "norm_bias": False}  # noqa: RUF012

    @property
    def kinds(self) -> tuple[int, ...]:
        """For each layer, 0 if it sees all tokens and 1 if it is local."""
        return tuple(int(layer % self.global_every > 0) for layer in range(self.size.depth))

    def flops(self, length: int) -> float:
        """Forward FLOPs for `length` tokens; a multiply-add counts as two, look-ups as nothing."""
        width = self.size.width
        saved = attention_flops(length, length, width) - local_attention_flops(
            length, width, self.window // 2
        )
        return super().flops(length) - sum(self.kinds) * saved

    def _stack(self, size: TextSize) -> Stack:
        if self.window < 2:
            raise ConfigError(f"model.window: {self.window} leaves no token on either side.")
        block = self._block(size)
        return Stack(
            size.depth,
            block,
            scan=self.scan,
            remat=self.remat,
            first=functools.partial(block, attention_norm=False),
            kinds=self.kinds,
        )

    def _attention(self) -> Callable[..., nn.Module]:
        return functools.partial(
            LocalAttention,
            kernel=self.attention_kernel,
            out_bias=self.out_bias,
            reach=self.window // 2,
        )

    def _places(
        self, length: int, segments: jax.Array | None, positions: jax.Array | None
    ) -> dict[str, Any]:
        """What global layers are given, and what local ones are."""
        temperatures = (self.rotary_temperature, self.local_temperature)
        turns = [self._turns(t, length, segments, positions) for t in temperatures]
        kinds = [{"rotary": r, "local": local} for r, local in zip(turns, _KINDS, strict=True)]
        return {"kind_context": kinds}

"""Vision transformer (arXiv 2010.11929), in every published size and the variations that lasted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.attention import Attention
from encoders.layers.block import Block, block_flops
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import weight_init
from encoders.layers.linear import Linear
from encoders.layers.naflex import layout, of_each
from encoders.layers.norm import LayerNorm
from encoders.layers.patch import patch_grid, patchify, strided_grid, strided_patches
from encoders.layers.pooling import AttentionPool, attention_pool_flops, masked_mean
from encoders.layers.position import (
    Resize,
    Rotary,
    positions_at,
    resize_positions,
    rotary2d,
    rotary_of_tokens,
    sincos2d,
)
from encoders.layers.stack import Stack
from encoders.types import Encoded


@dataclasses.dataclass(frozen=True)
class Size:
    """A published size.

    Attributes:
      width: D, the size of a token.
      depth: blocks.
      mlp_dim: hidden size of the MLP.
      num_heads: attention heads.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


# Ti to L and H: arXiv 2010.11929 and 2106.10270; M: timm's 'medium'; g, G: 2106.04560 table 2;
# So400m: 2305.13035; e: 2209.06794; 22B: 2302.05442 (which also has parallel=True, qk_norm=True,
# qkv_bias=False and norm_bias=False). '-opt' widths divide better over accelerators (big_vision).
SIZES = {
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "M": Size(512, 12, 2048, 8),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "So400m": Size(1152, 27, 4304, 16),
    "H": Size(1280, 32, 5120, 16),
    "g": Size(1408, 40, 6144, 16),
    "g-opt": Size(1536, 40, 6144, 16),
    "G": Size(1664, 48, 8192, 16),
    "G-opt": Size(1536, 48, 8192, 16),
    "e": Size(1792, 56, 15360, 16),
    "22B": Size(6144, 48, 24576, 48),
}


class ViT(nn.Module):
    """Vision transformer: patches, positions, blocks, a final norm, and pooling.

    Attributes:
      variant: size and patch, 'B/16'; or the size alone, 'B', with `patch_size` given.
      width, depth, mlp_dim, num_heads: override the variant's.
      patch_size: pixels, (height, width) or one number for both; overrides the variant's.
      patch_stride: pixels from one patch to the next, in both directions; None for the patch's own
        size. Of spectrograms patches overlap (AST, arXiv 2104.01778).
      positions: 'learned' (kept as a grid, resized to other image sizes as timm does), 'sincos2d'
        (fixed), 'rotary2d' (turns queries and keys of the patches), or 'none'.
      sincos: convention of sincos2d, 'mae' or 'big_vision' (see `encoders.layers.position`).
      rotary: options of rotary2d.
      position_grid: (rows, columns) of the learned positions; None for those of the first images.
      position_resize: 'antialias' as timm, 'bilinear' as SigLIP 2 for images at their own aspect
        ratio, or 'plain' as transformers.
      class_token: whether a learned token precedes the patches.
      num_registers: learned tokens after the class token (arXiv 2309.16588).
      pool: 'cls', 'mean' of the patches, 'map' (attention pooling over all tokens), or 'none'.
      norm_after_pool: the final norm is applied to the pooled vector and the tokens stay as the
        last block left them (timm's fc_norm; MAE's fine-tuning).
      pre_norm: a norm before the first block as well, after positions and class token (CLIP).
      patch_bias: whether the patch embedding has a bias.
      crop_rest: pixels at the right and at the bottom that fill no patch are cut off, as strided
        convolutions do (SigLIP So400m/14 at 384); otherwise such images are an error.
      qkv_bias, mlp_bias, norm_bias, norm_eps, layer_scale, qk_norm, parallel, mlp: see `Block`.
      drop_path: rate of the last block, rising linearly from 0.
      dropout: rate after the positions and in the blocks.
      token_drop: share of the patches left out at random in training.
      weight_init: 'trunc_normal', 'mae' or 'big_vision' (see WEIGHT_INITS).
      attention_kernel: 'plain' or 'fused', see `Attention`.
      scan, remat: see `Stack`.
    """

    variant: str = "B/16"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    num_heads: int | None = None
    patch_size: int | tuple[int, int] | None = None
    patch_stride: int | None = None
    positions: Literal["learned", "sincos2d", "rotary2d", "none"] = "learned"
    sincos: Literal["mae", "big_vision"] = "mae"
    rotary: Rotary = Rotary()
    position_grid: tuple[int, int] | None = None
    position_resize: Resize = "antialias"
    class_token: bool = True
    num_registers: int = 0
    pool: Literal["cls", "mean", "map", "none"] = "cls"
    norm_after_pool: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    crop_rest: bool = False
    qkv_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    qk_norm: bool = False
    parallel: bool = False
    mlp: Literal["gelu", "quick_gelu", "gelu_tanh", "swiglu"] = "gelu"
    drop_path: float = 0.0
    dropout: float = 0.0
    token_drop: float = 0.0
    weight_init: str = "trunc_normal"
    attention_kernel: Literal["plain", "fused"] = "plain"
    scan: bool = False
    remat: str = "none"

    modality = "image"
    channels = 3  # that FLOPs are counted for; not a field

    @property
    def size(self) -> Size:
        """The variant's size with this module's overrides.

        Raises:
          ConfigError: the variant is unknown.
        """
        name = self.variant.partition("/")[0]
        if name not in SIZES:
            raise ConfigError(f"model.variant: unknown size '{name}'.{nearest(name, SIZES)}")
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Size)}
        return dataclasses.replace(
            SIZES[name], **{field: value for field, value in given.items() if value is not None}
        )

    @property
    def patch(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels.

        Raises:
          ConfigError: neither `patch_size` nor the variant says it.
        """
        patch = self.patch_size
        if patch is None:
            text = self.variant.partition("/")[2]
            if not text.isdigit() or int(text) == 0:
                raise ConfigError(
                    f"model.variant: '{self.variant}' names no patch size; write "
                    f"'{self.variant.partition('/')[0]}/16' or set model.patch_size."
                )
            patch = int(text)
        return (patch, patch) if isinstance(patch, int) else tuple(patch)

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.class_token) + self.num_registers

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches in an image of (height, width) pixels."""
        if self.patch_stride is not None:
            return strided_grid(image_size, self.patch, (self.patch_stride,) * 2)
        return patch_grid(self._tiled(image_size), self.patch)

    def _tiled(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what patches are cut from."""
        if not self.crop_rest:
            return tuple(image_size)
        return tuple(n // patch * patch for n, patch in zip(image_size, self.patch, strict=True))

    def num_kept(self, image_size: tuple[int, int]) -> int:
        """Patches of an image that are encoded in training, after token dropping.

        Raises:
          ConfigError: none are.
        """
        grid = self.grid(image_size)
        return self._num_kept(grid[0] * grid[1])

    def _num_kept(self, patches: int) -> int:
        kept = patches - round(patches * self.token_drop)
        if kept < 1:
            raise ConfigError(f"model.token_drop: {self.token_drop} leaves no patch of {patches}.")
        return kept

    def flops(self, image_size: tuple[int, int], kept: int | None = None) -> float:
        """Forward FLOPs per image; a multiply-add counts as two, elementwise work as nothing.

        Args:
          image_size: (height, width) in pixels.
          kept: patches that are encoded; None means all.
        """
        size, grid = self.size, self.grid(image_size)
        patches = grid[0] * grid[1] if kept is None else kept
        tokens = patches + self.num_prefix
        total = 2.0 * patches * self.channels * self.patch[0] * self.patch[1] * size.width
        total += size.depth * block_flops(tokens, size.width, size.mlp_dim, self.mlp)
        if self.pool == "map":
            mlp = "gelu" if self.mlp == "swiglu" else self.mlp
            total += attention_pool_flops(tokens, size.width, size.mlp_dim, mlp)
        return total

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        keep: jax.Array | None = None,
        shapes: jax.Array | None = None,
        replace: tuple[jax.Array, jax.Array] | None = None,
        layers: Sequence[int] | Literal["all"] = (),
    ) -> Encoded:
        """Encodes images.

        Args:
          images: [B, H, W, C] float, already normalised.
          mask: [B, N] bool over patches, True where one is real; the others are not attended to.
          train: whether dropout, drop path and token dropping are on.
          keep: [B, K] int32, the patches to encode, in this order; None means all.
          shapes: [B, 2] int32, rows and columns of patches of images that differ in them. `images`
            are then their patches [B, N, ph*pw*C], row after row, channels last, padded to one
            length. Or [B, S, 2] of up to S images in each row, one after another, with (0, 0) for
            none: they do not see each other, and `pooled` is [B, S, D], of no meaning for none.
          replace: (where [B, N] bool, token [D]): patches whose embedding is replaced by `token`
            before positions are added, as masked image modelling with mask tokens does.
          layers: blocks whose outputs to return, negative ones counted from the end, or 'all'.

        Returns:
          Encoded, with prefix tokens first.

        Raises:
          ConfigError: the image does not divide into patches, or fields contradict each other.
        """
        if self.pool == "cls" and not self.class_token:
            raise ConfigError("model.pool: 'cls' needs class_token=True.")
        init, size = weight_init(self.weight_init), self.size
        packed = shapes is not None and shapes.ndim == 3
        native = None
        if shapes is not None:
            self._check_native(packed)
            patches = images
            native = layout(shapes if packed else shapes[:, None], patches.shape[1])
        else:
            grid = self.grid(images.shape[1:3])
            height, width = self._tiled(images.shape[1:3])
            if self.patch_stride is not None:
                patches = strided_patches(images, self.patch, (self.patch_stride,) * 2)
            else:
                patches = patchify(images[:, :height, :width], self.patch)
        batch, count = patches.shape[:2]
        if train and self.token_drop and keep is None:
            noise = jax.random.uniform(self.make_rng("dropout"), (batch, count))
            noise = noise if native is None else noise + (native.segments == 0)  # padding last
            keep = jnp.argsort(noise, axis=1)[:, : self._num_kept(count)]

        # Patches are selected before they are embedded: dropped ones cost nothing.
        x = select(patches, keep)
        x = Linear(size.width, self.patch_bias, init.patch, name="patch_embedding")(x)
        if replace is not None:
            where, token = replace
            x = jnp.where(select(where, keep)[..., None], token.astype(x.dtype), x)
        rotary = None
        if native is not None:
            mask = native.segments > 0 if mask is None else mask & (native.segments > 0)
            if self.positions == "learned":
                learned = self._learned(self.position_grid, init.positions)
                places, sizes = select(native.places, keep), select(native.sizes, keep)
                x = x + positions_at(learned, places, sizes, self.position_resize).astype(x.dtype)
        else:
            positions, rotary = self._positions(grid, init.positions)
            if positions is not None:
                positions = jnp.asarray(positions, x.dtype).reshape(1, count, size.width)
                x = x + (positions if keep is None else positions[0][keep])
        prefix = self._prefix(init.cls_token, size.width)
        if prefix is not None:
            shape = (batch, self.num_prefix, size.width)
            x = jnp.concatenate([jnp.broadcast_to(prefix.astype(x.dtype), shape), x], axis=1)
        if mask is not None:
            real = jnp.ones((batch, self.num_prefix), bool)
            mask = jnp.concatenate([real, select(mask, keep)], axis=1)
        if rotary is not None:
            rotary = rotary_of_tokens(*rotary, self.num_prefix, keep)
        x = Dropout(self.dropout)(x, train=train)
        if self.pre_norm:
            x = LayerNorm(self.norm_eps, self.norm_bias, name="norm_pre")(x)

        stack = Stack(size.depth, self._block(size), self.drop_path, self.scan, self.remat)
        nn.share_scope(self, stack)
        segments = select(native.segments, keep) * mask if packed else None
        seen = {"segments": segments} if packed else {"mask": mask}
        x, hidden = stack(x, **seen, rotary=rotary, train=train, layers=layers)

        norm = LayerNorm(self.norm_eps, self.norm_bias, name="norm")
        if not self.norm_after_pool:
            x = norm(x)
        pooled = self._pool(x, of_each(segments, shapes.shape[1]) if packed else mask, size)
        if self.norm_after_pool and pooled is not None:
            pooled = norm(pooled)
        if mask is None:
            mask = jnp.ones(x.shape[:2], bool)
        return Encoded(x, mask, pooled, hidden, self.num_prefix)

    def _block(self, size: Size) -> functools.partial:
        return functools.partial(
            Block,
            num_heads=size.num_heads,
            mlp_dim=size.mlp_dim,
            mlp=self.mlp,
            qkv_bias=self.qkv_bias,
            mlp_bias=self.mlp_bias,
            norm_bias=self.norm_bias,
            norm_eps=self.norm_eps,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            parallel=self.parallel,
            dropout=self.dropout,
            weight_init=self.weight_init,
            attention=functools.partial(Attention, kernel=self.attention_kernel),
        )

    def _positions(self, grid: tuple[int, int], init) -> tuple:
        """Embeddings [gh, gw, D] to add and (sin, cos) [N, head_dim] to turn by, or None."""
        size = self.size
        if self.positions == "learned":
            learned = self._learned(self.position_grid or grid, init)
            return resize_positions(learned, grid, self.position_resize), None
        if self.positions == "sincos2d":
            return sincos2d(grid, size.width, self.sincos), None
        if self.positions == "rotary2d":
            return None, rotary2d(grid, size.width // size.num_heads, self.rotary)
        if self.positions != "none":
            known = ("learned", "sincos2d", "rotary2d", "none")
            raise ConfigError(
                f"model.positions: unknown '{self.positions}'.{nearest(self.positions, known)}"
            )
        return None, None

    def _learned(self, grid: tuple[int, int] | None, init) -> jax.Array:
        # Read without Linen's shape check: the parameter's own shape says which grid it is for.
        if self.has_variable("params", "positions"):
            return self.get_variable("params", "positions")
        if grid is None:
            raise ConfigError(
                "model.position_grid: images of many shapes do not say how large the grid of the "
                "learned positions is; set it."
            )
        return self.param("positions", init, (*grid, self.size.width))

    def _check_native(self, packed: bool) -> None:
        """Raises a ConfigError where images of many shapes cannot be encoded."""
        if self.positions not in ("learned", "none"):
            raise ConfigError(
                f"model.positions: images of many shapes have 'learned' ones or none, not "
                f"'{self.positions}'."
            )
        if packed and self.num_prefix:
            raise ConfigError(
                "model.class_token, model.num_registers: images that share a row have none."
            )

    def _prefix(self, init, width: int) -> jax.Array | None:
        tokens = []
        if self.class_token:
            tokens.append(self.param("cls_token", init, (width,))[None])
        if self.num_registers:
            tokens.append(self.param("register_tokens", init, (self.num_registers, width)))
        return jnp.concatenate(tokens) if tokens else None

    def _pool(self, x: jax.Array, mask: jax.Array | None, size: Size) -> jax.Array | None:
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "mean":
            patches = slice(self.num_prefix, None)
            if mask is not None and mask.ndim == 3:
                return jax.vmap(masked_mean, (None, 1), 1)(x, mask)
            return masked_mean(x[:, patches], None if mask is None else mask[:, patches])
        if self.pool == "map":
            mlp = "gelu" if self.mlp == "swiglu" else self.mlp
            pooling = AttentionPool(
                size.num_heads, size.mlp_dim, mlp, self.norm_eps, self.weight_init, name="pooling"
            )
            return pooling(x, mask)
        return None


def select(x: jax.Array, keep: jax.Array | None) -> jax.Array:
    """x [B, N, ...] at the indices keep [B, K] of its second axis; all of it if keep is None."""
    if keep is None:
        return x
    return jnp.take_along_axis(x, keep.reshape(*keep.shape, *(1,) * (x.ndim - 2)), axis=1)

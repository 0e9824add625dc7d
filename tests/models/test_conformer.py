"""Conformers: blocks against transformers' wav2vec 2.0 Conformer, and what padding may not change.

Golden values are written by `python -m tools.golden.write_conformer`.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.checkpoints.formats.mapping import flatten
from encoders.errors import ConfigError
from encoders.layers.conformer import ConformerBlock
from encoders.layers.norm import BatchNorm
from encoders.layers.stack import stack_layers
from encoders.layers.two_stream import distance_encodings
from encoders.models.conformer import Conformer
from encoders.rules import unflatten
from tools.golden.inputs import sound, weight

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "conformer.npz"))
WIDTH, LENGTH = 12, 9
BLOCK = ConformerBlock(3, 16, 5, conv_norm="batch")
# Their module -> ours.
LINEAR = {
    "ffn1.intermediate_dense": "first_mlp/fc1",
    "ffn1.output_dense": "first_mlp/fc2",
    "ffn2.intermediate_dense": "second_mlp/fc1",
    "ffn2.output_dense": "second_mlp/fc2",
    "self_attn.linear_q": "attention/query",
    "self_attn.linear_k": "attention/key",
    "self_attn.linear_v": "attention/value",
    "self_attn.linear_out": "attention/out",
    "self_attn.linear_pos": "attention/position",
    "conv_module.pointwise_conv1": "conv/pointwise1",
    "conv_module.pointwise_conv2": "conv/pointwise2",
}
NORM = {
    "ffn1_layer_norm": "norm_first_mlp",
    "ffn2_layer_norm": "norm_second_mlp",
    "self_attn_layer_norm": "norm_attention",
    "conv_module.layer_norm": "norm_conv",
    "conv_module.batch_norm": "conv/norm",
    "final_layer_norm": "norm",
}
OTHERS = {
    "self_attn.pos_bias_u": "attention/content_bias",
    "self_attn.pos_bias_v": "attention/position_bias",
    "conv_module.depthwise_conv.weight": "conv/depthwise/kernel",
}


def convert(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """Path and value of a tensor of theirs."""
    if name in OTHERS:
        return OTHERS[name], x[:, 0].T if x.ndim == 3 else x
    module, _, kind = name.rpartition(".")
    if module in NORM:
        kinds = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
        return f"{NORM[module]}/{kinds[kind]}", x
    if kind == "weight":
        x = x.reshape(x.shape[:2]).T
        if module == "self_attn.linear_pos":  # their sines and cosines take turns
            x = np.concatenate([x[::2], x[1::2]])
    return f"{LINEAR[module]}/{'kernel' if kind == 'weight' else kind}", x


def variables(layer: int) -> dict:
    prefix = f"{layer}."
    flat = dict(convert(k[2:], v) for k, v in GOLDEN.items() if k.startswith(prefix))
    stats = {path: x for path, x in flat.items() if path.endswith(("/mean", "/var"))}
    params = {path: x for path, x in flat.items() if path not in stats}
    return {"params": unflatten(params), "stats": unflatten(stats)}


def test_blocks_are_those_of_transformers():
    distances = distance_encodings(LENGTH, LENGTH, WIDTH, None)
    direction = weight("direction", (2, LENGTH, WIDTH))

    def loss(x, params):
        outputs = []
        for layer in range(2):
            held = {"params": params[layer], "stats": variables(layer)["stats"]}
            outputs.append(BLOCK.apply(held, outputs[-1] if outputs else x, distances=distances))
        return (outputs[-1] * direction).sum(), outputs

    params = [variables(layer)["params"] for layer in range(2)]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, outputs), (by_input, by_params) = compiled(GOLDEN["input"], params)
    for layer, found in enumerate(outputs):
        np.testing.assert_allclose(found, GOLDEN[f"output_{layer}"], atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=5e-5, rtol=1e-4)
    close(by_input, GOLDEN["gradient.input"])
    for name, theirs in GOLDEN.items():
        if name.startswith("gradient.0."):
            path, want = convert(name.removeprefix("gradient.0."), theirs)
            found = by_params[0]
            for key in path.split("/"):
                found = found[key]
            close(found, want)


SIZES = {"width": 12, "depth": 1, "mlp_dim": 16, "num_heads": 3, "num_mels": 8}
VARIANTS = {
    "relative": Conformer(**SIZES),
    "rotary": Conformer(**{**SIZES, "depth": 2}, positions="rotary", scan=True, kernel=4),
    "batch": Conformer(**SIZES, conv_norm="batch", conv_channels=(4, 6)),
}
SAMPLES = np.array([5037, 2011])


def batch(samples: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    mask = np.arange(samples) < SAMPLES[:, None]
    waveform = np.pad(sound(SAMPLES[0]).astype(np.float32) / 32768, ((0, 0), (0, samples - 5037)))
    return np.where(mask, waveform, np.float32(0.6)), mask


@functools.cache
def initial(name: str) -> dict:
    waveform, mask = batch()
    module, hide = VARIANTS[name].clone(scan=False), np.ones((2, 9), bool)
    shapes = jax.eval_shape(
        lambda key: module.init(key, waveform, mask=mask, masked=hide), jax.random.key(0)
    )
    flat = {path: weight(path, x.shape) for path, x in flatten(shapes).items()}
    held = {path: abs(x) if path.endswith("/var") else x for path, x in flat.items()}
    held = unflatten(held)
    return {k: stack_layers(v) if VARIANTS[name].scan else v for k, v in held.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_is_its_clips(name):
    (waveform, mask), held = batch(), initial(name)
    encode = jax.jit(lambda x, m: VARIANTS[name].apply(held, x, mask=m, layers="all"))
    together, alone = encode(waveform, mask), encode(waveform[1:, :2011], None)
    assert sorted(together.hidden) == list(range(VARIANTS[name].depth))
    np.testing.assert_array_equal(together.mask.sum(1), VARIANTS[name].frames(SAMPLES))
    count = alone.tokens.shape[1]
    assert count == VARIANTS[name].frames(2011) == 2
    np.testing.assert_allclose(together.tokens[1, :count], alone.tokens[0], atol=2e-5)
    np.testing.assert_allclose(together.pooled[1], alone.pooled[0], atol=2e-5)


def test_hidden_frames_are_not_heard():
    module, held = VARIANTS["relative"], initial("relative")
    waveform, mask = batch()
    hide = np.zeros((2, 9), bool)
    hide[:, 2:4] = True

    @jax.jit
    def encode(change):
        x, real = module.features(waveform, mask)
        features = x + change * hide[..., None], real
        return module.apply(held, waveform, mask=mask, features=features, masked=hide).tokens

    np.testing.assert_allclose(encode(0.0), encode(3.0), atol=1e-6)


def test_features_have_mean_zero_and_variance_one():
    (x, real) = jax.jit(VARIANTS["relative"].features)(*batch())
    frames = np.asarray(x[0][real[0]]).reshape(-1, 8)[:, :5]  # the others hardly vary
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-3)
    assert not np.asarray(x)[~np.asarray(real)].any()


def test_batch_statistics_are_of_the_real_frames():
    x = np.random.default_rng(0).normal(2, 3, (2, 5, 4)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [3]])
    module = BatchNorm(affine=False)
    held = module.init(jax.random.key(0), x)
    found, moved = jax.jit(
        lambda x: module.apply(held, x, mask=mask, train=True, mutable=["stats"])
    )(np.where(mask[..., None], x, 99))
    real = x[mask]
    np.testing.assert_allclose(moved["stats"]["var"], 0.9 + 0.1 * real.var(0, ddof=1), rtol=1e-5)
    wanted = (real - real.mean(0)) / np.sqrt(real.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(found)[mask], wanted, atol=1e-5)


# In millions; published are 10.3, 30.7 and 118.8 with a decoder (arXiv 2005.08100, table 1), 0.6
# and 1.0 billion (2010.10504), and 2 billion (2303.01037).
@pytest.mark.parametrize(
    ("variant", "millions"),
    [("S", 8.2), ("M", 25.5), ("L", 107.6), ("XL", 606), ("XXL", 1059), ("2B", 1816)],
)
def test_published_sizes(variant, millions):
    clip = jax.ShapeDtypeStruct((1, 16000), jnp.float32)
    shapes = jax.eval_shape(Conformer(variant, scan=True).init, jax.random.key(0), clip)
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes)) / 1e6
    assert count == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_flops_agree_with_xla(positions):
    module = Conformer("L", depth=2, positions=positions, pool="none")
    clip = jax.ShapeDtypeStruct((1, 64_000), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), clip)
    features = jax.eval_shape(module.features, clip)
    forward = jax.jit(lambda v, x, f: module.apply(v, x, features=f).tokens)
    counted = forward.lower(variables, clip, features).cost_analysis()["flops"]
    tokens = module.frames(64_000)
    if positions == "relative":  # distances are projected once for a batch, which is not counted
        counted -= 2 * 2.0 * (2 * tokens - 1) * 512**2
    assert module.flops(64_000) == pytest.approx(counted, rel=0.03)


def test_gradients_in_bfloat16_are_numbers():
    module, (waveform, mask) = VARIANTS["batch"].clone(drop_path=0.1, dropout=0.1), batch()
    held = initial("batch")

    @jax.jit
    def gradients(params, mask):
        def loss(params):
            low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
            out, moved = module.apply(
                {"params": low, "stats": held["stats"]},
                waveform,
                mask=mask,
                masked=jnp.ones((2, 9), bool).at[:, 1:].set(False),
                train=True,
                mutable=["stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.square(out.tokens.astype(jnp.float32)).sum(), (out.tokens, moved["stats"])

        return jax.grad(loss, has_aux=True)(params)

    # Also of a batch with a clip of padding alone, or of nothing else.
    for rows in ([True, True], [True, False], [False, False]):
        found, (tokens, stats) = gradients(held["params"], mask & np.array(rows)[:, None])
        assert tokens.dtype == jnp.bfloat16
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((found, tokens, stats)))
    jax.tree.map(np.testing.assert_array_equal, stats, held["stats"])


def test_refusals():
    with pytest.raises(ConfigError, match="879 samples make no token; 880 do"):
        VARIANTS["relative"].features(np.zeros((1, 879), np.float32))
    with pytest.raises(ConfigError, match="Did you mean 'rotary'"):
        Conformer(positions="rotari")._placed(jnp.zeros((1, 2, 12)), None)
    with pytest.raises(ConfigError, match="conv_norm='batch' cannot be scanned"):
        Conformer(conv_norm="batch", scan=True)._block()

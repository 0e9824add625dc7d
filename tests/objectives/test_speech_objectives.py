"""HuBERT's clusters, BEST-RQ, data2vec and CTC: formulas, exact sums, and what may be seen."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import rules
from encoders.data.characters import Characters
from encoders.errors import CollapseError, ConfigError
from encoders.layers.quantizer import RandomQuantizer
from encoders.layers.stack import stack_layers
from encoders.models.conformer import Conformer
from encoders.models.spectrogram_vit import SpectrogramViT
from encoders.models.whisper import Whisper
from encoders.objectives.best_rq import BestRQ
from encoders.objectives.classification import Classification
from encoders.objectives.cluster_prediction import ClusterPrediction
from encoders.objectives.ctc import CTC, ctc_losses
from encoders.objectives.data2vec import Data2Vec, deviation
from encoders.objectives.guard import Guard, Watch
from encoders.objectives.span_masking import SpanMasking
from encoders.objectives.speech_contrast import SpeechContrast
from encoders.training.step import cast_params
from tests.objectives import speech
from tests.objectives.speech import ENCODER, FRAMES, ROWS, SAMPLES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "speech_losses.npz"
MASKING = SpanMasking(rate=0.5, length=3)
SPECTROGRAM = Whisper(width=12, depth=1, mlp_dim=20, num_heads=2, num_mels=6, pad_to=None)
OBJECTIVES = {
    "cluster_prediction": ClusterPrediction(
        ENCODER,
        num_clusters=7,
        masking=MASKING,
        projection_dim=6,
        unmasked_weight=0.5,
        sample_rate=ENCODER.stride,
        units_per_second=1.0,
    ),
    "best_rq": BestRQ(SPECTROGRAM, masking=MASKING, num_codebooks=2, num_codes=5, code_dim=4),
    "data2vec": Data2Vec(ENCODER, masking=MASKING, top_layers=1),
    "ctc": CTC(
        ENCODER,
        characters=Characters(("<pad>", *"abcde")),
        dropout=0.0,
        time_masking=MASKING,
        channel_masking=SpanMasking(rate=0.5, length=2, min_spans=0),
        freeze_features=False,
    ),
}

DEEP = OBJECTIVES["data2vec"].clone(encoder=ENCODER.clone(depth=2), top_layers=2)


def close(a, b, atol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_are_sums_over_rows_wherever_they_are(name):
    """So parts and devices change nothing. One program for all: rows are left out by `valid`."""
    module = OBJECTIVES[name]
    params, others = speech.variables(module)

    def loss(params, batch):
        rngs = {"corrupt": jax.random.key(3)}
        outcome = module.apply({"params": params, **others}, batch, train=True, rngs=rngs)
        return outcome.loss, outcome.weight

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    batch = speech.batch_of(module)
    whole = grad(params, batch)
    even = np.arange(ROWS) % 2 == 0
    parts = [grad(params, {**batch, "valid": batch["valid"] & rows}) for rows in (even, ~even)]
    turned = grad(params, jax.tree.map(lambda x: x[::-1], batch))
    scale = 1 / whole[0][1]
    for other in (jax.tree.map(jnp.add, *parts), turned):
        close(jax.tree.map(lambda x: x * scale, other), jax.tree.map(lambda x: x * scale, whole))
    assert parts[0][0][1] not in (0, whole[0][1])
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1])) > 1e-2


# --- cluster_prediction ---------------------------------------------------------------------------


def test_clusters_are_told_by_cosines():
    module = OBJECTIVES["cluster_prediction"]
    params, _ = speech.variables(module)
    batch = speech.batch()
    mask = np.zeros((ROWS, FRAMES), bool)
    mask[:, 1:4] = True

    def run(params):
        objective = module.bind({"params": params})
        front = objective.features(batch, energy=True)
        hidden = objective.hidden(mask, batch)
        tokens = objective.encode(batch, features=front[:2], masked=mask).tokens
        return objective.loss(batch, front, hidden), tokens, front[1:]

    run = jax.jit(run)
    outcome, tokens, (real, energy) = jax.device_get(run(params))
    found = tokens @ params["project"]["kernel"] + params["project"]["bias"]
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    clusters = params["embeddings"] / np.linalg.norm(params["embeddings"], axis=1, keepdims=True)
    scores = found @ clusters.T / 0.1
    losses = np.log(np.exp(scores).sum(-1))
    losses -= np.take_along_axis(scores, np.maximum(batch["units"], 0)[..., None], axis=2)[..., 0]
    counts = real & (batch["units"] >= 0) & batch["valid"][:, None]
    expected = (losses * counts * np.where(mask, 1, 0.5)).sum()
    expected += 10 * ((energy * real).sum(1) / real.sum(1) * counts.sum(1)).sum()
    close(outcome.loss, np.float32(expected), 1e-3)
    assert outcome.weight == counts.sum()
    assert outcome.metrics["accuracy"][1] == (counts & mask).sum()
    told = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    shares = told[counts & mask].mean(0)
    total, weight = outcome.metrics["perplexity"]
    close(total / weight, np.float32(np.exp(-(shares * np.log(shares)).sum())))
    assert weight == (counts & mask).sum()

    # One that guesses a single cluster whatever it hears.
    still = {"kernel": np.zeros((12, 6), "f4"), "bias": np.ones(6, "f4")}
    single = np.repeat(np.where(np.arange(7) == 3, 1, -1).astype("f4")[:, None], 6, 1)
    total, weight = run({**params, "project": still, "embeddings": single})[0].metrics["perplexity"]
    close(total / weight, np.float32(1), 1e-3)
    watch = Watch(Guard({"perplexity": 2.0}, patience=1), module.advice)
    with pytest.raises(CollapseError, match="guesses what is most frequent of whatever it hears"):
        watch.look(1, {"perplexity": float(total / weight)})


def test_units_of_another_rate_are_those_of_the_time():
    """100 per second for frames of 20 ms: every other one; and none behind the last."""
    units = {"units": np.arange(9, dtype=np.int32)[None]}
    found = ClusterPrediction(
        ENCODER, num_clusters=9, sample_rate=50 * ENCODER.stride, units_per_second=100.0
    ).units_of(units, 6)
    np.testing.assert_array_equal(found[0], [0, 2, 4, 6, 8, -1])


# --- best_rq --------------------------------------------------------------------------------------


def test_codes_are_those_of_the_nearest_entries():
    _, others = speech.variables(OBJECTIVES["best_rq"])
    constants = others["constants"]["quantizer"]
    x = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    quantizer = RandomQuantizer(2, 5, 4)
    codes = quantizer.apply({"constants": constants}, x)
    for book in range(2):
        found = x @ constants["projection"][book]
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        entries = constants["codebook"][book]
        entries = entries / np.linalg.norm(entries, axis=1, keepdims=True)
        distance = np.linalg.norm(found[:, None] - entries, axis=-1)
        np.testing.assert_array_equal(codes[:, book], distance.argmin(1))


def test_what_makes_targets_is_random_by_the_seed_and_is_not_trained():
    x = np.zeros((1, 3), np.float32)
    made = [RandomQuantizer().init(jax.random.key(seed), x)["constants"] for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(made[0], made[1])
    assert not np.array_equal(made[1]["codebook"], made[2]["codebook"])
    assert made[0]["projection"].std() == pytest.approx(np.sqrt(2 / 19), rel=0.3)
    params, _ = speech.variables(OBJECTIVES["best_rq"])
    assert not any("quantizer" in path for path in rules.leaf_paths(params))


def test_hidden_frames_of_a_spectrogram_do_not_reach_the_scores():
    module = OBJECTIVES["best_rq"]
    batch = speech.batch_of(module)
    params, _ = speech.variables(module)
    mask = np.zeros((ROWS, 19), bool)
    mask[:, 1:3] = True
    real = np.ones(mask.shape, bool)

    def scores(x):
        objective = module.bind({"params": params})
        keys = jax.random.split(jax.random.key(0), ROWS)
        return objective.scores(batch, (x, real), objective.hidden(mask, batch), keys)

    scores = jax.jit(scores)
    x = np.random.default_rng(0).normal(size=(ROWS, 19, 12)).astype(np.float32)
    first = scores(x)[:, :2]
    np.testing.assert_array_equal(first, scores(np.where(mask[..., None], 1e4, x))[:, :2])
    assert np.abs(first - scores(x + ~mask[..., None])[:, :2]).max((1, 2, 3)).min() > 1e-4


# --- other encoders -------------------------------------------------------------------------------

CONFORMER = Conformer(width=12, depth=1, mlp_dim=20, num_heads=2, num_mels=8)
PATCHES = SpectrogramViT(
    width=16, depth=1, mlp_dim=24, num_heads=2, max_frames=16, num_mels=32, patch_size=8
)


@pytest.mark.parametrize(
    "module",
    [
        BestRQ(PATCHES),
        ClusterPrediction(CONFORMER, num_clusters=7, feature_penalty=0.0),
        SpeechContrast(CONFORMER, feature_penalty=0.0),
        Data2Vec(CONFORMER, top_layers=1),
        Data2Vec(CONFORMER.clone(scan=True), top_layers=1),
    ],
)
def test_other_encoders_have_a_token_for_every_feature(module):
    """And no class token before them: what is told of a frame would be the one before's."""
    batch, shapes = clips(module), jax.eval_shape
    variables = shapes(functools.partial(module.init, train=True), jax.random.key(0), batch)
    tokens = shapes(functools.partial(module.apply, batch=batch, method="encode"), variables).tokens
    features = shapes(functools.partial(module.apply, batch=batch, method="features"), variables)
    assert tokens.shape[:2] == features[1].shape
    assert features[0].shape[2] == getattr(module.encoder, "feature_dim", features[0].shape[2])
    assert module.flops(batch["waveform"].shape[1]) > 0


def clips(module):
    return speech.batch(1 if module.encoder is ENCODER else 16)


@pytest.mark.parametrize(
    "module, message",
    [
        (BestRQ(ENCODER), "frames of a spectrogram, and Wav2Vec2 learns"),
        (ClusterPrediction(CONFORMER, num_clusters=7), "feature_penalty: Conformer hears by a spe"),
        (SpeechContrast(SPECTROGRAM), "feature_penalty: Whisper hears by a spectrogram"),
        (Data2Vec(PATCHES, top_layers=1), "SpectrogramViT has no vector that stands for hidden"),
        (BestRQ(PATCHES.clone(token_drop=0.5)), "token_drop: 0.5 leaves out patches"),
        *(
            (module.clone(masking=SpanMasking(rate=0)), "masking.rate: 0 selects no frame to hide")
            for module in (*OBJECTIVES.values(), SpeechContrast(ENCODER))
            if not isinstance(module, CTC)
        ),
    ],
)
def test_what_does_not_fit_is_said(module, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(functools.partial(module.init, train=True), jax.random.key(0), clips(module))


# --- data2vec -------------------------------------------------------------------------------------


def test_targets_are_of_the_teachers_upper_layers_and_have_no_gradient():
    """Scanned or not, of everything that is no padding."""
    module, batch = DEEP, speech.batch()
    params, _ = speech.variables(module)
    other = jax.tree.map(lambda x: x[::-1].copy(), params["encoder"]["blocks_1"])
    teacher = {"params": {**params, "encoder": {**params["encoder"], "blocks_1": other}}}

    def targets(teacher, module):
        objective = module.bind({"params": params, "teacher": teacher})
        features = objective.features(batch)[:2]
        objective.encode(batch, features=features)
        return objective.targets(batch, features), features[1]

    def total(teacher):
        return targets(teacher, module)[0].sum()

    found, real = jax.jit(functools.partial(targets, module=module))(teacher)
    encoder = module.encoder

    def outputs(params):
        _, kept = encoder.apply(
            {"params": params},
            batch["waveform"],
            mask=np.arange(SAMPLES) < batch["length"][:, None],
            capture_intermediates=lambda m, _: m.name == "mlp",
        )
        return [kept["intermediates"][f"blocks_{i}"]["mlp"]["__call__"][0] for i in range(2)]

    expected = np.zeros(found.shape)
    for layer in jax.device_get(jax.jit(outputs)(teacher["params"]["encoder"])):
        for row in range(ROWS):
            x = layer[row][real[row]]
            expected[row][real[row]] += (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) / 2
    close(np.where(real[..., None], found, 0), expected.astype(np.float32), 1e-4)
    slopes = jax.jit(jax.grad(total))(teacher)
    assert all(not leaf.any() for leaf in jax.tree.leaves(slopes))


def test_scanned_blocks_give_the_same_targets():
    module, batch = DEEP, speech.batch()
    params, _ = speech.variables(module)
    scanned = module.clone(encoder=module.encoder.clone(scan=True))

    def loss(params, module):
        return module.apply({"params": params}, batch).loss

    expected = jax.jit(functools.partial(loss, module=module))(params)
    found = jax.jit(functools.partial(loss, module=scanned))(stack_layers(params))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_deviations_are_of_the_frames_that_count():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.random((3, 5)) < 0.5
    expected = np.sqrt(x[weights].var(0, ddof=1) + 1e-6).mean()
    np.testing.assert_allclose(deviation(x, weights.astype(np.float32)), expected, rtol=1e-5)


# --- ctc ------------------------------------------------------------------------------------------


def test_ctc_matches_pytorch():
    """Losses and gradients; what has no room has no loss and no gradient, rather than infinity."""
    arrays = dict(np.load(GOLDEN))
    given = {k.removeprefix("ctc/"): v for k, v in arrays.items() if k.startswith("ctc/")}
    real = np.arange(9) < given["frames"][:, None]

    def total(logits):
        losses, feasible = ctc_losses(logits, real, given["targets"], given["lengths"])
        return losses.sum(), (losses, feasible)

    grad = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (losses, feasible)), gradients = grad(given["logits"])
    np.testing.assert_array_equal(feasible, [True, True, False, True, True])
    close(losses, given["losses"], 1e-4)
    close(gradients, given["gradients"], 1e-4)


def test_the_head_is_trained_alone_at_first_and_convolutions_maybe_never():
    module = OBJECTIVES["ctc"].clone(head_only_steps=5, freeze_features=True)
    params, _ = speech.variables(OBJECTIVES["ctc"])
    frozen = rules.without(module.frozen, params)
    assert not jax.tree.leaves(frozen["encoder"]["convolutions"])
    assert len(jax.tree.leaves(frozen["encoder"]["projection"])) == 3

    def loss(params, step):
        return module.apply({"params": params}, {**speech.batch(), "step": step}, train=True).loss

    grad = jax.jit(jax.grad(loss))
    first, later = grad(params, 4), grad(params, 5)
    assert not any(leaf.any() for leaf in jax.tree.leaves(first["encoder"]))
    close(first["head"], later["head"], 1e-4)
    assert all(leaf.any() for leaf in jax.tree.leaves(later["encoder"]["positions"]))


def test_frames_and_channels_are_hidden_in_training_only(monkeypatch):
    module = OBJECTIVES["ctc"]
    real = np.arange(FRAMES) < np.arange(10, 10 + ROWS)[:, None]
    masks = module.apply({}, speech.batch(), real, method="masks")
    assert 0.2 < np.asarray(masks["masked"])[real].mean() < 0.7
    assert not np.asarray(masks["masked"])[~real].any()
    channels = np.asarray(masks["masked_channels"])
    assert channels.shape == (ROWS, 12)
    assert 0.2 < channels.mean() < 0.7
    assert len(np.unique(channels, axis=0)) > 8

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(CTC, "masks", never)
    params, _ = speech.variables(module)
    evaluate = functools.partial(jax.eval_shape, module.apply, {"params": params}, speech.batch())
    assert evaluate().loss.shape == ()
    with pytest.raises(AssertionError):
        jax.eval_shape(
            functools.partial(module.apply, train=True), {"params": params}, speech.batch()
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_float32_whatever_computes(name):
    """CTC in 16 bits is not a number: speechbrain#1803. And blocks may be scanned and rebuilt."""
    module = OBJECTIVES[name]
    module = module.clone(encoder=module.encoder.clone(scan=True, remat="full"))
    batch, shapes = speech.batch_of(module), jax.eval_shape
    variables = dict(shapes(module.init, jax.random.key(0), batch))
    cast = shapes(functools.partial(cast_params, dtype=jnp.bfloat16), variables.pop("params"))

    def loss(params, others, key):
        return module.apply(
            {"params": params, **others}, batch, train=True, rngs={"corrupt": key, "dropout": key}
        )

    outcome = shapes(loss, cast, variables, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(outcome)} == {jnp.dtype(jnp.float32)}
    encode = functools.partial(module.apply, batch=batch, method="encode")
    tokens = shapes(encode, {"params": cast, **variables}).tokens
    assert tokens.dtype == jnp.bfloat16


def test_ctc_needs_a_vocabulary():
    with pytest.raises(ConfigError, match="'ctc' needs the vocabulary of its transcripts"):
        jax.eval_shape(CTC(ENCODER).init, jax.random.key(0), speech.batch())


def test_flops_count_what_has_no_backward_pass_a_third():
    samples = SAMPLES
    heard = ENCODER.feature_flops(samples)
    ctc = OBJECTIVES["ctc"]
    frozen = ctc.clone(freeze_features=True).flops(samples)
    assert frozen == pytest.approx(ctc.flops(samples) - heard * 2 / 3)
    data2vec = OBJECTIVES["data2vec"]
    told = 2.0 * data2vec.masking.slots(ENCODER.frames(samples)) * 12 * 12
    rest = ENCODER.flops(samples) - heard
    assert data2vec.flops(samples) == pytest.approx(heard + rest * 4 / 3 + told)


def test_sound_is_classified():
    """A clip's class, whatever pads it; and what is of pictures is refused."""
    module = Classification(ENCODER, num_classes=7, head_init=0.3)
    batch = {**speech.batch(), "label": np.arange(ROWS, dtype=np.int32) % 7}
    shapes = jax.eval_shape(module.init, jax.random.key(0), batch)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)
    score = jax.jit(functools.partial(module.apply, method="logits"))
    mask = np.arange(SAMPLES) < batch["length"][:, None]
    logits = score(variables, batch["waveform"], mask=mask)
    alike = score(variables, np.where(mask, batch["waveform"], 1.0), mask=mask)
    np.testing.assert_allclose(alike, logits, atol=1e-5)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(variables):
        outcome = module.apply(variables, batch, train=True, rngs={"dropout": jax.random.key(0)})
        return outcome.loss, outcome

    gradient, outcome = step(variables)
    losses = -jax.nn.log_softmax(logits)[np.arange(ROWS), batch["label"]]
    np.testing.assert_allclose(outcome.loss, (losses * batch["valid"]).sum(), rtol=1e-4)
    assert np.abs(gradient["params"]["encoder"]["convolutions"]["conv_0"]["kernel"]).max() > 0
    assert module.flops(SAMPLES) == ENCODER.flops(SAMPLES) + 2 * 12 * 7
    assert Classification(PATCHES, num_classes=7).flops(SAMPLES) > PATCHES.flops(SAMPLES)
    mixed = module.clone(mixup=0.2)
    with pytest.raises(ConfigError, match="mixup and cutmix are of images; set both to 0"):
        jax.eval_shape(functools.partial(mixed.apply, train=True), variables, batch)

"""Encoders of speech that transformers wrote: outputs, hidden states, gradients, heads, both ways.

Written by `python -m tools.golden.write_speech`; read here without PyTorch.
"""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import round_trip

import encoders
from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError
from encoders.layers.quantizer import GumbelQuantizer
from encoders.models import MODELS

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "speech"
NAMES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
ATOL = 1e-5
OLD = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


def load_config(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return dict(file)


def group(name, prefix):
    found = expected(name)
    return {k.removeprefix(prefix): x for k, x in found.items() if k.startswith(prefix)}


@functools.cache
def run(name):
    """Features and outputs, those with hidden frames, and gradients of a function of the last."""
    encoder, given = load(name), group(name, "inputs/")
    waveform, mask = given["waveform"], given["mask"] == 1
    cotangent = expected(name)["cotangents/tokens"]

    def loss(params):
        def apply(**options):
            return encoder.module.apply({"params": params}, waveform, mask=mask, **options)

        features = encoder.module.apply(
            {"params": params}, waveform, mask, method=encoder.module.features
        )
        masked = apply(features=features, masked=given["hidden"]).tokens
        return (masked * cotangent).sum(), (features, apply(layers="all"), masked)

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, found), gradients = compiled(encoder.variables["params"])
    return found, gradients


def real(name, x):
    """Of [..., B, T, D] what stands on real frames."""
    return np.asarray(x)[..., expected(name)["inputs/frames"], :]


@pytest.mark.parametrize("name", NAMES)
def test_features_outputs_and_every_layer(name):
    (features, out, masked), want = run(name)[0], group(name, "outputs/")
    np.testing.assert_array_equal(features[1], expected(name)["inputs/frames"])
    np.testing.assert_array_equal(out.mask, features[1])
    hidden = np.stack([out.hidden[layer] for layer in (0, 1)])
    pairs = {"features": features[0], "hidden": hidden, "tokens": out.tokens}
    pairs["masked_tokens"] = masked
    assert set(want) == set(pairs)
    for key, got in pairs.items():
        np.testing.assert_allclose(
            real(name, got), real(name, want[key]), rtol=0, atol=ATOL, err_msg=key
        )


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tmp_path):
    # Written as if they were weights: under the names of transformers.
    carrier = dataclasses.replace(load(name), variables={"params": run(name)[1]})
    encoders.save(carrier, tmp_path / "out", format="hf")
    ours, theirs = files.read_tensors(tmp_path / "out"), group(name, "gradients/")
    theirs = {old_style(key): value for key, value in theirs.items()}
    assert set(ours) == set(theirs)
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=2e-5, err_msg=key)


def old_style(key):
    for old, new in OLD.items():
        key = key.replace(new, old)
    return key


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same_bits(name, tmp_path):
    encoder = load(name)
    before = {old_style(k): x for k, x in files.read_tensors(GOLDEN / name).items()}
    own = {"encoders", "bos_token_id", "eos_token_id"}
    again = round_trip.export(
        encoder, GOLDEN / name, before, own, tmp_path / "out", heads=bool(encoder.heads)
    )
    assert again.preprocessing == encoder.preprocessing
    assert again.objective == encoder.objective


def test_parameters_of_published_sizes_are_those_of_transformers():
    counts = json.loads((GOLDEN / "parameters.json").read_text())
    for name, variants in counts.items():
        for variant, count in variants.items():
            module = MODELS[name](variant, scan=True)
            waveform = jax.ShapeDtypeStruct((1, 400), jnp.float32)
            tree = jax.eval_shape(module.init, jax.random.key(0), waveform)
            assert sum(x.size for x in jax.tree.leaves(tree["params"])) == count, (name, variant)


LETTERS = [name for name in NAMES if load_config(name)["architectures"][0].endswith("CTC")]


@pytest.mark.parametrize("name", LETTERS)
def test_letter_models_score_characters(name):
    encoder, want = load(name), group(name, "heads/")
    assert encoder.objective == {"name": "ctc", "dropout": 0.0}
    assert encoder.preprocessing.opened.tokens[4:] == ("|", "A", "B", "C")
    head, (_, out, _) = encoder.heads["head"], run(name)[0]
    logits = np.asarray(out.tokens) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(real(name, logits), real(name, want["logits"]), rtol=0, atol=2e-5)


def test_quantizers_and_projections_are_read():
    encoder, want = load("wav2vec2_layer"), group("wav2vec2_layer", "heads/")
    sizes = {"groups": 2, "entries": 5, "width": 6}
    assert encoder.objective["quantizer"] == sizes
    assert encoder.objective["projection_dim"] == 7
    quantizer = GumbelQuantizer(**sizes)
    (features, _, masked), heads = run("wav2vec2_layer")[0], encoder.heads
    quantized = quantizer.apply({"params": heads["quantizer"]}, features[0]).vectors
    for x, head, key in (
        (quantized, "project_target", "projected_quantized_states"),
        (masked, "project_hidden", "projected_states"),
    ):
        found = np.asarray(x) @ heads[head]["kernel"] + heads[head]["bias"]
        expected = want[f"eval/{key}"]
        np.testing.assert_allclose(
            real("wav2vec2_layer", found), real("wav2vec2_layer", expected), rtol=0, atol=2e-5
        )


# --- other ways to write the same, and what is refused --------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """Copies a golden directory, with its config, files and the names of its tensors changed."""

    def make(name, config=None, rename=lambda key: key, without=(), **contents):
        directory = round_trip.copy(GOLDEN / name, tmp_path / name, config, rename)
        for file in ("vocab.json", "preprocessor_config.json"):
            if (GOLDEN / name / file).exists() and file not in without:
                (directory / file).write_bytes((GOLDEN / name / file).read_bytes())
        for stem, content in contents.items():
            files.write_json(directory / f"{stem}.json", content)
        return directory

    return make


def test_both_styles_of_weight_norm_and_files_of_an_encoder_alone(copy):
    def rename(key):
        return old_style(key.removeprefix("wav2vec2."))

    assert any("parametrizations" in key for key in files.read_tensors(GOLDEN / "wav2vec2"))
    found = encoders.load(copy("wav2vec2", rename=rename))
    assert found.module == load("wav2vec2").module
    chex.assert_trees_all_equal(found.variables, load("wav2vec2").variables)


def test_a_model_that_was_made_without_masks_has_zeros_for_them(copy):
    def rename(key):
        return None if key == "masked_spec_embed" else key

    found = encoders.load(copy("hubert", rename=rename))
    assert not np.any(found.variables["params"]["projection"]["mask_embedding"])


def test_what_the_feature_extractor_says(copy):
    extractor = {"do_normalize": False, "sampling_rate": 8000}
    without = ["preprocessor_config.json"]
    given = {"processor_config": {"feature_extractor": extractor}}  # transformers 5's processors
    found = encoders.load(copy("wav2vec2_ctc", without=without, **given))
    assert not found.module.normalize_waveform
    assert (found.preprocessing.sample_rate, found.preprocessing.min_samples) == (8000, 30)
    assert found.preprocessing.units_per_second == 400
    assert load("wav2vec2_ctc").module.normalize_waveform
    assert not load("hubert").module.normalize_waveform
    missing = encoders.load(copy("hubert_ctc", without=without))
    assert missing.module.normalize_waveform
    assert missing.preprocessing is None
    assert missing.metadata["no_preprocessing"] == "the directory has no preprocessor_config.json"
    assert missing.heads == {}


def numbered(*tokens):
    return {token: number for number, token in enumerate(tokens)}


def test_phones_are_read_and_written(copy, tmp_path):
    vocab = numbered("<pad>", "<s>", "</s>", "<unk>", "n", "t", "tʃ", "aɪ")
    found = encoders.load(copy("wav2vec2_ctc", without=["vocab.json"], vocab=vocab))
    assert found.preprocessing.opened.decode([6, 6, 7, 4]) == "tʃ aɪ n"
    encoders.save(found, tmp_path / "out", format="hf", heads=True)
    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == vocab
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "Wav2Vec2PhonemeCTCTokenizer"


@pytest.mark.parametrize(
    "vocab, reason",
    [
        (None, "letters that no vocab.json spells"),
        ({"<pad>": 0, "A": 1}, "letters of which vocab.json spells 2, where there are 8"),
        ({"<pad>": 0, "A": None}, "letters of which vocab.json spells 1, where there are 8"),
        (numbered("<pad>", *"ABCDE", "|", "GH"), "letters of more than one character"),
        (numbered("A", "<pad>", *"BCDEFG"), "letters without <pad> as the blank"),
    ],
)
def test_letters_that_cannot_be_read_are_left_out_and_said(copy, vocab, reason):
    given = {} if vocab is None else {"vocab": vocab}
    found = encoders.load(copy("wav2vec2_ctc", without=["vocab.json"], **given))
    assert found.heads == {}
    assert found.metadata["dropped"]["lm_head.weight"].startswith(reason)


@pytest.mark.parametrize(
    "name, config, message",
    [
        ("wav2vec2", {"model_type": "wav2vec"}, "'wav2vec' is not supported. Did you mean 'wav2"),
        ("wav2vec2", {"model_type": "wavlm"}, "model_type 'wavlm' is not supported"),
        ("wav2vec2", {"feat_extract_norm": "batch"}, "feat_extract_norm='batch' is not supported"),
        ("wav2vec2", {"feat_extract_activation": "relu"}, "only 'gelu'"),
        ("wav2vec2", {"add_adapter": True}, "add_adapter=True is not supported, only False"),
        ("wav2vec2", {"adapter_attn_dim": 16}, "adapter_attn_dim=16 is not supported, only None"),
        ("hubert", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True is not supported"),
        ("hubert", {"conv_dim": [8, 16, 8]}, r"conv_dim=\[8, 16, 8\] is not supported, only one"),
        ("hubert", {"conv_kernel": [10, 3]}, "only one size for each of the 2 convolutions"),
        ("hubert", {"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
        ("wav2vec2", {"num_hidden_layers": 1}, "unknown: encoder.layers.1.attention.k_proj.bias"),
        ("wav2vec2", {"architectures": 5}, "architectures=5 in config.json makes no sense"),
        ("wav2vec2", {"model_type": ["wav2vec2"]}, r"model_type '\['wav2vec2'\]' is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(copy, name, config, message):
    with pytest.raises(CheckpointError, match=message):
        encoders.load(copy(name, config))


def test_files_that_lack_something_say_what(copy):
    gone = ("masked_spec_embed", "feature_projection.projection.weight")

    def rename(key):
        return None if key.endswith(gone) else key

    with pytest.raises(CheckpointError, match=r"missing: feature_projection\.projection\.weight"):
        encoders.load(copy("wav2vec2", rename=rename))
    odd = {"preprocessor_config": {"sampling_rate": "16k"}}
    with pytest.raises(CheckpointError, match="sampling_rate='16k' in preprocessor_config"):
        encoders.load(copy("hubert", **odd))


@pytest.mark.parametrize(
    "name, fields, message",
    [
        (
            "wav2vec2",
            {"feature_norm": False},
            "feature_norm=False cannot be expressed for wav2vec2",
        ),
        ("data2vec", {"pre_norm": True}, "pre_norm=True cannot be expressed for data2vec-audio"),
        ("data2vec", {"conv_norm": "group"}, "conv_norm='group' cannot be expressed"),
    ],
)
def test_what_a_family_has_not_is_refused(name, fields, message, tmp_path):
    round_trip.refused(load(name), fields, message, tmp_path / "out")


def test_goldens_are_small():
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*")) < 700_000

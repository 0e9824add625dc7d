"""Encoders of raw speech out, against transformers itself (`make parity`; needs PyTorch)."""

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers

import encoders
from encoders.config import build
from encoders.data.audio import AudioPreprocessing
from encoders.models import MODELS
from encoders.speech import SpeechEncoder

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)
CLIPS = RNG.normal(0.1, 0.3, (2, 403)).astype(np.float32)
MASK = np.arange(403) < np.array([403, 290])[:, None]
SIZES = dict(width=24, depth=2, mlp_dim=48, num_heads=3, conv_dim=16, position_groups=4)
SIZES |= dict(conv_kernels=(10, 3, 2), conv_strides=(5, 2, 2), position_kernel=8)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("wav2vec2", {}),
        ("wav2vec2", {"variant": "large", "normalize_waveform": True}),
        ("hubert", {"feature_norm": False}),
        ("hubert", {"variant": "xlarge", "normalize_waveform": True}),
        ("data2vec_audio", {"position_kernel": 3, "position_depth": 2}),
    ],
)
def test_exported_encoders_load_in_transformers(name, fields, tmp_path):
    module = build(MODELS, {"name": name, **SIZES, **fields}, "model")
    params = jax.jit(module.init)(jax.random.key(0), CLIPS)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * RNG.normal(size=x.shape).astype("f4"), params)
    head = {"kernel": RNG.normal(size=(24, 32)).astype("f4"), "bias": np.ones(32, "f4")}
    preprocessing = AudioPreprocessing(
        characters="letters", min_samples=30, samples_per_frame=20, units_per_second=800
    )
    letters = {"objective": {"name": "ctc"}, "heads": {"head": head}}
    encoder = SpeechEncoder(module, {"params": params}, preprocessing, **letters)
    encoders.save(encoder, tmp_path / "out", format="hf", heads=True)
    kind = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, kind).from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    # Where its convolutions have layer norms and positions one layer, padding changes nothing.
    padded = module.size.conv_norm == "layer" and name != "data2vec_audio"
    mask = MASK if padded else None
    clips = [clip[:n] for clip, n in zip(CLIPS, MASK.sum(1) if padded else (403, 403), strict=True)]
    given = processor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**given).logits.numpy()
    out = encoder(CLIPS, mask=mask)
    ours = np.asarray(out.tokens @ head["kernel"] + head["bias"])
    np.testing.assert_allclose(ours[out.mask], logits[out.mask], rtol=0, atol=1e-4)
    ids = logits.argmax(-1)
    expected = encoder.preprocessing.opened.decode(ids[0][np.asarray(out.mask[0])])
    written = re.sub("<[^<>]*>", "", processor.batch_decode(ids[:1])[0])
    assert written.split() == expected.split()

"""wav2vec 2.0's pre-training step in PyTorch, for `tools.benchmark_peers`: transformers' model.

Its masks and negatives are drawn once, before any step is timed, as a data loader would draw them
beside the step; ours draws its own within it. It leaves a layer out for a whole batch, and saves
its time, where ours does so clip by clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from encoders.errors import ConfigError
from encoders.models.wav2vec2 import Wav2Vec2


def speech_spec(experiment: Any, batch_size: int) -> dict[str, Any]:
    """What the peer must build, as plain JSON.

    Raises:
      ConfigError: the encoder is none that it has.
    """
    objective, encoder = experiment.objective, experiment.objective.encoder
    if type(encoder) is not Wav2Vec2 or encoder.mlp != "gelu":
        raise ConfigError(
            f"--peer transformers is compared on Wav2Vec2 with mlp 'gelu', not on "
            f"{type(encoder).__name__} with '{encoder.mlp}'."
        )
    size, samples = encoder.size, experiment.preprocessing.max_samples
    return {
        "peer": "transformers",
        "batch_size": batch_size,
        "samples": samples,
        "frames": int(encoder.frames(samples)),
        "mask": [objective.masking.rate, objective.masking.length],
        "config": {
            "hidden_size": size.width,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.num_heads,
            "intermediate_size": size.mlp_dim,
            "hidden_act": "gelu",
            "hidden_dropout": encoder.dropout,
            "attention_dropout": encoder.attention_dropout,
            "activation_dropout": encoder.mlp_dropout,
            "feat_proj_dropout": encoder.input_dropout,
            "layerdrop": encoder.layer_drop,
            "layer_norm_eps": encoder.norm_eps,
            "feat_extract_norm": size.conv_norm,
            "conv_dim": [encoder.conv_dim] * len(encoder.conv_kernels),
            "conv_kernel": list(encoder.conv_kernels),
            "conv_stride": list(encoder.conv_strides),
            "conv_bias": size.conv_bias,
            "num_conv_pos_embeddings": encoder.position_kernel,
            "num_conv_pos_embedding_groups": encoder.position_groups,
            "do_stable_layer_norm": size.pre_norm,
            "num_negatives": objective.num_negatives,
            "contrastive_logits_temperature": objective.logit_temperature,
            "diversity_loss_weight": objective.diversity_weight,
            "feat_quantizer_dropout": objective.feature_dropout,
            "num_codevector_groups": objective.quantizer.groups,
            "num_codevectors_per_group": objective.quantizer.entries,
            "codevector_dim": objective.quantizer.width,
            "proj_codevector_dim": objective.projection_dim,
        },
        "dtype": str(experiment.compute_dtype),
        "clip": experiment.sections.optimizer.get("clip"),
    }


def speech_model(spec: Mapping[str, Any], torch: Any, device: Any) -> tuple[Any, Callable, Any]:
    """The model, its loss of waveforms, and these: full crops of noise."""
    import numpy as np
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2 import modeling_wav2vec2 as theirs

    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**spec["config"]))
    np.random.seed(0)  # noqa: NPY002 (theirs)
    shape = (spec["batch_size"], spec["frames"])
    mask = theirs._compute_mask_indices(shape, *spec["mask"], min_masks=2)
    negatives = theirs._sample_negative_indices(shape, model.config.num_negatives, mask)
    count = float(mask.sum())
    mask, negatives = (torch.from_numpy(x).to(device) for x in (mask, negatives))
    given = {"mask_time_indices": mask.bool(), "sampled_negative_indices": negatives}
    waveforms = 0.1 * torch.randn((spec["batch_size"], spec["samples"]), device=device)
    return model, lambda waveforms: model(waveforms, **given).loss / count, waveforms

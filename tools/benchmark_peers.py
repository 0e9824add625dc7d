"""The same training step in PyTorch, in a process of its own: what `tools.benchmark` compares to.

    python -m tools.benchmark_peers '{"peer": "timm", ...}'

Speaks in JSON lines: first a description of itself once it is warm; then, for every number n read
from stdin, the seconds and the processor seconds that n steps took. A closed stdin ends it. The
step is what a plain training script does: zero_grad, forward, loss, backward, gradient clipping if
the config has it, AdamW; in eager mode on the CPU with as many threads as cores, under
torch.compile on a GPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from encoders.errors import ConfigError, EncodersError, exit_cleanly
from encoders.models.bert import BERT
from encoders.models.clip_text import CLIPText
from encoders.models.roberta import RoBERTa
from encoders.models.vit import ViT
from encoders.objectives.classification import Classification
from encoders.objectives.image_text import ImageTextObjective
from encoders.objectives.masked_image import MaskedImage
from encoders.objectives.masked_language import MaskedLanguage
from encoders.objectives.speech_contrast import SpeechContrast
from encoders.parallel.host import retain_freed_memory
from tools.benchmark_peer_speech import speech_model, speech_spec

PEERS = ("timm", "transformers", "open_clip")
_PACKAGES = {"open_clip": "open_clip_torch"}  # named otherwise than what is imported
# The image towers of SigLIP that timm, which open_clip takes them from, knows by name.
_SIGLIPS = {(768, 16): "vit_base_patch16_siglip_224", (1024, 16): "vit_large_patch16_siglip_256"}
# model.mlp -> timm's act_layer and transformers' hidden_act
TORCH_ACTIVATIONS = {
    "gelu": {"timm": "gelu", "transformers": "gelu"},
    "gelu_tanh": {"timm": "gelu_tanh", "transformers": "gelu_pytorch_tanh"},
}


def peer_spec(
    peer: str, experiment: Any, batch_size: int, lengths: Sequence[int] = ()
) -> dict[str, Any]:
    """What the peer must build to do the same work, as plain JSON.

    Args:
      peer: its name.
      experiment: ours.
      batch_size: images or clips of a batch.
      lengths: of text, the tokens of each row of the peer's batch; the rest of a row is padding.

    Raises:
      ConfigError: the peer has no such model or objective, or the encoder uses an option that its
        model lacks.
    """
    objective, encoder = experiment.objective, experiment.objective.encoder
    if isinstance(objective, MaskedLanguage) and peer == "transformers":
        return _text_spec(experiment, lengths)
    if isinstance(objective, SpeechContrast) and peer == "transformers":
        return speech_spec(experiment, batch_size)
    if isinstance(objective, ImageTextObjective) and peer == "open_clip":
        return _pairs_spec(experiment, batch_size)
    if not isinstance(encoder, ViT):
        raise ConfigError(f"--peer {peer}: it has no counterpart of {type(encoder).__name__}.")
    kind = {
        "timm": Classification,
        "transformers": MaskedImage,
        "open_clip": ImageTextObjective,
    }[peer]
    if type(objective) is not kind:
        raise ConfigError(
            f"--peer {peer} is compared on {kind.__name__}, and this config's objective is "
            f"{type(objective).__name__}."
        )
    known = {
        "parallel": [False],
        "token_drop": [0.0],
        "num_registers": [0],
        "mlp": list(TORCH_ACTIVATIONS),
    }
    for field, values in known.items():
        if getattr(encoder, field) not in values:
            raise ConfigError(f"--peer {peer}: its model has no model.{field} of this kind.")
    size = encoder.size
    spec = {
        "peer": peer,
        "batch_size": batch_size,
        "image_size": list(experiment.preprocessing.image_size),
        "channels": experiment.preprocessing.channels,
        "patch": list(encoder.patch),
        "width": size.width,
        "depth": size.depth,
        "mlp_dim": size.mlp_dim,
        "activation": TORCH_ACTIVATIONS[encoder.mlp][peer],
        "num_heads": size.num_heads,
        "qkv_bias": encoder.qkv_bias,
        "norm_eps": encoder.norm_eps,
        "dtype": str(experiment.compute_dtype),
        "clip": experiment.sections.optimizer.get("clip"),
    }
    if peer == "timm":
        return spec | {
            "num_classes": objective.num_classes,
            "class_token": encoder.class_token,
            "pool": encoder.pool,
            "norm_after_pool": encoder.norm_after_pool,
            "drop_path": encoder.drop_path,
        }
    if objective.encode_mask_tokens:
        raise ConfigError("--peer transformers: its ViTMAE never feeds mask tokens to the encoder.")
    return spec | {
        "mask_ratio": objective.mask_ratio,
        "norm_pix": objective.norm_pix,
        "decoder_width": objective.decoder.width,
        "decoder_depth": objective.decoder.depth,
        "decoder_heads": objective.decoder.num_heads,
        "decoder_mlp_dim": objective.decoder.mlp_dim,
    }


def _text_spec(experiment: Any, lengths: Sequence[int]) -> dict[str, Any]:
    objective, encoder = experiment.objective, experiment.objective.encoder
    if type(encoder) not in (BERT, RoBERTa):
        raise ConfigError(
            f"--peer transformers is compared on BERT and RoBERTa, not {type(encoder).__name__}."
        )
    size = encoder.size
    return {
        "peer": "transformers",
        "model": "roberta" if isinstance(encoder, RoBERTa) else "bert",
        "batch_size": len(lengths),
        "lengths": [int(length) for length in lengths],
        "length": experiment.preprocessing.max_length,
        "vocab_size": encoder.vocab_size,
        "width": size.width,
        "depth": size.depth,
        "mlp_dim": size.mlp_dim,
        "num_heads": size.num_heads,
        "activation": TORCH_ACTIVATIONS[encoder.mlp]["transformers"],
        "dropout": encoder.dropout,
        "attention_dropout": encoder.attention_dropout,
        "rate": objective.masking.rate,
        "dtype": str(experiment.compute_dtype),
        "clip": experiment.sections.optimizer.get("clip"),
    }


def _pairs_spec(experiment: Any, batch_size: int) -> dict[str, Any]:
    objective, towers = experiment.objective, experiment.objective.encoder
    image, text = towers.image, towers.text
    if not isinstance(image, ViT) or not isinstance(text, CLIPText):
        raise ConfigError("--peer open_clip is compared on a ViT with CLIP's or SigLIP's texts.")
    image_size, length = experiment.preprocessing.input_size
    patch, size, words = image.patch[0], image.size, text.size
    sigmoid = objective.kind == "sigmoid"
    if sigmoid and (size.width, patch) not in _SIGLIPS:
        known = ", ".join(_SIGLIPS.values())
        raise ConfigError(f"--peer open_clip: of SigLIPs it is compared on {known}.")
    if text.causal is sigmoid or image.pool != ("map" if sigmoid else "cls"):
        raise ConfigError("--peer open_clip: it has CLIP's towers and SigLIP's, and not these.")
    text_cfg = {
        "context_length": length,
        "vocab_size": text.vocab_size,
        "width": words.width,
        "heads": words.num_heads,
        "layers": words.depth,
    }
    vision_cfg: dict[str, Any] = {"image_size": image_size[0]}
    if sigmoid:
        name = _SIGLIPS[size.width, patch]
        vision_cfg |= {"timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
        text_cfg |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        text_cfg |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    else:
        vision_cfg |= {"layers": size.depth, "width": size.width, "patch_size": patch}
        vision_cfg |= {"head_width": size.width // size.num_heads}
    return {
        "peer": "open_clip",
        "batch_size": batch_size,
        "sigmoid": sigmoid,
        "embed_dim": towers.dim,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
        "quick_gelu": image.mlp == "quick_gelu",
        "dtype": str(experiment.compute_dtype),
        "clip": experiment.sections.optimizer.get("clip"),
    }


class Peer:
    """A running peer process; `info` describes it.

    Raises:
      ConfigError: it is not installed, or failed to start.
    """

    def __init__(self, spec: Mapping[str, Any]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.benchmark_peers", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.info: dict[str, Any] = json.loads(self._read(spec["peer"]))

    def seconds(self, steps: int) -> tuple[float, float]:
        """How long that many training steps take: wall clock, and processor time of all cores."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        wall, processor = json.loads(self._read("the peer"))
        return wall, processor

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, name: str) -> str:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ConfigError(
                f"--peer: {name} stopped with exit code {code} (its message is above)."
            )
        return line


# --- inside the peer's process --------------------------------------------------------------------


def serve(spec: Mapping[str, Any]) -> None:
    """Builds the step, warms it up, and times as many steps as stdin asks for."""
    retain_freed_memory()  # as we do for ourselves; it spares PyTorch a few percent too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print must not mix with the answers
    try:
        import torch

        step, model = _make_step(spec, torch)
    except ImportError as error:
        raise ConfigError(f"--peer {spec['peer']}: not installed ({error}).") from error
    cuda = torch.cuda.is_available()

    def timed(steps: int) -> tuple[float, float]:
        began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began[0], time.process_time() - began[1]

    timed(3 if cuda else 1)
    info = {
        "name": spec["peer"],
        "version": importlib.metadata.version(_PACKAGES.get(spec["peer"], spec["peer"])),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "compiled": cuda,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    print(json.dumps(info), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(int(line))), file=answers, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peer: peak process memory {peak >> 10} MiB", file=sys.stderr)


def _make_step(spec: Mapping[str, Any], torch: Any) -> tuple[Callable[[], None], Any]:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if not cuda:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model, loss_of, images = _model(spec, torch, device)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    loss = torch.compile(loss_of) if cuda else loss_of
    low = spec["dtype"] == "bfloat16"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            value = loss(images)
        value.backward()
        if spec["clip"] is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec["clip"])
        optimizer.step()

    return step, model


def _model(spec: Mapping[str, Any], torch: Any, device: Any) -> tuple[Any, Callable, Any]:
    """The model, its loss of one input, and that input."""
    if "lengths" in spec:
        return _masked_language(spec, torch, device)
    if spec["peer"] == "open_clip":
        return _open_clip(spec, torch, device)
    if "samples" in spec:
        return speech_model(spec, torch, device)
    shape = (spec["batch_size"], spec["channels"], *spec["image_size"])
    build = {"timm": _timm, "transformers": _transformers}[spec["peer"]]
    return *build(spec, torch, device), torch.randn(shape, device=device)


def _masked_language(spec: Mapping[str, Any], torch: Any, device: Any) -> tuple[Any, Callable, Any]:
    """Masked-token training as transformers' own example does it: one text a row, padded."""
    import transformers

    kind = {"bert": "Bert", "roberta": "Roberta"}[spec["model"]]
    positions = spec["length"] + (2 if kind == "Roberta" else 0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=spec["vocab_size"],
        hidden_size=spec["width"],
        num_hidden_layers=spec["depth"],
        num_attention_heads=spec["num_heads"],
        intermediate_size=spec["mlp_dim"],
        hidden_act=spec["activation"],
        max_position_embeddings=positions,
        hidden_dropout_prob=spec["dropout"],
        attention_probs_dropout_prob=spec["attention_dropout"],
    )
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    shape = (spec["batch_size"], spec["length"])
    mask = torch.arange(spec["length"]) < torch.tensor(spec["lengths"])[:, None]
    ids = torch.randint(5, spec["vocab_size"], shape) * mask + config.pad_token_id * ~mask
    chosen = (torch.rand(shape) < spec["rate"]) & mask
    labels = torch.where(chosen, ids, -100).to(device)
    mask, ids = mask.long().to(device), ids.to(device)
    return model, lambda ids: model(ids, attention_mask=mask, labels=labels).loss, ids


def _open_clip(spec: Mapping[str, Any], torch: Any, device: Any) -> tuple[Any, Callable, Any]:
    """CLIP or SigLIP, with open_clip's loss of one process."""
    from open_clip.loss import ClipLoss, SigLipLoss
    from open_clip.model import CLIP, CustomTextCLIP

    given = {name: spec[name] for name in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    kind, loss = (CustomTextCLIP, SigLipLoss()) if spec["sigmoid"] else (CLIP, ClipLoss())
    bias = {"init_logit_bias": -10.0} if spec["sigmoid"] else {}
    model = kind(**given, **bias)
    side, text = spec["vision_cfg"]["image_size"], spec["text_cfg"]
    images = torch.randn((spec["batch_size"], 3, side, side), device=device)
    ids = torch.randint(
        1, text["vocab_size"], (spec["batch_size"], text["context_length"]), device=device
    )
    return model, lambda images: loss(*model(images, ids)), images


def _timm(spec: Mapping[str, Any], torch: Any, device: Any) -> tuple[Any, Callable]:
    import functools

    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=tuple(spec["image_size"]),
        patch_size=tuple(spec["patch"]),
        in_chans=spec["channels"],
        num_classes=spec["num_classes"],
        global_pool={"cls": "token", "mean": "avg", "map": "map"}[spec["pool"]],
        embed_dim=spec["width"],
        depth=spec["depth"],
        num_heads=spec["num_heads"],
        mlp_ratio=spec["mlp_dim"] / spec["width"],
        qkv_bias=spec["qkv_bias"],
        class_token=spec["class_token"],
        fc_norm=spec["norm_after_pool"],
        drop_path_rate=spec["drop_path"],
        act_layer=spec["activation"],
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=spec["norm_eps"]),
    )
    labels = torch.arange(spec["batch_size"], device=device) % spec["num_classes"]
    return model, lambda images: torch.nn.functional.cross_entropy(model(images).float(), labels)


def _transformers(spec: Mapping[str, Any], torch: Any, device: Any) -> tuple[Any, Callable]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    if spec["image_size"][0] != spec["image_size"][1] or spec["patch"][0] != spec["patch"][1]:
        raise ConfigError("--peer transformers: its ViTMAE takes square images and patches only.")
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=spec["width"],
            num_hidden_layers=spec["depth"],
            num_attention_heads=spec["num_heads"],
            intermediate_size=spec["mlp_dim"],
            hidden_act=spec["activation"],
            qkv_bias=spec["qkv_bias"],
            layer_norm_eps=spec["norm_eps"],
            image_size=spec["image_size"][0],
            patch_size=spec["patch"][0],
            num_channels=spec["channels"],
            mask_ratio=spec["mask_ratio"],
            norm_pix_loss=spec["norm_pix"],
            decoder_hidden_size=spec["decoder_width"],
            decoder_num_hidden_layers=spec["decoder_depth"],
            decoder_num_attention_heads=spec["decoder_heads"],
            decoder_intermediate_size=spec["decoder_mlp_dim"],
        )
    )
    return model, lambda images: model(images).loss


def main() -> int:
    if len(sys.argv) != 2:
        raise EncodersError("tools.benchmark_peers is started by tools.benchmark --peer.")
    serve(json.loads(sys.argv[1]))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)

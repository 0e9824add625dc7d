"""ImageBind: sounds and depths in the space of a CLIP's images and texts.

Paper: ImageBind: One Embedding Space To Bind Them All, arXiv 2305.05665, section 3 and appendix B
  (numbers from memory).
Command: python -m launch.local --config configs/imagebind.py --workdir runs/imagebind
  init_from.path: a CLIP ViT-H/14, such as open_clip's of LAION-2B.
  data/imagebind: ArrayRecords of {'image', 'audio' or 'depth' or 'text'}; audio is a log-mel
  spectrogram [128, 204] of two seconds, depth a map of disparities [224, 224].
Cost: not measured here.
Published: 77.7 zero-shot on ImageNet, 66.9 on ESC-50 by sound, 54.0 on NYU-D by depth.
Measured: not run.
Differences: the audio tower's attention has no extra key and value; two kinds beside texts.
"""

import math

from configs import hardware, image_text


def get_config(arg=None):
    texts = dict(max_length=77, vocabulary=image_text.CLIP_WORDS)
    config = image_text.base("imagebind", 2048, 224, texts)
    config.preprocessing.update(
        dict(
            audio=dict(shape=(128, 204, 1), mean=-4.268, std=9.138),
            depth=dict(shape=(224, 224, 1), mean=0.0418, std=0.0295),
        )
    )
    config.data.source = dict(name="array_record", path="data/imagebind", text_field="text")
    config.data.transforms = (
        dict(name="random_resized_crop", scale=(0.9, 1.0)),
        dict(name="arrays"),
        dict(name="tokenize"),
    )
    config.duration = {"steps": 16_000}
    clip = dict(pre_norm=True, patch_bias=False, norm_eps=1e-5)
    config.model = dict(
        name="imagebind",
        image=image_text.tower("vit", "H/14", **clip),
        text=image_text.tower("clip_text", "L", mlp="gelu"),
        audio=image_text.tower("vit", "B/16", patch_stride=10, drop_path=0.1),
        depth=image_text.tower("vit", "S/16"),
        embedding_dim=1024,
        image_projection="linear",
        text_projection="linear",
        logit_scale=math.log(1 / 0.07),
        max_logit_scale=math.log(100),
        locked=("image", "text"),
    )
    trained = r"encoder/(audio|depth)(_projection)?/.*"
    config.init_from = dict(
        path="weights/clip_vit_h14_laion2b", load=((r"encoder/.*", True),), fresh=(trained,)
    )
    config.objective = dict(name="bind")
    config.optimizer = image_text.adamw(1.6e-3, {"percent": 12}, b2=0.95, clip=1.0)
    return hardware.apply(config, arg)

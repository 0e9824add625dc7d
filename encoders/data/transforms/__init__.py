"""What happens to one example on the host: callables (example, rng) -> example.

Those of images take and give pixels as uint8 [H, W, C]; the first may find an encoded file instead.
"""

from encoders.data.transforms.arrays import Arrays
from encoders.data.transforms.audio import (
    ChangeSpeed,
    CropAudio,
    DecodeAudio,
    SpellTranscript,
)
from encoders.data.transforms.code import Bimodal, DataFlow, PrefixMode
from encoders.data.transforms.color import ColorJitter, RandomGrayscale
from encoders.data.transforms.erasing import RandomErasing
from encoders.data.transforms.geometry import (
    CenterCrop,
    Decode,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Resize,
)
from encoders.data.transforms.patches import PackPatches, ToPatches
from encoders.data.transforms.rand_augment import RandAugment
from encoders.data.transforms.tokenize import Tokenize
from encoders.data.transforms.tokenize_texts import TokenizeTexts

TRANSFORMS = {
    "decode": Decode,
    "resize": Resize,
    "center_crop": CenterCrop,
    "pad": Pad,
    "random_crop": RandomCrop,
    "random_resized_crop": RandomResizedCrop,
    "random_flip": RandomFlip,
    "rand_augment": RandAugment,
    "color_jitter": ColorJitter,
    "random_grayscale": RandomGrayscale,
    "random_erasing": RandomErasing,
    "to_patches": ToPatches,
    "pack_patches": PackPatches,
    "arrays": Arrays,
    "decode_audio": DecodeAudio,
    "spell_transcript": SpellTranscript,
    "change_speed": ChangeSpeed,
    "crop_audio": CropAudio,
    "tokenize": Tokenize,
    "bimodal": Bimodal,
    "data_flow": DataFlow,
    "prefix_mode": PrefixMode,
    "tokenize_texts": TokenizeTexts,
}

__all__ = ["TRANSFORMS"]

"""Sources -> transforms -> batches, by (seed, step). Numpy only: workers never see jax."""

from encoders.data.audio import AudioPreprocessing
from encoders.data.code_preprocessing import CodePreprocessing
from encoders.data.evaluation import eval_batches
from encoders.data.image_text import ImageTextPreprocessing
from encoders.data.pipeline import Pipeline, build_transforms
from encoders.data.preprocessing import Preprocessing
from encoders.data.sources import SOURCES, CorruptExample, Source
from encoders.data.text import TextPreprocessing
from encoders.data.transforms import TRANSFORMS
from encoders.data.vocabulary import Vocabulary

PREPROCESSING = {
    "image": Preprocessing,
    "text": TextPreprocessing,
    "code": CodePreprocessing,
    "image_text": ImageTextPreprocessing,
    "audio": AudioPreprocessing,
}

__all__ = [
    "PREPROCESSING",
    "SOURCES",
    "TRANSFORMS",
    "AudioPreprocessing",
    "CodePreprocessing",
    "CorruptExample",
    "ImageTextPreprocessing",
    "Pipeline",
    "Preprocessing",
    "Source",
    "TextPreprocessing",
    "Vocabulary",
    "build_transforms",
    "eval_batches",
]

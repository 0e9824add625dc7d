"""Where examples come from: random access to each, by index."""

from encoders.data.sources.array_record import ArrayRecord
from encoders.data.sources.audio import Audio
from encoders.data.sources.base import CorruptExample, Source
from encoders.data.sources.embedded import Embedded
from encoders.data.sources.folder import Folder
from encoders.data.sources.joined import Joined
from encoders.data.sources.mixture import Mixture
from encoders.data.sources.pairs import Pairs
from encoders.data.sources.python_code import PythonCode
from encoders.data.sources.sample import Sample
from encoders.data.sources.sentence_pairs import SentencePairs
from encoders.data.sources.squad import Squad
from encoders.data.sources.synthetic import Synthetic
from encoders.data.sources.tar import Tar
from encoders.data.sources.text import Text
from encoders.data.sources.tfds import Tfds
from encoders.data.sources.tokens import Tokens
from encoders.data.sources.units import Units

SOURCES = {
    "array_record": ArrayRecord,
    "audio": Audio,
    "embedded": Embedded,
    "folder": Folder,
    "joined": Joined,
    "mixture": Mixture,
    "pairs": Pairs,
    "python_code": PythonCode,
    "sample": Sample,
    "sentence_pairs": SentencePairs,
    "squad": Squad,
    "synthetic": Synthetic,
    "tar": Tar,
    "text": Text,
    "tfds": Tfds,
    "tokens": Tokens,
    "units": Units,
}

__all__ = ["SOURCES", "CorruptExample", "Source"]

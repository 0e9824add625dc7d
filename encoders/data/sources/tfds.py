"""TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from encoders.data.sources.base import CorruptExample, Source
from encoders.data.sources.captions import captioned
from encoders.errors import DataError, nearest

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True, eq=False)
class Tfds(Source):
    """A data set of TFDS.

    Images stay encoded until a transform decodes them. Prepare one by `tools.prepare_data --from
    tfds`, or by `tfds.builder(name).download_and_prepare(file_format='array_record')`.

    Attributes:
      dataset: name, with config and version where they matter: 'imagenet2012', 'cifar10:3.0.2'.
      split: 'train', or a slice such as 'train[:90%]'.
      data_dir: where data sets were prepared; None is ~/tensorflow_datasets or $TFDS_DATA_DIR.
      text_field: the field with captions, which becomes 'text', such as 'captions.text' of
        coco_captions; None leaves all as it is.
    """

    dataset: str
    split: str = "train"
    data_dir: str | None = None
    text_field: str | None = None

    def __post_init__(self) -> None:
        self._data = open_tfds(self.dataset, self.split, self.data_dir)
        from google.protobuf.message import DecodeError  # comes with TFDS

        # What a damaged record raises, from TFDS down; these share no base class.
        self._unreadable = (DecodeError, ValueError, KeyError, RuntimeError, IndexError)
        label = dict(self._data.dataset_info.features.items()).get("label")
        names = getattr(label, "names", None)
        self._class_names = tuple(names) if names else None
        super().__post_init__()

    @property
    def audio_rate(self) -> int | None:
        """Samples per second of its sound, 0 where it does not say; None where it has none."""
        import tensorflow_datasets as tfds

        features = dict(self._data.dataset_info.features.items()).values()
        sound = [x for x in features if isinstance(x, tfds.features.Audio)]
        return (sound[0].sample_rate or 0) if sound else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._class_names

    def _count(self) -> int:
        return len(self._data)

    def _read(self, index: int) -> dict[str, Any]:
        try:
            example = self._data[index]
        except self._unreadable as error:
            raise CorruptExample(f"unreadable record ({error})") from error
        return captioned(example, self.text_field)

    def _describe(self, index: int) -> str:
        return f"{self.dataset} {self.split} example {index}"


def open_builder(dataset: str, data_dir: str | None) -> Any:
    """`tfds.builder`, whether or not the data set has been prepared.

    Raises:
      DataError: TFDS is not installed, or does not know the data set.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"data source: '{dataset}' needs TFDS ({error}); pip install tensorflow-datasets."
        ) from error
    unknown = (
        tfds.core.registered.DatasetNotFoundError,
        ImportError,
        AttributeError,
        ValueError,
    )
    try:
        return tfds.builder(dataset, data_dir=data_dir)
    except unknown as error:
        if "No module named 'tensorflow'" in str(error):
            raise DataError(
                f"data source: TFDS needs TensorFlow to read '{dataset}', as it does for sound; "
                "pip install tensorflow-cpu, and prepare it by tools.prepare_data --from tfds: "
                "reading the result needs none."
            ) from error
        name = dataset.split(":")[0].split("/")[0]
        raise DataError(
            f"data source: TFDS cannot open '{dataset}' ({str(error).splitlines()[0]})."
            + nearest(name, tfds.list_builders(with_community_datasets=False))
        ) from error


def open_tfds(dataset: str, split: str, data_dir: str | None) -> Any:
    """`tfds.data_source` with encoded images.

    Raises:
      DataError: TFDS is not installed, the data set is unknown or not prepared, or it has no such
        split.
    """
    builder = open_builder(dataset, data_dir)
    import tensorflow_datasets as tfds

    where = data_dir or tfds.core.constants.DATA_DIR
    prepare = f"prepare it by tools.prepare_data --from tfds --input {dataset} --download"
    splits = list(builder.info.splits)
    if not splits:
        raise DataError(f"data source: '{dataset}' is not prepared under {where}; {prepare}.")
    name = split.split("[")[0].split("+")[0]
    if name not in splits:
        raise DataError(f"data source: '{dataset}' has no split '{name}'.{nearest(name, splits)}")
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        raise DataError(
            f"data source: '{dataset}' under {where} is not stored as ArrayRecord; {prepare}."
        ) from error
    except ValueError as error:
        raise DataError(f"data source: '{dataset}', split '{split}': {error}.") from error

"""The built-in data set: composed emoji scenes, generated locally without a network.

Drawings: Twemoji (CC-BY 4.0) and, for the split `unseen`, OpenMoji (CC-BY-SA 4.0).
"""

import dataclasses
import time

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from rankseg_jax.data import CorruptExample, PanopticSource, scenes
from rankseg_jax.data.published import codecs, files

tfds.disable_progress_bar()  # the lines printed here suffice

EXAMPLES = {'train': 5000, 'validation': 400, 'test': 400}
UNSEEN = {'unseen': 400}


@dataclasses.dataclass(eq=False, kw_only=True)
class EmojiScenesConfig(tfds.core.BuilderConfig):
    """K categories (background included), side in pixels and number of examples per split.

    The name follows from them: k60_96, or k60_96_train64 if a number is not the default.
    """

    name: str = ''
    num_classes: int
    image_size: int
    examples: dict[str, int] = dataclasses.field(default_factory=dict)  # empty: the default

    @staticmethod
    def default_examples() -> tuple[dict[str, int], dict[str, int]]:
        """Numbers for the splits generated together, and for the split generated on demand."""
        return EXAMPLES, UNSEEN

    def __post_init__(self) -> None:
        scenes.class_names(self.num_classes)  # raises if there are not that many
        if not 16 <= self.image_size <= 2048:
            raise ValueError(f'config.data.image_size is {self.image_size}; choose 16..2048 pixels')
        together, _ = self.default_examples()
        self.examples = self.examples or dict(together)
        default = together if 'train' in self.examples else {}
        changed = {k: v for k, v in self.examples.items() if default.get(k) != v}
        suffix = ''.join(f'_{split}{count}' for split, count in changed.items())
        self.name = f'k{self.num_classes}_{self.image_size}{suffix}'
        self.description = (
            f'{self.num_classes} categories, {self.image_size} x {self.image_size} pixels.'
        )


class EmojiScenes(tfds.core.GeneratorBasedBuilder):
    """Emoji over generated backgrounds with exact label and panoptic maps."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [
        EmojiScenesConfig(num_classes=num_classes, image_size=size, examples=examples)
        for num_classes in (60, 150, 847, 1284)
        for size in (96, 128)
        for examples in (EXAMPLES, UNSEEN)
    ]
    CONFIG = EmojiScenesConfig
    UNIT = 'images'  # what the config counts
    DESCRIPTION = 'Composed scenes of Twemoji or OpenMoji drawings.'
    LICENSE = 'Drawings: Twemoji CC-BY 4.0; OpenMoji (split unseen) CC-BY-SA 4.0'

    def _features(self) -> dict:
        config = self.builder_config
        side = config.image_size
        names = list(scenes.class_names(config.num_classes))
        return {
            'image': tfds.features.Image(shape=(side, side, 3), encoding_format='png'),
            'label': tfds.features.Image(
                shape=(side, side, 1), dtype=np.uint16, encoding_format='png'
            ),
            'panoptic': tfds.features.Image(
                shape=(side, side, 1), dtype=np.uint16, encoding_format='png'
            ),
            'categories': tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'{self.DESCRIPTION} {self.builder_config.description}',
            features=tfds.features.FeaturesDict(self._features()),
            homepage='https://github.com/jdecked/twemoji',
            license=self.LICENSE,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.builder_config.examples}

    def _generate_examples(self, split):
        config = self.builder_config
        count = config.examples[split]
        yield from enumerate(
            scenes.generate(config.num_classes, config.image_size, split, count=count)
        )


class EmojiScenesSource(PanopticSource):
    """Random access to a prepared split; every category but the background is a thing."""

    def __init__(self, builder: EmojiScenes, split: str):
        config = builder.builder_config
        skip = tfds.decode.SkipDecoding()
        self.class_names = scenes.class_names(config.num_classes)
        self.things = tuple(name != 'background' for name in self.class_names)
        self.ids = [f'{split}/{index:05d}' for index in range(config.examples[split])]
        self._files = f'{builder.data_path} ({split})'
        self._records = builder.as_data_source(
            split, decoders={'image': skip, 'label': skip, 'panoptic': skip}
        )

    def _read(self, index: int, *keys: str) -> list[np.ndarray]:
        try:
            record = self._records[index]
            return [codecs.decode_map(record[key]) for key in keys]
        except IndexError:
            raise
        except Exception as error:  # array_record, protobuf and Pillow raise their own
            raise CorruptExample(f'{self.ids[index]} in {self._files}: {error}') from error

    def load(self, index: int) -> dict[str, np.ndarray]:
        """See `Source.load`."""
        image, label = self._read(index, 'image', 'label')
        return {'image': image, 'label': label.astype(np.int32)}

    def panoptic(self, index: int) -> np.ndarray:
        """Reads object numbers int32 [H, W] from 1 in painting order, 0 for background."""
        return self._read(index, 'panoptic')[0].astype(np.int32)

    def segments(self, index: int) -> tuple[np.ndarray, list[dict]]:
        """See `PanopticSource.segments`: each visible object, and the background; no void."""
        label, numbers = self._read(index, 'label', 'panoptic')
        ids = numbers.astype(np.int32) + 1
        values, first = np.unique(ids, return_index=True)
        return ids, [
            {'id': i, 'category_id': int(label.flat[place])}
            for i, place in zip(values.tolist(), first, strict=True)
        ]


def prepared(builder_class: type[EmojiScenes], data_config: ConfigDict, split: str) -> EmojiScenes:
    """The builder that holds a split, which is generated first if need be.

    Args:
      builder_class: of the data set.
      data_config: as for `get_source`.
      split: as for `get_source`.

    Raises:
      ValueError, ImportError: as `get_source`.
    """
    together, on_demand = builder_class.CONFIG.default_examples()
    examples = together | {'train': data_config.num_train or together['train']}
    if split in on_demand:
        examples = on_demand
    if split not in examples:
        known = ', '.join([*together, *on_demand])
        raise ValueError(f'{builder_class.name} has no split {split!r}; the splits are {known}.')
    config = builder_class.CONFIG(
        num_classes=data_config.num_classes, image_size=data_config.image_size, examples=examples
    )
    config = builder_class.builder_configs.get(config.name, config)  # TFDS refuses an equal twin
    folder = data_config.dir and files.records_folder(data_config.dir, builder_class.name)
    arguments = {
        'config': config,
        'data_dir': folder or None,  # TFDS takes '' for the current folder
        'file_format': 'array_record',
    }
    builder = builder_class(**arguments)
    if not builder.data_path.exists():
        _prepare(builder)
        builder = builder_class(**arguments)
    return builder


def _prepare(builder: EmojiScenes) -> None:
    examples = builder.builder_config.examples
    wanted = ', '.join(f'{count} {split}' for split, count in examples.items())
    print(
        f'{builder.name}: generating {wanted} {builder.UNIT} into {builder.data_path}', flush=True
    )
    start = time.perf_counter()
    try:
        builder.download_and_prepare()
    except OSError:
        # If another process was faster, its files are identical.
        if not builder.data_path.exists():
            raise
    seconds = time.perf_counter() - start
    rate = sum(examples.values()) / seconds
    print(f'{builder.name}: done in {seconds:.1f} s, {rate:.0f} {builder.UNIT}/s', flush=True)


def get_source(data_config: ConfigDict, split: str) -> EmojiScenesSource:
    """Opens a split; generates it first, into data_config.dir (default ~/tensorflow_datasets).

    Uses num_classes, image_size and num_train (0: 5000) of the config.

    Raises:
      ValueError: the split does not exist, or a size is out of range.
      ImportError: the packages of the drawings are missing; the message names them.
    """
    return EmojiScenesSource(prepared(EmojiScenes, data_config, split), split)

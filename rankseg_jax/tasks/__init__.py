"""Tasks. Everything specific to a task is in its module; the loops only call it.

A task turns a source's examples into training targets, a model's output into a loss or into maps,
and maps into scores, files and drawings. A new task is a subclass of `Task` and a line in `TASKS`.
"""

import abc
import difflib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import jax
import numpy as np

from rankseg_jax import data
from rankseg_jax.data import IGNORE_LABEL, Source, videos
from rankseg_jax.losses import Mean
from rankseg_jax.multilabel import pixel_counts
from rankseg_jax.outputs import PixelOutput, QueryOutput
from rankseg_jax.postprocessing import View
from rankseg_jax.ranking import Selection

TASKS = {  # config.task → class
    'semantic': 'rankseg_jax.tasks.semantic:Semantic',
    'panoptic': 'rankseg_jax.tasks.panoptic:Panoptic',
    'instance': 'rankseg_jax.tasks.instance:Instance',
    'video_instance': 'rankseg_jax.tasks.video_instance:VideoInstance',
    'video_semantic': 'rankseg_jax.tasks.video_semantic:VideoSemantic',
}


class Follower:
    """What a task makes of a video's windows, one after another."""

    def encode(self, found: dict[str, np.ndarray]) -> dict[str, Any]:
        """The arrays of a frame, made smaller for `add`."""
        return found

    def add(
        self, window: videos.Window, frames: list[dict[str, Any]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Takes the frames of the next window; yields what `result` takes, for each new one."""
        for frame, found in zip(window.frames, frames, strict=True):
            if frame >= window.first_new:
                yield found

    def content(self, length: int) -> dict[str, Any]:
        """What the JSON file says of the whole video of `length` frames."""
        return {}


class Task(abc.ABC):
    """What training, evaluation and prediction need of a task.

    Metrics have `merge(other)`, called on the host, whose order does not matter; they can be
    pickled, since hosts exchange them. Those of `statistics` are pytrees, such as a
    `flax.struct.dataclass`.

    Attributes:
      config: of the run.
      class_names: K names in label order.
      things: K bools, categories whose objects are counted; empty for a task that counts none.
      maps: names of the image-sized arrays among those that `postprocess` returns. 'labels' are
        class ids; without them, the example.py of an export has nothing to draw.
      suffixes: of the images that `save` of a result writes; '' is one of them.
      columns: scores of a category that the printed table shows.
      best_by: name of the score whose highest value makes the best checkpoint.
      start: the weights that published runs start from; training without `model.pretrained` warns
        about them.
      takes_clips: whether the model sees clips of videos; such a task is a `clips.Clips`.
      image_score_name: the name of what `image_score` returns.
      scores_images: whether `image_statistics` scores images, whose maps the host then fetches.
    """

    maps: tuple[str, ...] = ('labels',)
    suffixes: tuple[str, ...] = ('', '_overlay')
    columns: tuple[str, ...] = ()
    best_by: str
    start: str = ''
    takes_clips: bool = False
    image_score_name: str = 'mIoU'
    scores_images: bool = False

    def __init__(self, config, class_names: Sequence[str], things: Sequence[bool] | None = ()):
        self.config = config
        self.class_names = tuple(class_names)
        self.things = tuple(bool(thing) for thing in (() if things is None else things))

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @classmethod
    def adapt(cls, source: Source) -> Source:
        """The source as the task sees it; all other methods take such a one."""
        return source

    @classmethod
    def from_source(cls, config, source: Source) -> Self:
        """The task on the categories of a source.

        Raises:
          ValueError: the source lacks what the task learns from.
        """
        return cls(config, source.class_names)

    def check(self, output: PixelOutput | QueryOutput) -> None:  # noqa: B027, most tasks suit all
        """Raises a ValueError if the model's output or `config.eval` does not suit the task."""

    # Training

    def samples(self, source: Source) -> Source:
        """What training draws from: a source whose examples `example` reads."""
        return source

    def example(
        self, source: Source, index: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Reads a training example. Evaluation reads `Source.load`, see `image_statistics`.

        Args:
          source: as `samples` returns it.
          rng: for random choices; the same example repeats with the same state.

        Returns:
          'image' uint8 [(t,) H, W, 3] and 'label' int32 [(…,) H, W], which is augmented along with
          the image; its values are the task's business, IGNORE_LABEL apart. Further arrays, if any,
          have the shapes and dtypes of `stand_in`.

        Raises:
          CorruptExample: the example cannot be read.
        """
        return source.load(index)

    def stand_in(self) -> dict[str, np.ndarray]:
        """An example of one ignored pixel a frame, in the place of one that cannot be read."""
        return {
            'image': np.zeros([1, 1, 3], np.uint8),
            'label': np.full([1, 1], IGNORE_LABEL, np.int32),
        }

    def presence(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The categories in each image of a training batch, [B, K] bool."""
        return pixel_counts(batch['label'], self.num_classes) > 0

    def category_map(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The category of each pixel of a training batch, [B, *space] int32 or IGNORE_LABEL."""
        return batch['label']

    @abc.abstractmethod
    def loss(
        self, key, output: PixelOutput | QueryOutput, batch
    ) -> tuple[dict[str, Mean], dict[str, jax.Array]]:
        """The parts of the training loss in rank space, and further figures for the log, by name.

        Training adds up the parts and the multi-label head's loss, which is not among them. What
        each part is the mean over, its `count`, weighs the micro-batches of a step.

        Args:
          key: random key.
          output: of the model.
          batch: stacked and augmented examples, and 'mask' [B] bool, the images that take part.
        """

    # Prediction

    @abc.abstractmethod
    def postprocess(
        self, views: list[View], selection: Selection | None, size, canvas: tuple[int, int]
    ) -> dict[str, jax.Array]:
        """Arrays of a batch of images, by name; made for `jit`.

        Those named in `maps` are [B, *canvas], the others [B, …]. 'categories' and 'confidences',
        those of `inference.served`, are taken.

        The arguments are those of `postprocessing.label_maps`.
        """

    def cut(self, found: dict[str, np.ndarray], size) -> dict[str, np.ndarray]:
        """The arrays of one image, those that are maps cut to its (rows, columns)."""
        rows, columns = size
        return {
            name: x[..., :rows, :columns] if name in self.maps else x for name, x in found.items()
        }

    @abc.abstractmethod
    def result(self, image: np.ndarray, found: dict[str, np.ndarray], categories) -> Any:
        """What `predict` returns for an image; `tasks.result.Result` is one.

        It has the methods `overlay()`, `panel(**truth)`, which return PIL images; `summary()`, a
        line of text; and `save(path, source)`, which writes <path><suffix>.png for each of
        `suffixes` and <path>.json; `source` is the name of the image. Its attribute `categories`
        is the argument.

        Args:
          image: uint8 [H, W, 3].
          found: what `postprocess` returned for this image, maps cut to its size.
          categories: (name, confidence) of the ranked categories, best first; empty without a
            multi-label head.
        """

    def truth(self, source: Source, index: int, label: np.ndarray) -> dict[str, np.ndarray]:
        """The ground truth of an example, as keyword arguments of the result's `panel`."""
        return {'label': label}

    def follower(self) -> Follower:
        """A new one for one video, of a task that takes clips."""
        return Follower()

    # Evaluation

    def examples(self, source: Source) -> Source:
        """The images or clips of a source that the model sees one by one."""
        return source

    def encode(
        self, examples: Source, index: int, number: int, found: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """What `join` takes of one image or frame. Runs in several threads.

        Args:
          examples: as `examples` returns it.
          index: in it.
          number: of the frame in a clip.
          found: as for `result`.
        """
        return found

    def join(self, examples: Source, items: Iterable) -> Iterable:
        """Combines the predictions of `examples` into what the methods below take.

        Args:
          examples: as `examples` returns it.
          items: (index, number of the frame, what `encode` returned). The frames of a clip come in
            order; between them may be others.

        Returns:
          (index in the source, what is found there), for each image, frame or video.
        """
        return ((index, found) for index, _, found in items)

    @abc.abstractmethod
    def empty_statistics(self) -> dict[str, Any]:
        """The metrics of no image, by name."""

    def protocol(self) -> str:
        """How images are seen, as far as scores depend on it and the split does not tell."""
        return ''

    @abc.abstractmethod
    def statistics(self, batch, prediction) -> dict[str, Any]:
        """The metrics that a batch adds to on the device; made for `jit`.

        Args:
          batch: see `batching.stack`, with 'label'.
          prediction: an `inference.Prediction`.
        """

    def image_statistics(self, source: Source, index: int, found) -> dict[str, Any]:
        """The metrics that one image adds to on the host; `found` as `join` yields it.

        Called if `scores_images`. The place for ground truth other than `Source.load` returns.

        Raises:
          CorruptExample: the ground truth cannot be read.
        """
        return {}

    def image_score(self, metrics: dict[str, Any]) -> float | None:
        """How good one image or video is, of `image_statistics`; None: the IoU of its label map."""
        return None

    def label_map(self, found: dict[str, np.ndarray]) -> np.ndarray | None:
        """[H, W]: the class of each pixel, IGNORE_LABEL for none; `found` as for `result`.

        None: this task knows other classes than the data set, and evaluation writes no report.
        """
        return None

    @abc.abstractmethod
    def scores(self, statistics: dict[str, Any]) -> dict[str, Any]:
        """The scores of the whole data set.

        Returns:
          Python floats by name, fractions, `best_by` among them; and 'classes', a list of a dict
          for each category: 'name', 'pixels' (number of labeled ones, by which the printed table is
          sorted) and the scores in `columns`. The list may be empty.
        """

    @abc.abstractmethod
    def writer(self, output, source: Source) -> AbstractContextManager:
        """Opens the folder or file that predictions are written to in the data set's own format.

        Args:
          output: a path, which need not exist.
        """

    @abc.abstractmethod
    def write(self, writer, source: Source, index: int, found) -> None:
        """Writes the prediction of one image; `found` as `join` yields it."""


def task_class(name: str) -> type[Task]:
    """The class of `config.task`.

    Raises:
      ValueError: there is no such task; the nearest name is suggested.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1, 0)[0]
        raise ValueError(
            f'config.task = {name!r} is unknown; did you mean {near!r}? '
            f'The tasks are {", ".join(TASKS)}'
        )
    return pkgutil.resolve_name(TASKS[name])


def open_source(config, split: str) -> Source:
    """A split of the run's data, as `config.task` sees it; raises as `data.get_source`."""
    return task_class(config.task).adapt(data.get_source(config.data, split))


def from_source(config, source: Source) -> Task:
    """The task `config.task` on the categories of a source; ValueError as `Task.from_source`."""
    return task_class(config.task).from_source(config, source)


def build(config, class_names: Sequence[str], things: Sequence[bool] | None = ()) -> Task:
    """The task `config.task` on the categories of a run.

    Raises:
      ValueError: there is no such task, or the run lacks what it needs.
    """
    return task_class(config.task)(config, class_names, things)

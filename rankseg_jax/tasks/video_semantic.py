"""Video semantic segmentation: a label map a frame, categories chosen once a clip."""

import numpy as np

from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.metrics.video import ConsistencyMetric, ConsistencyStream
from rankseg_jax.tasks.clips import Clips, in_order, video_source
from rankseg_jax.tasks.semantic import Semantic


class VideoSemantic(Clips, Semantic):
    """Classifies the pixels of clips; scores mIoU, and consistency over time as VSPW does."""

    scores_images = True

    @classmethod
    def from_source(cls, config, source):
        return cls(config, video_source(config, source).class_names)

    def example(self, source, index, rng):
        return source.source.clip(index, self.sample(source, index, rng))

    def stand_in(self):
        length = self.config.data.clip_frames
        return {
            'image': np.zeros([length, 1, 1, 3], np.uint8),
            'label': np.full([length, 1, 1], IGNORE_LABEL, np.int32),
        }

    def empty_statistics(self):
        return super().empty_statistics() | {'consistency': ConsistencyMetric.empty()}

    def encode(self, examples, index, number, found):
        place = examples.place(index, number)
        return found | {'place': place, 'codes': examples.source.codes(place)}

    def join(self, examples, items):
        streams, ends = {}, {}  # of a video; its frames so far end before `ends`
        for place, frames, last in in_order(examples, items):
            window = examples.windows[place]
            if ends.get(window.video) != window.first_new:  # a clip before could not be read
                streams[window.video] = ConsistencyStream()
            ends[window.video] = window.frames[-1] + 1
            for frame, found in zip(window.frames, frames, strict=True):
                if frame >= window.first_new:
                    metric = streams[window.video].add(found['codes'], found['labels'])
                    yield found['place'], found | {'consistency': metric}
            if last:
                del streams[window.video]

    def image_statistics(self, source, index, found):
        return {'consistency': found['consistency']}

    def scores(self, statistics):
        return statistics['consistency'].compute() | super().scores(statistics)

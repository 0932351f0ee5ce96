"""Video instance segmentation: tracks of objects, from queries that see a clip at once."""

from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rankseg_jax.data import TrackSource, rle, tracks
from rankseg_jax.data.instances import ThingTracks
from rankseg_jax.metrics.instances import InstanceMetric
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.ranking import from_ranks
from rankseg_jax.tasks import Follower
from rankseg_jax.tasks.clips import Clips, in_order
from rankseg_jax.tasks.instance import (
    Instance,
    ResultsWriter,
    check_crops,
    class_probabilities,
    object_masks,
)
from rankseg_jax.tracking import Tracker


class TrackFollower(Follower):
    """Links what is found in the windows of a video to tracks."""

    def __init__(self, task: 'VideoInstance'):
        self.task, self.tracker = task, Tracker()

    def encode(self, found):
        return encoded(found, self.task.num_classes)

    def add(self, window, frames):
        linked = add_window(self.tracker, window.frames, frames)
        for frame, found, (known, scores) in zip(window.frames, frames, linked, strict=True):
            if frame >= window.first_new:
                best = np.argsort(-scores.max(1), kind='stable')
                best = best[: self.task.config.eval.max_objects]
                visible = [m for m in best if found['masks'][m]]
                masks = [rle.decode(found['masks'][m]) for m in visible]
                yield found | {
                    'masks': np.stack(masks) if masks else np.zeros((0, *found['size']), bool),
                    'object_labels': scores[visible].argmax(1),
                    'object_scores': scores[visible].max(1),
                    'ids': np.array([known[m].id for m in visible], int),
                }

    def content(self, length):
        names, least = self.task.class_names, self.task.config.eval.threshold
        best = self.tracker.best(self.task.config.eval.max_objects)
        return {
            'tracks': [
                {
                    'id': track['id'],
                    'category_id': track['category_id'],
                    'category': names[track['category_id']],
                    'score': round(track['score'], 6),
                    'segmentations': segmentations(track, length),
                }
                for track in best
                if track['score'] >= least and track['masks']
            ]
        }


class VideoInstance(Clips, Instance):
    """Finds tracks; scores average precision as YouTubeVIS does."""

    recall_at_objects = (1, 10)

    @classmethod
    def adapt(cls, source):
        """Where videos have stuff, too, their things."""
        has_stuff = isinstance(source, TrackSource) and not all(source.things)
        return ThingTracks(source) if has_stuff else source

    @classmethod
    def from_source(cls, config, source):
        if not isinstance(source, TrackSource):
            raise ValueError(
                f'config.task = {config.task!r} needs videos with tracks, which '
                f'{config.data.name} does not have'
            )
        check_crops(config)
        return cls(config, source.class_names)

    def check(self, output):
        super().check(output)
        if output.follows and self.config.eval.average_over == 'frame':
            raise ValueError(
                "config.eval.average_over = 'frame': a track has one class, set it to 'clip' or "
                "'past'"
            )

    def example(self, source, index, rng):
        """As `Instance.example`, for a clip and its tracks."""
        frames = self.sample(source, index, rng)
        image = source.source.clip(index, frames)['image']  # [t, H, W, 3]
        found = [x for x in source.source.tracks(index, frames) if not x['iscrowd']]
        labels = np.array([track['category_id'] for track in found], np.int32)
        return {'image': image} | self.packed(rle.decode_tracks(found, image.shape[:3]), labels)

    def stand_in(self):
        length = self.config.data.clip_frames
        empty = self.packed(np.zeros((0, length, 1, 1), bool), np.zeros(0, np.int32))
        return {'image': np.zeros([length, 1, 1, 3], np.uint8)} | empty

    def postprocess(self, views, selection, size, canvas):
        """Masks bool [B, M, *canvas] of the M best queries of the clip in a frame, their
        'probabilities' [B, M, κ] of the 'ranked' categories [B, κ], 'embeddings' [B, M, D].

        Queries that stay with their objects have 'identities' [B, M], the numbers of the M best,
        instead of embeddings, and the probabilities of all queries, [B, Q, κ].
        """
        (view,) = views
        classes = class_probabilities(view.output)  # [B, Q, κ]
        # Twice as many as are reported, so that a window does not end what its neighbors see.
        count = min(2 * self.config.eval.max_objects, classes.shape[1])
        _, chosen = jax.lax.top_k(classes.max(-1), count)  # [B, M]
        masks, _ = object_masks(view, chosen, size, canvas)
        ranks = jnp.broadcast_to(
            jnp.arange(classes.shape[-1]), (classes.shape[0], classes.shape[-1])
        )  # [B, κ]
        ranked = ranks if selection is None else from_ranks(ranks, selection)
        found = {'masks': masks, 'ranked': ranked}
        if cast(QueryOutput, view.output).follows:
            return found | {'probabilities': classes, 'identities': chosen}
        take = jnp.take_along_axis
        return found | {
            'probabilities': take(classes, chosen[..., None], axis=1),
            'embeddings': take(view.output.queries, chosen[..., None], axis=1),
        }

    def label_map(self, found):
        """The label map of a frame of a clip: each object has its best class."""
        probabilities = found['probabilities']  # [M or Q, κ]
        if 'identities' in found:
            probabilities = probabilities[found['identities']]  # [M, κ]
        return self.painted(
            {
                'masks': found['masks'],
                'object_labels': found['ranked'][probabilities.argmax(1)],
                'object_scores': probabilities.max(1),
            }
        )

    def encode(self, examples, index, number, found):
        return encoded(found, self.num_classes)

    def follower(self):
        return TrackFollower(self)

    def join(self, examples, items):
        videos: dict[int, tuple[Tracker, set[int]]] = {}  # and the frames that were read
        for place, found, last in in_order(examples, items):
            window = examples.windows[place]
            tracker, read = videos.setdefault(window.video, (Tracker(), set()))
            add_window(tracker, window.frames, found)
            read.update(window.frames)
            if last:
                yield self.tracks(window.video, *videos.pop(window.video))
        for video, (tracker, read) in videos.items():  # their last clip could not be read
            yield self.tracks(video, tracker, read)

    def tracks(self, video: int, tracker: Tracker, read: set[int]) -> tuple[int, dict[str, Any]]:
        """What `join` says of a video."""
        best = tracker.best(self.config.eval.max_objects)
        return video, {'tracks': best, 'frames': sorted(read)}

    def image_statistics(self, source, index, found):
        frames, length = found['frames'], len(source.videos[index][1])
        predictions = [
            track | {'segmentations': [track['masks'].get(frame) for frame in frames]}
            for track in found['tracks']
        ]
        truth = source.tracks(index, frames)
        if len(frames) < length:  # tracks of the other frames alone cannot be found
            truth = [track for track in truth if any(track['segmentations'])]
        return {'objects': InstanceMetric.from_video(truth, predictions)}

    def writer(self, output, source):
        def save(path, entries):
            tracks.write_results(path, source, entries)

        return ResultsWriter(Path(output) / 'results.json', save)

    def write(self, writer, source, index, found):
        length = len(source.videos[index][1])
        found = [x | {'segmentations': segmentations(x, length)} for x in found['tracks']]
        writer.entries.append((source.video_id(index), found))


def add_window(tracker: Tracker, frames: range, found: list[dict[str, Any]]):
    """Adds a window to a tracker.

    Args:
      found: what is found in each frame, see `clips.in_order`.

    Returns:
      For each frame the tracks of its M masks, and their scores [M, K] as far as they are known.
    """
    if 'identities' in found[0]:
        return [
            (
                tracker.follow(
                    identities=x['identities'],
                    frame=frame,
                    masks=x['masks'],
                    probabilities=x['probabilities'],
                ),
                x['probabilities'][x['identities']],
            )
            for frame, x in zip(frames, found, strict=True)
        ]
    tracks = tracker.add(
        frames,
        [frame['masks'] for frame in found],
        found[0]['probabilities'],
        found[0]['embeddings'],
    )
    return [(tracks, np.stack([track.scores() for track in tracks]))] * len(found)


def encoded(found: dict[str, np.ndarray], num_classes: int) -> dict[str, Any]:
    """The arrays of a frame with run lengths for masks, and 'probabilities' [M or Q, K]."""
    probabilities = np.zeros((len(found['probabilities']), num_classes))
    probabilities[:, found['ranked']] = found['probabilities']
    encoded = found | {
        'masks': [rle.encode(mask) for mask in found['masks']],
        'size': found['masks'].shape[1:],
        'probabilities': probabilities,
    }
    if 'embeddings' in found:
        encoded['embeddings'] = np.asarray(found['embeddings'], np.float32)
    return encoded


def segmentations(track: dict[str, Any], length: int) -> list[dict | None]:
    """The run lengths of a track in each of `length` frames, None where it is not visible."""
    return [track['masks'].get(frame) for frame in range(length)]

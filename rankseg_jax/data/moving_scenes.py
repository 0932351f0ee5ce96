"""Composed videos: the objects of a scene move over a panning background; maps stay exact.

An object keeps its number and its place in the painting order. It may leave the image, pass
behind others, and come back. Only NumPy and Pillow are imported, as in `scenes`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rankseg_jax.data import scenes, workers
from rankseg_jax.data.scenes import SceneObject

LENGTHS = {'train': 24, 'validation': 24, 'test': 24, 'long': 300}  # frames of a video
SPLIT_SEEDS = {'train': 4, 'validation': 5, 'test': 6, 'long': 7}  # none is that of a scene
ARTWORK = 'twemoji'
CROSSING = 0.7  # probability that an object crosses the image
PAN = 0.08  # of the background to each direction, as a fraction of the image's side
VIDEOS_PER_WORKER = 2  # fewer are not worth starting a process


@dataclasses.dataclass(frozen=True)
class Swing:
    """A value that goes from 0 to `reach`, back, to -`reach` and so on, once in `period` frames.

    Its speed is constant if it `bounces`; otherwise it is a sine.
    """

    reach: float
    period: float
    bounces: bool = False

    def at(self, time: float) -> float:
        """The value after `time` frames."""
        wave = np.sin(2 * np.pi * time / self.period)
        if self.bounces:
            wave = np.arcsin(wave) * 2 / np.pi
        return float(self.reach * wave)


@dataclasses.dataclass(frozen=True)
class Motion:
    """How an object moves about the pose that it has in its scene.

    Attributes:
      time: at which it has this pose, in frames.
      direction: of the path, in radians.
      along, across: the path in this direction and to its side, in fractions of the image's side.
      growth: logarithm of the factor on its size.
      turn: degrees.
    """

    time: float
    direction: float
    along: Swing
    across: Swing
    growth: Swing
    turn: Swing


class Video(NamedTuple):
    """Frames as `scenes.render` returns them, and the category of each object by its number."""

    frames: list[dict[str, np.ndarray]]
    categories: list[int]


def sample_motion(rng: np.random.Generator, length: int) -> Motion:
    """A random motion: through the image and often out of it, or about a place.

    Args:
      rng: the result is a function of its state and the length.
      length: frames of the video. At some time within it the object has its scene's pose.
    """
    if rng.random() < CROSSING:
        reach, speed = rng.uniform(0.6, 1.1), rng.uniform(0.03, 0.08)  # sides, sides per frame
        along = Swing(reach, 4 * reach / speed, bounces=True)
    else:
        along = Swing(rng.uniform(0.05, 0.3), rng.uniform(24, 72), bounces=rng.random() < 0.3)
    return Motion(
        time=rng.uniform(0, length - 1),
        direction=rng.uniform(0, 2 * np.pi),
        along=along,
        across=Swing(rng.uniform(-0.15, 0.15), rng.uniform(20, 80)),
        growth=Swing(rng.uniform(-0.5, 0.5), rng.uniform(30, 120)),
        turn=Swing(rng.uniform(-90, 90), rng.uniform(30, 120)),
    )


def move(item: SceneObject, motion: Motion, frame: int) -> SceneObject:
    """The object as it is at a frame."""
    pose, time = item.pose, frame - motion.time
    along, across = motion.along.at(time), motion.across.at(time)
    cos, sin = np.cos(motion.direction), np.sin(motion.direction)
    pose = dataclasses.replace(
        pose,
        x=float(pose.x + along * cos - across * sin),
        y=float(pose.y + along * sin + across * cos),
        size=float(pose.size * np.exp(motion.growth.at(time))),
        angle=pose.angle + motion.turn.at(time),
    )
    return dataclasses.replace(item, pose=pose)


def make_video(num_classes: int, size: int, split: str, index: int) -> Video:
    """Makes video `index` of a split; the same on every call.

    A video with an object that is visible in no frame is drawn again.
    """
    length = LENGTHS[split]
    margin = round(PAN * size)
    rng = scenes.generator(num_classes, size, SPLIT_SEEDS[split], index=index)
    while True:
        objects = scenes.sample_scene(rng, num_classes)
        motions = [sample_motion(rng, length) for _ in objects]
        pans = [Swing(rng.uniform(-margin, margin), rng.uniform(60, 200)) for _ in range(2)]
        background = scenes.sample_background(rng, size + 2 * margin)
        frames = []
        for frame in range(length):
            top, left = (margin + round(pan.at(frame)) for pan in pans)
            moved = [
                move(item, motion, frame) for item, motion in zip(objects, motions, strict=True)
            ]
            view = background[top : top + size, left : left + size]  # [H, H, 3]
            frames.append(scenes.render(moved, view, ARTWORK))
        visible = set().union(*(np.unique(frame['panoptic']).tolist() for frame in frames))
        if visible >= set(range(1, len(objects) + 1)):
            return Video(frames, [item.category for item in objects])


def encode_video(num_classes: int, size: int, split: str, index: int) -> list[dict[str, Any]]:
    """The frames of `make_video`, encoded, each with 'objects': the category of every object."""
    video = make_video(num_classes, size, split, index=index)
    return [scenes.encode(frame) | {'objects': video.categories} for frame in video.frames]


def generate(num_classes: int, size: int, split: str, count: int) -> Iterator[dict[str, Any]]:
    """Yields the frames of `encode_video` of 0..count-1 in order, made on all cores."""
    scenes.artwork_folder(ARTWORK)  # report a missing package here, not in a worker
    videos = workers.generate(
        encode_video,
        *(num_classes, size, split),
        count=count,
        per_worker=VIDEOS_PER_WORKER,
        what=f'{split} video',
    )
    for frames in videos:
        yield from frames

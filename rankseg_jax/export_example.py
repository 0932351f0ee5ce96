"""The example.py of an exported model, which needs nothing of this package."""

import inspect

from rankseg_jax import tracking
from rankseg_jax.data import fitting, images, rle, videos

FIT = (  # copied into every example
    images.to_rgb,
    fitting.fitted_size,
    fitting.stretched_size,
    fitting.resize,
    fitting.blend,
    fitting.filtered,
    fitting.filter_weights,
    fitting.fit,
)
CLIPS = (images.find_frames, images.natural_order, videos.Window, videos.stream_windows)
TRACKS = (rle.encode, tracking.Track, tracking.Tracker, tracking.overlap, tracking.unit)

LOAD = """folder = Path(__file__).absolute().parent
about = json.loads((folder / 'labels.json').read_text())
params = ocp.StandardCheckpointer().restore(folder / 'params')
segment = jax.jit(jax.export.deserialize((folder / 'model.jax_export').read_bytes()).call)
"""

IMAGE = '''"""Segments one image: python example.py photo.jpg

Needs jax, orbax-checkpoint, numpy and pillow.
"""
import json, sys
from pathlib import Path
import jax, jax.export, numpy as np, orbax.checkpoint as ocp
from PIL import Image, ImageOps

FUNCTIONS
LOADphoto = to_rgb(Image.open(open(sys.argv[1], 'rb')))
image, content = fit(photo, about['size'], about['antialias'], about['resample'], about['stretch'])
found = segment(params, image[None], content[None])
'''
LABELS = """if 'labels' not in found:
    sys.exit(f'no label map to draw; the model returned {found}')
labels = np.asarray(found['labels'])[0, :content[0], :content[1]]
for label, count in zip(*np.unique(labels, return_counts=True)):
    print(f'{about["labels"][label]}: {count / labels.size:.1%} of the pixels')
Image.fromarray(labels.astype(np.uint16)).save('labels.png')
"""
OBJECTS = """masks = np.asarray(found['masks'])[0, :, :content[0], :content[1]]
classes, scores = np.asarray(found['object_labels'])[0], np.asarray(found['object_scores'])[0]
shown = [m for m in np.argsort(-scores) if scores[m] >= about['threshold'] and masks[m].any()]
ids = np.zeros(masks.shape[1:], np.uint16)  # 0: no object
for i, m in reversed(list(enumerate(shown, 1))):  # better objects lie over worse ones
    ids[masks[m]] = i
for i, m in enumerate(shown, 1):
    name = about['labels'][classes[m]]
    print(f'{i}: {name}, score {scores[m]:.2f}, {masks[m].mean():.1%} of the pixels')
Image.fromarray(ids).save('objects.png')
"""

VIDEO = '''"""Segments a video: python example.py video.mp4, or a folder of frames

Needs jax, orbax-checkpoint, numpy, pillow, PACKAGES and, for video files, av.
"""
import dataclasses, json, re, sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
import jax, jax.export, numpy as np, orbax.checkpoint as ocp
IMPORTS
FUNCTIONS

def read_frames(path):
    """The frames of a video file, or of a folder of images: uint8 [H, W, 3]."""
    if path.is_dir():
        for file in find_frames(path):
            yield to_rgb(Image.open(open(file, 'rb')))
        return
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield np.rot90(frame.to_ndarray(format='rgb24'), round(frame.rotation / 90))

LOADframes = read_frames(Path(sys.argv[1]))
output = Path('frames')
output.mkdir(exist_ok=True)
BEFOREfor window, clip in stream_windows(frames, about['clip_length'], about['clip_overlap']):
    length = len(clip)
    images, content = fit(
        np.stack(clip), about['size'], about['antialias'], about['resample'], about['stretch']
    )
    images = np.pad(images, [(0, about['clip_length'] - length), (0, 0), (0, 0), (0, 0)])
    found = segment(params, images[None], content[None], np.array([length], np.int32))
    found = {name: np.asarray(x)[0] for name, x in found.items()}
FRAMESprint(f'{window.frames.stop} frames written to {output}')
'''
LABEL_FRAMES = """    labels = found['labels'][:length, :content[0], :content[1]]
    for number in range(window.first_new, window.frames.stop):
        label_map = labels[number - window.frames.start]
        Image.fromarray(label_map.astype(np.uint16)).save(output / f'{number:05}.png')
"""
TRACK_FRAMES = """    masks = found['masks'][:length, :, :content[0], :content[1]]  # [t, M, h, w]
    probabilities = np.zeros((masks.shape[1], len(about['labels'])))  # [M, K]
    probabilities[:, found['ranked'][0]] = found['probabilities'][0]
    embeddings = found['embeddings'][0].astype(np.float32)  # [M, D]
    encoded = [[encode(mask) for mask in frame] for frame in masks]
    tracks = tracker.add(window.frames, encoded, probabilities, embeddings)
    scores = np.array([track.scores().max() for track in tracks])  # [M]
    best = np.argsort(-scores, kind='stable')[:about['max_objects']]
    for number in range(window.first_new, window.frames.stop):
        ids = np.zeros(masks.shape[2:], np.uint16)  # 0: no object
        for m in best[::-1]:  # better tracks lie over worse ones
            if scores[m] >= about['threshold']:
                ids[masks[number - window.frames.start, m]] = tracks[m].id
        Image.fromarray(ids).save(output / f'{number:05}.png')
"""
IMPORTS = f"""from PIL import Image, ImageOps

IMAGE_SUFFIXES = {images.IMAGE_SUFFIXES}
"""
TRACK_IMPORTS = f"""from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

IMAGE_SUFFIXES = {images.IMAGE_SUFFIXES}
LEAST_SIMILAR = {tracking.LEAST_SIMILAR}
"""


def program(*, clips: bool, objects: bool) -> str:
    """The text of example.py.

    Args:
      clips: the model sees clips of videos.
      objects: it finds masks, which may overlap, instead of a label map.
    """
    if not clips:
        text, copied = IMAGE + (OBJECTS if objects else LABELS), FIT
        parts = {}
    elif objects:
        text, copied = VIDEO, FIT + CLIPS + TRACKS
        parts = {
            'PACKAGES': 'scipy, pycocotools',
            'IMPORTS': TRACK_IMPORTS,
            'BEFORE': 'tracker = Tracker()\n',
            'FRAMES': TRACK_FRAMES,
        }
    else:
        text, copied = VIDEO, FIT + CLIPS
        parts = {', PACKAGES': '', 'IMPORTS': IMPORTS, 'BEFORE': '', 'FRAMES': LABEL_FRAMES}
    functions = '\n\n'.join(map(inspect.getsource, copied))
    for mark, part in (parts | {'LOAD': LOAD, 'FUNCTIONS': functions}).items():
        text = text.replace(mark, part)
    return text

"""Prediction from disk to disk: of images and videos, or of the evaluation split.

predictor = predict.load(workdir)
prediction_files.predict_files(predictor, ['photo.jpg', 'clip.mp4', 'folder'], output)
prediction_files.predict_split(predictor, config, output)
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rankseg_jax import categories, storage, tasks
from rankseg_jax.data import CorruptExample, batching, images, video_files
from rankseg_jax.predict import Predictor, Video
from rankseg_jax.tasks.result import Result
from rankseg_jax.visualize.panels import grid

VIDEO_SUFFIXES = (*video_files.VIDEO_SUFFIXES, *video_files.ANIMATION_SUFFIXES)
LONGEST_NAME = 255  # bytes, on most file systems


def predict_files(predictor: Predictor, inputs, output) -> Path:
    """Predicts images and videos from disk into the folder `output`, keeping their subfolders.

    See `Result.save` and `predict_video`. Each host predicts its share. What cannot be read is
    skipped, and named at the end.

    Raises:
      FileNotFoundError: as `find_images`.
      CorruptExample: not one of the images could be read.
      ValueError: `output` is a folder that images come from, which label maps might overwrite.
    """
    output, paths = Path(output), listed(inputs)
    videos, rest = find_videos(paths, output, as_clips=predictor.task.takes_clips)
    stills = find_images(rest, output) if rest else []
    stills = [pair for pair in stills if pair not in videos]  # animated images
    found, kinds = videos + stills, 'images and videos' if videos else 'images'
    written = {(output / name).parent.resolve() for _, name in found}
    if written & {path.resolve().parent for path, _ in found}:
        raise ValueError(f'--output={output} holds the images themselves; choose another folder')
    storage.make_folder(output)
    names = output_names(videos, stills, predictor.task.suffixes)
    pairs = [(path, output / name) for (path, _), name in zip(found, names, strict=True)]
    share = slice(jax.process_index(), None, jax.process_count())
    videos, stills = pairs[: len(videos)][share], pairs[len(videos) :][share]

    failed = predict_videos(predictor, videos) + predict_images(predictor, stills)
    total = len(videos + stills)
    if total and len(failed) == total:
        raise CorruptExample(f'no {kinds} could be read: ' + '; '.join(failed))
    if failed:
        lines = '\n  '.join(failed)
        print(f'{total - len(failed)} of {total} {kinds} predicted. Skipped:\n  {lines}')
    return output


def listed(inputs: Iterable[str | Path]) -> list[Path]:
    """The inputs, with the paths in a .txt list, one a line, in place of the list.

    Raises:
      FileNotFoundError: a list is empty.
      ValueError: a list is not UTF-8 text, or an input is in a bucket.
    """
    found = []
    for path in inputs:
        if storage.is_remote(path):
            raise ValueError(f'--input={path} must be a path: copy the files to a disk')
        path = Path(path)
        if path.suffix.lower() != '.txt' or not path.is_file():
            found.append(path)
            continue
        try:
            lines = path.read_text('utf-8-sig').splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not UTF-8 text ({error}); save it as UTF-8') from error
        if not (lines := list(filter(None, map(str.strip, lines)))):
            raise FileNotFoundError(f'--input: the list {path} is empty')
        found += [path.parent / line for line in lines]
    return found


def find_videos(
    inputs: Iterable[str | Path], output: Path, *, as_clips: bool
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Videos among inputs and in folders, and the inputs that may hold images.

    Args:
      output: a folder to leave out.
      as_clips: a folder with images is a video, not a collection.

    Returns:
      Each video's path and its path below the folder that was searched, or its name alone; and the
      other inputs.
    """
    videos, rest, output = [], [], Path(output).resolve()
    for path in map(Path, inputs):
        found = []
        if path.is_dir():
            found = [x for x in images.find(path, VIDEO_SUFFIXES) if video_files.is_video(x)]
            if as_clips:
                frames = set(images.find(path)).difference(found)  # which are no animations
                found += sorted({frame.parent for frame in frames})
            found = [x for x in found if output not in (x.resolve(), *x.resolve().parents)]
        elif path.is_file() and video_files.is_video(path):
            found = [path]
        name = Path(os.path.abspath(path)).name  # '.' has none
        videos += [(x, Path(name) if x == path else x.relative_to(path)) for x in found]
        if not found or path.is_dir() and not as_clips and images.find(path):
            rest.append(path)
    return videos, rest


def find_images(inputs: Iterable[str | Path], output: Path) -> list[tuple[Path, Path]]:
    """Images among the inputs, and in folders and their subfolders.

    Args:
      output: a folder to leave out of those that it lies in.

    Returns:
      Each image's path, and its path below the folder that was searched, or its name alone.

    Raises:
      FileNotFoundError: something does not exist, or there is no image at all.
    """
    found, missing, output = [], [], output.resolve()
    for path in map(Path, inputs):
        if path.is_dir():
            below = [(image, image.relative_to(path)) for image in images.find(path)]
            if path.resolve() in output.parents:  # earlier predictions
                own = output.relative_to(path.resolve())
                below = [pair for pair in below if not pair[1].is_relative_to(own)]
            found += below
        else:
            found.append((path, Path(path.name)))
            missing += [] if path.is_file() else [str(path)]
    if missing:
        raise FileNotFoundError(f'--input: no image file {", ".join(missing)}')
    if not found:
        raise FileNotFoundError(f'--input: no images in {", ".join(map(str, inputs))}')
    return found


def output_names(
    videos: Sequence[tuple[Path, Path]],
    stills: Sequence[tuple[Path, Path]],
    suffixes: Sequence[str],
) -> list[str]:
    """A name below the output for each one's files: its own, unless it is taken or too long.

    Args:
      videos: see `find_images`.
      stills: see `find_images`.
      suffixes: of the images that are written of a still, see `tasks.Task`.

    Returns:
      Those of the videos, then those of the stills.
    """
    longest = LONGEST_NAME - max(len(f'{suffix}.json') for suffix in suffixes)
    kinds: list[tuple[str, ...]] = [('', '.mp4', '.json')] * len(videos)
    kinds += [('.json', *(f'{suffix}.png' for suffix in suffixes))] * len(stills)
    # A video's frames come into a folder of its name, where no stills may come.
    taken = {str(folder) for _, below in stills for folder in below.parents}
    chosen = []
    for (_, below), endings in zip([*videos, *stills], kinds, strict=True):
        short = os.fsencode(below.stem)[: longest - 8].decode(errors='ignore')
        names = itertools.chain(
            [below.stem, below.name], (f'{short}_{i}' for i in itertools.count(2))
        )
        name = next(
            str(below.with_name(name))
            for name in names
            if len(os.fsencode(name)) <= longest
            and not {str(below.with_name(name + ending)) for ending in endings} & taken
        )
        taken |= {name + ending for ending in endings}
        chosen.append(name)
    return chosen


def predict_images(predictor: Predictor, pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Predicts images, see `Result.save`.

    Args:
      pairs: of each image its path, and that of its files without a suffix.

    Returns:
      The reasons why some cannot be read.
    """
    failed, paths = [], [path for path, _ in pairs]

    def save(item):
        place, result = item
        if not isinstance(result, CorruptExample):
            path, output = pairs[place]
            result.save(output, path)
        return item

    with batching.progress('Predicting', len(pairs)) as progress:
        results = predictor.many(paths)
        for place, result in batching.read_ahead(save, results, ahead=predictor.batch_size):
            progress.update()
            if isinstance(result, CorruptExample):
                logging.error('Skipped: %s', result)
                failed.append(str(result))
                continue
            path, output = pairs[place]
            progress.write(f'{path} -> {output}.png  {result.summary()}')
    return failed


def predict_videos(predictor: Predictor, pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Predicts videos, see `predict_video`; arguments and result as `predict_images`."""
    failed = []
    for path, output in pairs:
        try:
            predict_video(predictor, path, output)
        except CorruptExample as error:
            logging.error('Skipped: %s', error)
            failed.append(str(error))
    return failed


def predict_video(predictor: Predictor, path: Path, output: Path) -> None:
    """Predicts the video `path`, see `write_video`.

    Raises:
      CorruptExample: it cannot be read, possibly after some frames.
    """
    rate, count = video_files.frame_rate(path), video_files.number_of_frames(path)
    video = predictor.video(path)
    try:
        with batching.progress(f'Predicting {path.name}', count, 'frames') as progress:
            for _ in write_video(video, output, rate=rate, source=path):
                progress.update()
            progress.write(f'{path} -> {output}.mp4  {progress.n} frames')
    except CorruptExample as error:
        if not video.length:
            with contextlib.suppress(OSError):  # there are files of another one in it
                output.rmdir()
            raise
        raise CorruptExample(
            f'{error}; only the images of {video.length} frames are in {output}'
        ) from error


def write_video(video: Video, output: Path, *, rate: float, source: str | Path) -> Iterator[Result]:
    """Writes the results of a video as they come, and yields them.

    Args:
      output: <output>.mp4 shows the drawn frames, <output>/00000.png, … are the label maps or the
        ids of tracks, <output>.json holds the tracks. Those of an earlier video are removed.
      rate: frames a second.
      source: the name of the video, which the JSON file repeats.
    """
    path = output.with_name(f'{output.name}.json')
    remove_video(output)
    output.mkdir(parents=True, exist_ok=True)
    categories = {}
    with video_files.Writer(path.with_suffix('.mp4'), rate) as writer:
        for number, result in enumerate(video):
            result.map_image().save(output / f'{number:05}.png')
            writer.write(np.asarray(result.frame_overlay()))
            for name, confidence in result.categories:
                categories[name] = max(confidence, categories.get(name, 0.0))
            yield result
    ranked = sorted(categories.items(), key=lambda item: -item[1])
    content = {
        'video': str(source),
        'frames': video.length,
        'frames_per_second': rate,
        'categories': [
            {'category': name, 'confidence': round(confidence, 6)} for name, confidence in ranked
        ],
    }
    content |= video.content()
    path.write_text(json.dumps(content, indent=1))


def remove_video(output: Path) -> None:
    """Removes what `write_video` wrote, all of it or the frames before it was killed."""
    for suffix in ('.json', '.mp4'):
        output.with_name(f'{output.name}{suffix}').unlink(missing_ok=True)
    for number in itertools.count():
        frame = output / f'{number:05}.png'
        if not frame.is_file():
            return
        frame.unlink()


def predict_split(predictor: Predictor, config, output) -> Path | None:
    """Predicts the first `config.num_pictures` examples of the evaluation split, with the truth.

    Returns:
      `grid.png` in `output`, which shows them all, videos by their frame in the middle. Each one's
      panel is beside it, and what `Result.save` or `write_video` writes. None: the oracle on clips,
      which needs the truth of whole clips, draws none.

    Raises:
      CorruptExample: not one of the examples could be read.
      ValueError: the data has other categories than the model.
    """
    takes_clips = predictor.task.takes_clips
    if takes_clips and config.rankseg and config.rankseg.oracle:
        return None
    source = tasks.open_source(config, config.data.eval_split)
    categories.check(predictor.task, source, where='the model', data_config=config.data)
    output = storage.make_folder(output)
    panels = []
    count = len(source.videos if takes_clips else source)
    for place in range(min(config.num_pictures, count)):
        try:
            if takes_clips:
                name, index, result = predict_video_of(predictor, source, place, output)
                example = source.load(index)
            else:
                index, example = place, source.load(place)
                result = predictor(example['image'], example['label'])
                # With the folder's name, since videos have frames of the same name.
                name = Path(source.ids[index]).with_suffix('')
                result.save(output / name, source.ids[index])
        except CorruptExample as error:
            logging.error('Skipped: %s', error)
            continue
        panels.append(result.panel(**predictor.task.truth(source, index, example['label'])))
        panels[-1].save(output / f'{name}_panel.png')
    if not panels:
        raise CorruptExample(
            f'not one of the first {config.num_pictures} examples of '
            f'{config.data.eval_split!r} could be read'
        )
    grid(panels).save(output / 'grid.png')
    return output / 'grid.png'


def predict_video_of(
    predictor: Predictor, source, video: int, output: Path
) -> tuple[Path, int, Result]:
    """Predicts a video of a source, see `write_video`.

    Returns:
      Its name, and of the frame in the middle the index in the source and the result.
    """
    title, indices = source.videos[video]
    name, middle = Path(title), len(indices) // 2
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    frames = (source.load(index)['image'] for index in indices)
    results = write_video(
        predictor.video(frames), output / name, rate=video_files.FRAME_RATE, source=title
    )
    kept = [result for number, result in enumerate(results) if number == middle]
    return name, indices[middle], kept[0]

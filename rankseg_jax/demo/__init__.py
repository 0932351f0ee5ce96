"""A page on this machine that segments the photos and videos dropped on it: --mode=demo.

The browser gets each frame as an image and a map of its regions; it draws them, names them under
the pointer and mixes them (`viewer.js`). Gradio takes the files and serves the endpoint `/predict`.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from rankseg_jax import inference, predict, prediction_files
from rankseg_jax.data import CorruptExample, batching, coco, video_files
from rankseg_jax.predict import Predictor, nearest
from rankseg_jax.report.pictures import css, data_url
from rankseg_jax.tasks.result import Result
from rankseg_jax.visualize.colors import palette, shades
from rankseg_jax.visualize.painting import picture_size

MOST_BYTES = 200 * 2**20  # of a file that is dropped
FRAMES = 100  # of a video that the page shows
PHOTO_SIDE, FRAME_SIDE = 1024, 512  # pixels, longer side of what the page shows
KEPT_FOR = 3600  # seconds until an uploaded file or a result may be deleted


def run(config: ConfigDict | None, workdir: str | Path) -> None:
    """--mode=demo: serves a run or an exported model on this machine until it is interrupted.

    Args:
      config: of the run; None: of an exported model.

    Raises:
      ImportError: Gradio is missing.
      OSError: no port from $GRADIO_SERVER_PORT (7860) to the hundredth after it is free.
      ValueError: the run selects categories by the ground truth, or as `predict.load`.
    """
    if not importlib.util.find_spec('gradio'):
        raise ImportError('--mode=demo needs the package gradio: pip install gradio')
    predictor = predict.load(workdir, config.eval.checkpoint if config else 'last', config)
    with tempfile.TemporaryDirectory(prefix='rankseg_demo_') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # read when Gradio is imported, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # deletes the folder, too
        page = make_page(Demo(predictor, Path(folder)), Path(workdir).name)
        _, address, _ = page.launch(
            server_name='127.0.0.1',
            share=False,
            ssr_mode=False,
            max_file_size=MOST_BYTES,
            enable_monitoring=False,
            run_history=False,
            footer_links=['api', 'settings'],
            prevent_thread_lock=True,
            quiet=True,
        )
        print(f'Demo: {address} (Ctrl-C ends it)', flush=True)
        page.block_thread()


class Demo:
    """What the page and the endpoint ask for.

    Attributes:
      predictor: of the model.
      folder: for files; whoever made it deletes it.
      num_ranks: κ, the first n of which can be kept; 0 where there is nothing to keep.
    """

    def __init__(self, predictor: Predictor, folder: Path):
        options = predictor.task.config.get('rankseg')
        if options and options.oracle:
            raise ValueError(
                'config.rankseg.oracle = True selects by the ground truth, which a photo does not '
                'have: use --config.rankseg.oracle=False'
            )
        self.predictor, self.folder = predictor, folder
        # An exported function returns maps alone, whose ranks are settled.
        self.num_ranks = options.num_selected if options and options.select else 0
        self._compiled = set()

    def results(self, path: Path, kept: int, seconds: list[float]) -> Iterator[Result]:
        """The result of a photo, or those of the first frames of a video.

        Ranks are dropped after the network, so that no n compiles it again. Every call passes it:
        the outputs for a whole video would not fit into memory.

        Args:
          kept: n, ranks that take part.
          seconds: gets the time of each step on the device, without compilation.

        Raises:
          CorruptExample: the file cannot be read.
        """

        def segment(batch, stream):
            if self.num_ranks:
                batch = batch | {'kept': np.full(len(batch['mask']), kept, np.int32)}
            shapes = str(jax.tree.map(np.shape, batch)), batching.canvas_of(batch['size'])
            if shapes not in self._compiled:  # compiles before time is taken
                for _ in self.predictor.segment(batch, inference.Stream()):
                    self._compiled.add(shapes)
            found = self.predictor.segment(batch, stream)
            while True:
                start = time.perf_counter()
                arrays = jax.block_until_ready(next(found, None))
                if arrays is None:
                    return
                seconds.append(time.perf_counter() - start)
                yield arrays

        model = self.predictor
        timed = Predictor(
            model.fit,
            segment,
            model.task,
            num_devices=model.num_devices,
            batch_size=model.batch_size,
        )
        if video_files.is_video(path):
            frames = video_files.read_frames(path, model.max_pixels)
            yield from timed.video(itertools.islice(frames, FRAMES))
        else:
            yield timed(path)

    def view(
        self, path: Path, kept: int, before: Sequence[np.ndarray] | None = None
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What the viewer shows of a photo or a video.

        Args:
          kept: n, ranks that take part.
          before: what this returned in second place with all ranks; the viewer shows what changed.

        Returns:
          The viewer's value; and for each frame the classes as they are shown, [h, w] int16.

        Raises:
          CorruptExample: the file cannot be read.
        """
        video = video_files.is_video(path)
        side, seconds = FRAME_SIDE if video else PHOTO_SIDE, []
        frames, maps = [], []
        for number, result in enumerate(self.results(path, kept, seconds)):
            size = shown_size(result.image, side)
            maps.append(nearest(result.segment_labels(), size).astype(np.int16))
            frames.append(drawn(result, maps[-1], maps[-1] if before is None else before[number]))
        total = video_files.number_of_frames(path) or 0 if video else 1
        return {
            'name': path.name,
            'frames': frames,
            'left_out': max(0, total - len(frames)),
            'rate': video_files.frame_rate(path) if video else 0,
            'kept': kept,
            'seconds': sum(seconds) / len(frames),
        }, maps

    def predict(self, path: Path) -> tuple[dict[str, Any], Path]:
        """What --mode=predict writes: the content of the JSON file, and a label map or a video.

        Files of earlier calls are deleted after an hour.

        Raises:
          CorruptExample: the file cannot be read.
        """
        for folder in self.folder.glob('result_*'):
            with contextlib.suppress(FileNotFoundError):  # another call deletes it
                if time.time() - folder.stat().st_mtime > KEPT_FOR:
                    shutil.rmtree(folder)
        output = Path(tempfile.mkdtemp(prefix='result_', dir=self.folder)) / 'result'
        if video := video_files.is_video(path):
            prediction_files.predict_video(self.predictor, path, output)
        else:
            self.predictor(path).save(output, path.name)
        content = json.loads(output.with_suffix('.json').read_text())
        if video:
            content['video'] = path.name
        return content, output.with_suffix('.mp4' if video else '.png')


def shown_size(image: np.ndarray, side: int) -> tuple[int, int]:
    """Rows and columns of what is shown of an image: `side` pixels at most, few enlarged."""
    width, height = picture_size(image)
    scale = min(1, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def drawn(result: Result, labels: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """What the viewer shows of an image or a frame.

    Args:
      labels: [h, w] integers, the classes as they are shown, -1 for none.
      before: [h, w], those with all ranks.

    Returns:
      'image', a data URL; 'map', one whose colors are places in 'regions'; 'regions', of each its
      name, its score if it has one, its color if it is drawn, its share of the pixels, and what it
      was if it changed; and 'ranked', (name, confidence) of the categories.
    """
    size, names = labels.shape, result.class_names
    image = Image.fromarray(result.image).resize(size[::-1], Image.Resampling.LANCZOS)
    ids = np.zeros(size, np.int64)
    if result.segment_ids is not None:
        ids = np.where(labels < 0, 0, nearest(result.segment_ids, size)).astype(np.int64)
    # One number for each combination: class, segment, class before.
    codes = (labels.astype(np.int64) + 1 << 40) | (ids << 16) | (before.astype(np.int64) + 1)
    values, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    content = result.content()
    found = content.get('segments_info') or content.get('objects') or []
    scores = {segment['id']: segment['score'] for segment in found}

    def name(label):
        return names[label] if label >= 0 else 'nothing'

    regions = []
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        label, segment, was = (value >> 40) - 1, value >> 16 & 0xFFFFFF, (value & 0xFFFF) - 1
        color = shades(palette(len(names))[[label]], np.array([segment]))[0]
        regions.append(
            {
                'name': f'{name(label)} {segment}' if segment else name(label),
                'score': scores.get(segment),
                'color': css(color) if label >= 0 else None,
                'share': count / labels.size,
                'was': name(was) if was != label else None,
            }
        )
    numbers = coco.ids_to_rgb(places.reshape(size))
    return {
        'image': data_url(image, 'JPEG', quality=88),
        'map': data_url(Image.fromarray(numbers), 'PNG'),
        'regions': regions,
        'ranked': result.categories,
    }


def one_line(error: Exception, path: str) -> str:
    """What is wrong with an uploaded file, without the folder that it lies in."""
    return str(error).replace(path, Path(path).name)


def make_page(demo: Demo, run_name: str) -> Any:
    """The page, a `gradio.Blocks`, and the endpoint `/predict`."""
    import gradio as gr  # only here: an extra, and it takes seconds

    task = demo.predictor.task
    kind = task.config.task.replace('_', ' ')

    def view(path: str, *args):
        """`Demo.view`, or the line that says why the file cannot be read."""
        try:
            return demo.view(Path(path), *args)
        except CorruptExample as error:
            return {'error': one_line(error, path)}, None

    def show(path: str | None):
        if path is None:
            return None, None, demo.num_ranks
        value, maps = view(path, demo.num_ranks)
        return value, (path, maps), demo.num_ranks

    def show_again(shown, kept: int):
        if not shown or not shown[1]:
            return gr.skip()
        path, maps = shown
        return view(path, kept, maps)[0]

    def predict_file(file: gr.FileData) -> tuple[dict, gr.FileData]:
        """Segments a photo or a video.

        Returns what --mode=predict writes: the content of the JSON file; and the label map of a
        photo, or the video with what was found drawn over it.
        """
        given: Any = file  # Gradio passes a dict, or what a call has sent
        path = given.get('path') if isinstance(given, dict) else None
        # Gradio itself lets calls name any file of this machine.
        if not path or not Path(path).resolve().is_relative_to(demo.folder.resolve()):
            raise gr.Error('upload a file first, as handle_file does', print_exception=False)
        try:
            content, output = demo.predict(Path(path))
        except CorruptExample as error:
            raise gr.Error(one_line(error, path), print_exception=False) from error
        return content, gr.FileData(path=str(output))

    files = {
        name: (Path(__file__).parent / f'viewer.{name}').read_text('utf-8')
        for name in ('html', 'css', 'js')
    }
    page = gr.Blocks(
        analytics_enabled=False,
        title=f'{run_name} · RankSeg',
        fill_width=True,
        delete_cache=(KEPT_FOR, KEPT_FOR),
    )
    with page:
        ranks = f', κ = {demo.num_ranks}' if demo.num_ranks else ''
        gr.Markdown(f'# {run_name}\n{kind.capitalize()}, {task.num_classes} categories{ranks}')
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                dropped = gr.File(label='Photo or video', file_types=['image', 'video'], height=170)
                camera = gr.Image(
                    label='Camera', sources=['webcam'], type='filepath', format='png', height=220
                )
                kept = gr.Slider(
                    1,
                    max(2, demo.num_ranks),
                    demo.num_ranks,
                    step=1,
                    label='Ranks',
                    info='Keep the first n categories, and see what changes',
                    visible=demo.num_ranks > 1,
                )
            with gr.Column(scale=3, min_width=320):
                viewer = gr.HTML(
                    html_template=files['html'], css_template=files['css'], js_on_load=files['js']
                )
        shown = gr.State()
        alone = 'model'  # calls that share this wait for each other
        for source in (dropped, camera):
            source.change(
                show,
                inputs=source,
                outputs=[viewer, shown, kept],
                api_visibility='private',
                concurrency_id=alone,
            )
        kept.release(
            show_again,
            inputs=[shown, kept],
            outputs=viewer,
            api_visibility='private',
            concurrency_id=alone,
        )
        gr.api(predict_file, api_name='predict', concurrency_id=alone)
    return page

"""The report of --mode=evaluate and --mode=analyze: report.html, one page that loads nothing.

`content` makes plain data of what a pass over the split has observed, which report.json holds, too;
`write` adds the pictures of a few images and fills in the page of `page/`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from ml_collections import ConfigDict

from rankseg_jax import storage
from rankseg_jax.data import Source
from rankseg_jax.predict import Predictor
from rankseg_jax.report import pictures
from rankseg_jax.report.comparison import FIGURES, paired, read_others
from rankseg_jax.report.observed import Observed, safe_selected

PAGE = 'report.html'
EACH = 12  # of the worst, the median and the best images
EACH_VIDEO = 3
PAIRS = 20  # of confused classes
MAP = 30  # classes of the heat map
NOTHING = '(nothing)'  # predicted where a task finds no object

__all__ = ['FIGURES', 'PAGE', 'about', 'content', 'read_others', 'write']


def about(config: ConfigDict, saved: Any, workdir: str | Path) -> dict[str, Any]:
    """What the report says of a run.

    Args:
      config: of the run.
      saved: the `checkpoint.SavedRun`.
    """
    return {
        'run': str(workdir),
        'checkpoint': saved.step,
        'data': config.data.name,
        'split': config.data.eval_split,
        'task': config.task,
        'framework': config.model.framework,
        'num_selected': config.rankseg.num_selected if config.rankseg else None,
    }


def content(
    about: dict[str, Any],
    observed: Observed,
    scores: dict[str, Any],
    task: Any,
    source: Source,
    others: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The figures of the report; NaN where there are none.

    Args:
      about: see the function of this name.
      scores: see `tasks.Task.scores`.
      source: of the images.
      others: see `read_others`.

    Returns:
      Plain data for JSON, documented in docs/howto/report.md.
    """
    num_classes = observed.num_classes
    units = scored_units(observed, task, source)  # place → score
    order = sorted((place for place in units if not np.isnan(units[place])), key=units.__getitem__)
    names = [name for name, _ in source.videos] if task.takes_clips else source.ids
    found: dict[str, Any] = about | {
        'unit': 'video' if task.takes_clips else 'image',
        'images': len(observed.pairs),
        'scores': {name: x for name, x in scores.items() if not isinstance(x, list)},
        'classes': class_rows(observed, scores['classes'], task.class_names),
        'image_scores': {
            'name': task.image_score_name if observed.scores else 'mIoU',
            'ids': [names[place] for place in order],
            'scores': [units[place] for place in order],
        },
        'confusion': confusion(observed, task.class_names),
        'gallery': gallery(order, EACH_VIDEO if task.takes_clips else EACH),
    }
    # The best of the pairs of a video shows it; of images, the image itself.
    if task.takes_clips:
        video_of = videos_of(source)
        for pair in found['confusion']['pairs']:
            pair['examples'] = list(dict.fromkeys(video_of[i] for i in pair['examples']))[:1]
    if observed.categories:
        num_selected = min(about['num_selected'], num_classes)
        curves = observed.curves(num_selected)
        column = f'recall@{num_selected}'
        for row, share in zip(found['classes'], observed.found(num_selected), strict=True):
            row[column] = float(share)
        found |= {
            'curves': curves,
            'safe': safe_selected(curves['pixel_recall']),
            'calibration': observed.calibration(),
        }
    scored = found['image_scores']
    found['others'] = [
        {name: other[name] for name in ('run', 'checkpoint', 'scores', 'classes')}
        | {'paired': paired(scored, other['image_scores'])}
        for other in others
    ]
    return found


def class_rows(
    observed: Observed, rows: list[dict[str, Any]], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The scores of the classes, and how many images hold each."""
    rows = rows or [{'name': name} for name in class_names]
    images = observed.images_of().tolist()
    return [row | {'images': number} for row, number in zip(rows, images, strict=True)]


def videos_of(source: Source) -> dict[int, int]:
    """The video of each frame of a source."""
    return {frame: v for v, (_, frames) in enumerate(source.videos) for frame in frames}


def scored_units(observed: Observed, task: Any, source: Source) -> dict[int, float]:
    """The score of each image or video: the task's own, or else the mean IoU of the label maps."""
    if observed.scores:
        return observed.scores
    if not task.takes_clips:
        return {place: observed.mean_iou([place]) for place in observed.pairs}
    return {v: observed.mean_iou(frames) for v, (_, frames) in enumerate(source.videos)}


def gallery(order: Sequence[int], each: int) -> dict[str, list[int]]:
    """The worst, the median and the best places of `order`, which begins with the worst."""
    each = min(each, -(-len(order) // 3))
    middle = max((len(order) - each) // 2, 0)
    return {
        'worst': list(order[:each]),
        'median': list(order[middle : middle + each]),
        'best': list(order[::-1][:each]),
    }


def confusion(observed: Observed, class_names: Sequence[str]) -> dict[str, Any]:
    """The classes that are taken for each other the most.

    Returns:
      pairs: the true and the predicted class, the pixels, those whose true class was not among the
      κ best if there is a head, and as examples the places of the two images with the most. names:
      of the classes with the most wrong pixels. shares: of the pixels of each of them those that
      are predicted as each of them; nan without a pixel.
    """
    names = [*class_names, NOTHING]
    matrix = observed.confusion()
    wrong = matrix.tocoo()
    off = wrong.row != wrong.col
    rows, columns, pixels = wrong.row[off], wrong.col[off], wrong.data[off]
    total = int(matrix.sum())
    together = observed.all_pairs()
    owner = np.repeat([*observed.pairs], [x.shape[1] for x in observed.pairs.values()])
    pairs = []
    for place in np.argsort(-pixels, kind='stable')[:PAIRS]:
        true, predicted = int(rows[place]), int(columns[place])
        images = np.flatnonzero((together[0] == true) & (together[1] == predicted))
        images = images[np.lexsort((owner[images], -together[2, images]))]
        pairs.append(
            {
                'true': names[true],
                'predicted': names[predicted],
                'pixels': int(pixels[place]),
                'examples': owner[images[:2]].tolist(),
            }
        )
    sums = np.bincount(rows, pixels, len(names)) + np.bincount(columns, pixels, len(names))
    shown = np.argsort(-sums, kind='stable')[:MAP]
    shown = np.sort(shown[sums[shown] > 0])
    square = np.zeros((len(shown), len(shown)))
    inside = matrix[shown[shown < len(class_names)]][:, shown].toarray()
    square[: len(inside)] = inside
    held = np.append(np.asarray(matrix.sum(1)), 0)[shown, None]
    shares = np.where(held > 0, square / np.maximum(held, 1), np.nan)
    return {
        'labeled_pixels': total,
        'wrong_pixels': int(pixels.sum()),
        'pairs': pairs,
        'names': [names[c] for c in shown],
        'shares': shares.tolist(),
    }


def write(folder: Any, content: dict[str, Any], predictor: Predictor, source: Source) -> None:
    """Writes report.json and report.html.

    Args:
      content: see the function of this name, without NaN.
      predictor: draws the images of the gallery once more.
      source: of the images.
    """
    folder = storage.path(folder)
    (folder / FIGURES).write_text(json.dumps(content, indent=1))
    places = [place for part in content['gallery'].values() for place in part]
    places += [place for pair in content['confusion']['pairs'] for place in pair['examples']]
    items = pictures.draw(list(dict.fromkeys(places)), predictor, source)
    takes_clips = predictor.task.takes_clips
    scored = content['image_scores']
    scores = dict(zip(scored['ids'], scored['scores'], strict=True))
    for place, item in items.items():
        item['name'] = source.videos[place][0] if takes_clips else source.ids[place]
        item['score'] = scores.get(item['name'])
    page = rendered(content | {'items': items})
    # File names need not be UTF-8.
    (folder / PAGE).write_bytes(page.encode('utf-8', 'backslashreplace'))


def rendered(data: dict[str, Any]) -> str:
    """The page, with all that it needs."""
    from plotly import offline  # here: it takes a second to import

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('rankseg_jax.report', 'page'), autoescape=True
    )
    compact = {'separators': (',', ':'), 'ensure_ascii': False, 'allow_nan': False}
    environment.policies['json.dumps_kwargs'] = compact
    files = {
        name: (Path(__file__).parent / 'page' / f'report.{name}').read_text('utf-8')
        for name in ('css', 'js')
    }
    return environment.get_template('report.html.j2').render(
        data=data,
        plotly=offline.get_plotlyjs(),
        wrong=pictures.css(pictures.WRONG),
        not_selected=pictures.css(pictures.NOT_SELECTED),
        **files,
    )

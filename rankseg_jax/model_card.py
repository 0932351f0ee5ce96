"""The model card of a published run: README.md, as the Hugging Face hub shows it."""

import os
from pathlib import Path

import yaml
from ml_collections import ConfigDict

from rankseg_jax import evaluate, storage

OWN_DATA = ('folder', 'video_folder')  # readers of any data, which they do not name
UNKNOWN = 'unknown'

CARD = """\
---
{metadata}---

# {title}

{summary}

{picture}| | |
|---|---|
{facts}

## Scores

{scores}

## Use

With `rankseg_jax`, where MODEL is this folder or its name on the hub:

```bash
python main.py --workdir=runs/published --mode=convert --input=MODEL
python main.py --workdir=runs/published --mode=predict --input={example}
```
{transformers}
## License

{license}
"""
TRANSFORMERS = """
With `transformers`:

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation
processor = AutoImageProcessor.from_pretrained('MODEL')
model = AutoModelForUniversalSegmentation.from_pretrained('MODEL')
image = Image.open('photo.jpg').convert('RGB')
output = model(**processor(image, return_tensors='pt'))
processor.post_process_{task}_segmentation(output, target_sizes=[image.size[::-1]])
```
"""
NO_LICENSE = (
    'None has been chosen for these weights yet. Who publishes them replaces `license: unknown` '
    'at the top of README.md by one that their data and the weights they began with allow.'
)


def found_scores(
    workdir: str | os.PathLike, config: ConfigDict, step: int
) -> dict[str, dict[str, float]]:
    """The scores in percent that --mode=evaluate wrote into a workdir for a checkpoint, by split.

    Those of categories, those that are not numbers, and those of other settings than the config's
    are left out.

    Raises:
      ValueError: a file is damaged.
    """
    found = {}
    for file in sorted(storage.path(workdir).glob(f'scores_*_{step}.json')):
        split = file.name.removeprefix('scores_').removesuffix(f'_{step}.json')
        if scores := evaluate.read_scores(file, config):
            found[split] = {
                name: round(100 * float(x), 2) for name, x in scores.items() if isinstance(x, float)
            }
    return found


def license_in(card: Path) -> str:
    """The license that a card names, which its owner may have filled in; else `UNKNOWN`."""
    try:
        found = yaml.safe_load(card.read_text('utf-8').split('---\n')[1])['license']
        return found if isinstance(found, str) else UNKNOWN
    except (FileNotFoundError, IndexError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        return UNKNOWN


def text(
    config: ConfigDict,
    scores: dict[str, dict[str, float]],
    *,
    num_classes: int,
    num_parameters: int,
    step: int,
    license: str,
    picture: str,
    for_transformers: bool,
    different: list[str],
) -> str:
    """The text of README.md.

    Args:
      config: of the run.
      scores: see `found_scores`.
      num_classes: K.
      num_parameters: of the model.
      step: to which it was trained.
      license: as the hub calls it, such as apache-2.0.
      picture: name of a file beside the card, or ''.
      for_transformers: whether `transformers` loads the model.
      different: keys of the config by which its predictions there differ.
    """
    model, own = config.model, config.data.name in OWN_DATA
    kind, video = config.task.replace('_', ' '), config.task.startswith('video')
    data = 'own data' if own else config.data.name
    title = f'{model.framework} on {model.backbone}: {kind} segmentation of {data}'
    summary = f'A baseline without RankSeg: it classifies over all {num_classes} categories'
    if config.rankseg:
        seen = 'a video' if video else 'an image'
        summary = (
            f'A RankSeg model: it ranks all {num_classes} categories by whether {seen} holds them, '
            f'and classifies over the best κ = {config.rankseg.num_selected}'
        )
    facts = {
        'task': f'{kind} segmentation',
        'data': f'{data}, split `{config.data.train_split}`',
        'model': f'{model.framework}, backbone {model.backbone}',
        'categories, K': num_classes,
        'selected categories, κ': config.rankseg.num_selected if config.rankseg else 'none: all K',
        'parameters': f'{num_parameters:,}',
        'steps': step,
    }
    return CARD.format(
        metadata=metadata(
            config,
            scores,
            title=title,
            data=data,
            license=license,
            for_transformers=for_transformers,
        ),
        title=title,
        summary=f'{summary}.',
        picture=f'![Drawings of the split {config.data.eval_split}]({picture})\n\n' * bool(picture),
        facts='\n'.join(f'| {name} | {value} |' for name, value in facts.items()),
        scores=score_table(scores),
        example='video.mp4' if video else 'photo.jpg',
        transformers=transformers_section(config.task, different) if for_transformers else '',
        license=NO_LICENSE if license == UNKNOWN else f'These weights are under {license}.',
    )


def metadata(
    config: ConfigDict,
    scores: dict[str, dict[str, float]],
    title: str,
    data: str,
    license: str,
    for_transformers: bool,
) -> str:
    """The YAML at the top."""
    content = {
        'license': license,
        'library_name': 'transformers' if for_transformers else 'rankseg_jax',
        'pipeline_tag': 'image-segmentation',
        'tags': ['rankseg_jax', 'jax', config.model.framework, config.task],
    }
    if config.data.name not in OWN_DATA:
        content['datasets'] = [config.data.name]
    results = [
        {
            'task': {'type': 'image-segmentation'},
            'dataset': {'name': data, 'type': config.data.name, 'split': split},
            'metrics': [
                {'type': 'mean_iou' if name == 'mIoU' else name.lower(), 'name': name, 'value': x}
                for name, x in values.items()
            ],
        }
        for split, values in scores.items()
    ]
    if results:
        content['model-index'] = [{'name': title, 'results': results}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def score_table(scores: dict[str, dict[str, float]]) -> str:
    if not scores:
        return 'None: `--mode=evaluate` before `--mode=publish` adds them.'
    rows = [
        f'| {split} | {name} | {value} |'
        for split, values in scores.items()
        for name, value in values.items()
    ]
    return '\n'.join(['| split | score | % |', '|---|---|---|', *rows])


def transformers_section(task: str, different: list[str]) -> str:
    section = TRANSFORMERS.format(task=task)
    if different:
        section += (
            '\nIts predictions may differ a little from those of `rankseg_jax`, which follows '
            f'{", ".join(f"`{key}`" for key in different)} of the run, too.\n'
        )
    return section

"""Does RankSeg help where models converge? Rows of methods, paired by seed, with intervals.

    python benchmarks/does_it_help.py --workdir=runs/does_it_help
    python benchmarks/does_it_help.py --workdir=runs/does_it_help --rows=hypotheses --seeds=0

Every model starts from pretrained features: EfficientNet-Lite0 of ImageNet for photos (ccp59, in
two folds, with --ccp59=<folder>; CamVid, with --camvid=<folder>), and for composed scenes a narrow
ResNet that is first trained on scenes of other categories. A cell (data × row × seed × learning
rate) is a line of JSON in --out and is not repeated; processes with other --data or --seeds may run
at the same time once --pretrain_only is done. Baseline and RankSeg search their learning rates with
seed 0, on validation; further seeds take the best. `--costs` measures time and memory of a train
step and of prediction into costs.json beside --out, and trains nothing. `--table` prints tables
without training and writes the summary and figures of gains and curves beside --out.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from PIL import Image
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.helpers import Runs, compile_for, numbers, ratio, run, save, take_turns
from configs import camvid, common, folder, mask2former_tiny, quickstart
from rankseg_jax import checkpoint, evaluate, inference, sharding, train, train_step
from rankseg_jax.data import pipeline, scenes

_OUT = flags.DEFINE_string('out', 'benchmarks/results/does_it_help.jsonl', 'Finished cells.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/does_it_help', 'Folder of the pretrained backbone.')
_SCENES = flags.DEFINE_string('scenes', '', "Folder of generated scenes; '': TFDS's.")
_CCP59 = flags.DEFINE_string('ccp59', '', "ccp59's folder; '': left out.")
_CAMVID = flags.DEFINE_string('camvid', '', "CamVid's folder; '': left out.")
_DATA = flags.DEFINE_list('data', None, 'Only these data, such as emoji60.')
_ROWS = flags.DEFINE_list('rows', ['rows'], 'Names of rows; or rows, hypotheses: all of these.')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
_RATES = flags.DEFINE_list('rates', ['1'], 'Multiples of the learning rate to search, seed 0.')
_PRETRAIN_ONLY = flags.DEFINE_bool('pretrain_only', False, 'Stop after the backbone.')
_COSTS = flags.DEFINE_bool('costs', False, 'Measure time and memory, train nothing.')
_TABLE = flags.DEFINE_bool('table', False, 'Print tables, write the summary, train nothing.')

SIDE = 64  # of scenes, in pixels
OTHERS = range(150, 400)  # categories of the scenes that the narrow backbone is trained on


class Data(NamedTuple):
    """What a cell is trained and scored on.

    Attributes:
      config: makes the config of RankSeg with our defaults.
      kappa: κ that recalls 99 % of the categories at convergence; half of it is tried as well.
      metric: the score that decides.
      splits: to score on; the first chooses learning rates and rows, the last is reported.
    """

    config: Callable
    kappa: int
    metric: str = 'mIoU'
    splits: tuple[str, ...] = ('validation', 'test')


def scene_config(config, num_classes: int):
    """Sets the sizes of scenes, and the backbone that is trained on others."""
    config.data.num_classes, config.data.image_size = num_classes, SIDE
    config.data.dir = _SCENES.value
    config.augment.crop_size = config.eval.size = (SIDE, SIDE)
    config.model.backbone, config.model.pretrained = 'narrow', str(backbone_folder())
    return config


def emoji(num_classes: int, steps: int):
    config = scene_config(quickstart.get_config(), num_classes)
    config.steps = steps
    return config


def panoptic(steps: int):
    config = scene_config(mask2former_tiny.get_config(), 60)
    defaults = common.get_config()
    for name in ('train_selected', 'temperature'):
        config.rankseg[name] = defaults.rankseg[name]
    config.loss.cell_weight = defaults.loss.cell_weight
    config.steps = steps
    return config


def photos(fold: str):
    config = folder.get_config('light')
    config.data.dir = str(Path(_WORKDIR.value) / f'ccp59_{fold}')
    config.data.long_side = 128
    config.steps = 1500
    return config


def streets():
    config = camvid.get_config()
    config.data.dir = _CAMVID.value
    light = folder.get_config('light')
    config.model.update(light.model)
    config.data.mean, config.data.std = light.data.mean, light.data.std
    config.optimizer.update(light.optimizer)
    config.steps = 600
    return config


DATA = {
    'emoji60': Data(lambda: emoji(60, steps=3000), kappa=16),
    'emoji60_long': Data(lambda: emoji(60, steps=6000), kappa=16),
    'emoji150': Data(lambda: emoji(150, steps=3000), kappa=32),
    'panoptic60': Data(lambda: panoptic(steps=3000), kappa=16, metric='PQ'),
    'ccp59_a': Data(lambda: photos('a'), kappa=20, splits=('validation',)),
    'ccp59_b': Data(lambda: photos('b'), kappa=20, splits=('validation',)),
    'camvid': Data(streets, kappa=11, splits=('validation',)),
}

# Differences from our defaults.
RELEASED = {
    'rankseg.train_selected': 0,
    'rankseg.temperature': 'layer_norm',
    'rankseg.score_prior': False,
    'rankseg.missed': 'ignore',
    'loss.cell_weight': 0.0,
}
ROWS = {
    'baseline': None,
    'baseline + head': {'rankseg.select': False},
    'as released': RELEASED,
    'RankSeg': {},
    'oracle': {'rankseg.oracle': True},
}
BEFORE = {'rankseg.train_selected': 0, 'rankseg.temperature': 'layer_norm', 'loss.cell_weight': 0.0}
HYPOTHESES = {
    'defaults before': BEFORE,
    'trained over κ ranks': {'rankseg.train_selected': 0},
    'trained over 2κ ranks': {'rankseg.train_selected': 'twice'},
    'no loss of cells': {'loss.cell_weight': 0.0},
    'loss of cells × 2.5': {'loss.cell_weight': 1.0},
    'no prior': {'rankseg.score_prior': False},
    'a temperature by rank': {'rankseg.temperature': 'temperature'},
    'no scale by rank': {'rankseg.temperature': 'none'},
}
ALL_ROWS = ROWS | HYPOTHESES


def backbone_folder() -> Path:
    return Path(_WORKDIR.value) / 'backbone'


def pretrain() -> None:
    """Trains the narrow backbone on scenes of other categories, unless it is there."""
    if (backbone_folder() / 'checkpoints' / '0').is_dir():
        return
    root = Path(_WORKDIR.value) / 'pretraining'
    write_scenes(root / 'data', {'train': 5000, 'validation': 200})
    config = quickstart.get_config('baseline')
    config.data.name, config.data.dir, config.data.num_classes = 'folder', str(root / 'data'), 0
    config.augment.crop_size = config.eval.size = (SIDE, SIDE)
    config.steps, config.num_pictures = 3000, 0
    config.eval_every = config.checkpoint_every = config.steps
    if train.train(config, root / 'run') is None:
        sys.exit('Stopped; the same command goes on.')
    saved = checkpoint.open_run(root / 'run')
    model = checkpoint.read_model(root / 'run')
    parts = {name: {'backbone': model[name]['backbone']} for name in ('params', 'batch_stats')}
    about = {
        'config': config.to_dict(),
        'class_names': list(saved.class_names),
        'things': [],
        'next_step': 0,
        'score': None,
    }
    with checkpoint.open_checkpoints(backbone_folder(), keep=1) as manager:
        checkpoint.save(manager, 0, parts, None, about)


def write_scenes(root: Path, counts: dict[str, int]) -> None:
    """Scenes of OTHERS as a `folder` data set."""
    names = ['background', *(scenes.class_names(max(OTHERS) + 1)[i] for i in OTHERS)]
    root.mkdir(parents=True, exist_ok=True)
    (root / 'classes.txt').write_text('\n'.join(names))
    for number, (split, count) in enumerate(counts.items()):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            rng = scenes.generator(len(names), SIDE, 10 + number, i)
            objects = [
                item.__class__(item.category + OTHERS[0] - 1, item.pose)
                for item in scenes.sample_scene(rng, len(names))
            ]
            example = scenes.render(objects, scenes.sample_background(rng, SIDE))
            label = np.maximum(example['label'].astype(int) - (OTHERS[0] - 1), 0)
            Image.fromarray(example['image']).save(root / 'images' / split / f'{i}.png')
            Image.fromarray(label.astype(np.uint8)).save(root / 'labels' / split / f'{i}.png')


def write_folds(root: Path) -> None:
    """Two folds of ccp59 as folders of links: another 70 photos are for validation in each."""
    photos = sorted((root / 'images').glob('*/*.jpg'))
    for fold, held in (('a', range(70)), ('b', range(70, 140))):
        target = Path(_WORKDIR.value) / f'ccp59_{fold}'
        if target.is_dir():
            continue
        order = np.random.default_rng(0).permutation(len(photos))
        for place, i in enumerate(order):
            split = 'validation' if place in held else 'train'
            label = root / 'labels' / photos[i].parent.name / f'{photos[i].stem}.png'
            for kind, path in (('images', photos[i]), ('labels', label)):
                link = target / kind / split / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.absolute())
        (target / 'classes.txt').write_text((root / 'classes.txt').read_text())


def make_config(data: str, row: str, seed: int, rate: float):
    """The config of a cell."""
    setting, changes = DATA[data], ALL_ROWS[row]
    config = setting.config()
    config.seed, config.num_pictures = seed, 0
    config.optimizer.learning_rate *= rate
    config.optimizer.warmup_steps = config.steps // 12
    config.log_every = config.checkpoint_every = config.steps
    config.eval_every = config.steps // 3
    if changes is None:
        config.rankseg = None
        return config
    config.rankseg.num_selected = setting.kappa
    for key, value in changes.items():
        group, name = key.split('.')
        config[group][name] = 2 * setting.kappa if value == 'twice' else value
    return config


def run_cell(data: str, row: str, seed: int, rate: float) -> dict:
    """Trains a cell; its curve on validation, and its scores by split and κ."""
    setting, config = DATA[data], make_config(data, row, seed, rate)
    start = time.time()
    with tempfile.TemporaryDirectory() as workdir:
        if train.train(config, workdir) is None:
            sys.exit('Stopped; the same command starts this cell again.')
        seconds = time.time() - start
        lines = map(json.loads, (Path(workdir) / 'metrics.jsonl').read_text().splitlines())
        curve = [
            (line['step'], line[f'eval/{setting.metric}'])
            for line in lines
            if f'eval/{setting.metric}' in line
        ]
        saved = checkpoint.open_run(workdir)
        scores = {}
        for split in setting.splits:
            for kappa in kappas(saved.config, len(saved.class_names)):
                scored = saved.config.copy_and_resolve_references()
                scored.data.eval_split = split
                if scored.rankseg:
                    scored.rankseg.num_selected = kappa
                scores[f'{split}@{kappa}'] = numbers(evaluate.run(scored, workdir))
    return describe(data, row, seed, rate) | {
        'steps': config.steps,
        'samples': config.steps * config.batch_size,
        'kappa': setting.kappa,
        'num_classes': len(saved.class_names),
        'seconds': round(seconds, 1),
        'curve': curve,
        'scores': scores,
    }


def costs(data: str) -> dict:
    """Median seconds and temporary MB of a train step and of prediction, for a batch of images.

    Baseline and RankSeg take turns.
    """
    calls, memory = {}, {}
    for row in ('baseline', 'RankSeg'):
        setup = train.set_up(make_config(data, row, seed=0, rate=1.0))
        config, state = setup.config, jax.jit(setup.new_state)()
        batches = pipeline.train_batches(setup.source, config, setup.task, start_step=0)
        batch = sharding.shard_batch(next(batches), setup.mesh)
        batches.close()
        canvas = batch['image'].shape[1:3]
        size = jnp.full((len(batch['image']), 2), jnp.array(canvas))

        def predict(variables, image, setup=setup, canvas=canvas, size=size):
            views = ({'image': image, 'content': size},)
            return inference.segment(
                setup.model, variables, views, size, setup.config, setup.task, canvas=canvas
            ).maps

        step = train_step.make_train_step(setup.model, setup.optimizer, config, setup.task)
        for name, function, arguments in (
            ('train', step, (state, batch)),
            ('predict', predict, (state.model, batch['image'])),
        ):
            compiled, memory[f'{row}, {name}'] = compile_for(function, *arguments)
            calls[f'{row}, {name}'] = run(compiled, *arguments)
    seconds = take_turns(calls, rounds=9)
    return {'data': data, 'images': config.batch_size} | {
        name: {
            'seconds': statistics.median(seconds[name]),
            'ratio': ratio(seconds, name, f'baseline, {name.split(", ")[1]}'),
            'memory': memory[name],
        }
        for name in calls
    }


def describe(data: str, row: str, seed: int, rate: float) -> dict:
    return {'data': data, 'row': row, 'seed': seed, 'rate': rate}


def kappas(config, num_classes: int) -> list[int]:
    """Where a run is scored: at its κ, or at half of it and at the most that it was trained for.

    Where that is K, at κ as well.
    """
    options = config.rankseg
    if not options:
        return [num_classes]
    most = min(num_classes, max(options.train_selected, options.num_selected))
    fixed = most == options.num_selected or options.temperature == 'layer_norm'
    if fixed or options.oracle or not options.select:
        return [options.num_selected]
    half = options.num_selected // 2
    return sorted({half, options.num_selected, most} if most == num_classes else {half, most})


def score(cell: dict, split: str, metric: str, kappa: int | None = None) -> float:
    """In percent; by default at the cell's κ, or all K for the baseline."""
    scores = cell['scores']
    at = f'{split}@{kappa or cell["kappa"]}'
    return 100 * scores[at if at in scores else f'{split}@{cell["num_classes"]}'][metric]


def half_width(differences) -> float:
    """Half of the 95 % interval of the mean of paired differences, by Student's t."""
    return stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)


def interval(differences) -> str:
    """Mean and 95 % interval of paired differences."""
    mean = np.mean(differences)
    if len(differences) < 2:
        return f'{mean:+.1f}'
    return f'{mean:+.1f} ± {half_width(differences):.1f}'


def best_rate(cells: list[dict], data: str, row: str) -> float:
    """The learning rate that is best on validation with seed 0; RankSeg's for its variants."""
    like = row if ALL_ROWS[row] is None else 'RankSeg'
    setting = DATA[data]
    found = [c for c in cells if (c['data'], c['row'], c['seed']) == (data, like, 0)]
    if not found:
        return 1.0
    return max(found, key=lambda c: score(c, setting.splits[0], setting.metric))['rate']


def chosen(cells: list[dict], data: str, row: str) -> dict[int, dict]:
    """The cells of a row at its learning rate, by seed."""
    rate = best_rate(cells, data, row)
    return {c['seed']: c for c in cells if (c['data'], c['row'], c['rate']) == (data, row, rate)}


def table(cells: list[dict], data: str) -> str:
    """A row for each method and κ: scores, paired differences from the baseline, recall."""
    setting = DATA[data]
    split = setting.splits[-1]
    metrics = ('PQ', 'mIoU') if setting.metric == 'PQ' else (setting.metric,)
    base = chosen(cells, data, 'baseline')
    titles = ['row', 'κ', 'seeds']
    for metric in metrics:
        titles += [metric, '− baseline']
    titles += ['recall@κ', 'last third', 'rate']
    lines = ['| ' + ' | '.join(titles) + ' |', '|---' * len(titles) + '|']
    for row in ALL_ROWS:
        mine = chosen(cells, data, row)
        if not mine:
            continue
        first = next(iter(mine.values()))
        for at in sorted({int(key.split('@')[1]) for key in first['scores']}):
            values = [row, str(at), str(len(mine))]
            for metric in metrics:
                each = {seed: score(c, split, metric, at) for seed, c in mine.items()}
                paired = [
                    value - score(base[seed], split, metric)
                    for seed, value in each.items()
                    if seed in base
                ]
                found = list(each.values())
                error = f' ± {stats.sem(found):.1f}' if len(found) > 1 else ''
                values.append(f'{np.mean(found):.1f}{error}')
                values.append(interval(paired) if paired and row != 'baseline' else '')
            recalls = [
                value
                for c in mine.values()
                for name, value in c['scores'][f'{split}@{at}'].items()
                if name == f'category_recall@{at}'
            ]
            values.append(f'{100 * np.mean(recalls):.1f}' if recalls else '')
            gains = [100 * (c['curve'][-1][1] - c['curve'][-2][1]) for c in mine.values()]
            values += [f'{np.mean(gains):+.1f}', f'{first["rate"]:g}']
            lines.append('| ' + ' | '.join(values) + ' |')
    return '\n'.join(lines)


def costs_table(measured: list[dict]) -> str:
    lines = ['| data | | baseline | RankSeg | time | memory |', '|---' * 6 + '|']
    for found in measured:
        for name in ('train', 'predict'):
            pair = [found[f'{row}, {name}'] for row in ('baseline', 'RankSeg')]
            cells = [f'{1000 * x["seconds"]:.0f} ms, {x["memory"]:.0f} MB' for x in pair]
            ratios = f'{pair[1]["ratio"]:.2f} ×', f'{pair[1]["memory"] / pair[0]["memory"]:.2f} ×'
            lines.append(f'| {" | ".join([found["data"], name, *cells, *ratios])} |')
    return '\n'.join(lines)


def summary(cells: list[dict]) -> list[dict]:
    """For each data and metric, the scores of baseline, RankSeg and oracle by seed, in percent."""
    found = []
    for data, setting in DATA.items():
        for metric in ('PQ', 'mIoU') if setting.metric == 'PQ' else (setting.metric,):
            rows = {row: chosen(cells, data, row) for row in ('baseline', 'RankSeg', 'oracle')}
            seeds = sorted(set(rows['baseline']) & set(rows['RankSeg']))
            if not seeds:
                continue
            cell = rows['RankSeg'][seeds[0]]
            found.append(
                {
                    'task': 'panoptic' if setting.metric == 'PQ' else 'semantic',
                    'data': data,
                    'framework': 'mask2former' if setting.metric == 'PQ' else 'upernet',
                    'metric': metric,
                    'kappa': cell['kappa'],
                    'num_classes': cell['num_classes'],
                }
                | {
                    row.lower(): [
                        round(score(mine[seed], setting.splits[-1], metric), 2)
                        for seed in seeds
                        if seed in mine
                    ]
                    for row, mine in rows.items()
                }
            )
    return found


def draw(cells: list[dict], path: Path) -> None:
    """RankSeg's gains with their intervals, against κ as a share of K."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout='constrained')
    axes = figure.subplots()
    shift = 0
    for data, setting in DATA.items():
        base, mine = (chosen(cells, data, row) for row in ('baseline', 'RankSeg'))
        seeds = sorted(set(base) & set(mine))
        if len(seeds) < 3:
            continue
        num_classes, split = mine[seeds[0]]['num_classes'], setting.splits[-1]
        at = sorted({int(key.split('@')[1]) for key in mine[seeds[0]]['scores']})
        for metric in ('PQ', 'mIoU') if setting.metric == 'PQ' else (setting.metric,):
            gains = [
                [score(mine[i], split, metric, k) - score(base[i], split, metric) for i in seeds]
                for k in at
            ]
            axes.errorbar(
                [1.02**shift * k / num_classes for k in at],
                np.mean(gains, axis=1),
                [half_width(each) for each in gains],
                marker='o',
                capsize=4,
                label=f'{data}, {metric}',
            )
            shift += 1
    axes.axhline(0, color='gray', linewidth=1)
    axes.set_xscale('log')
    shares = (0.1, 0.2, 0.5, 1)
    axes.set_xticks(shares, [f'{share:.0%}' for share in shares], minor=False)
    axes.set_xticks([], minor=True)
    axes.set(xlabel='κ, as a share of K', ylabel='RankSeg − baseline, points')
    if shift:
        figure.legend(loc='outside right upper', fontsize='small')
    figure.savefig(path, dpi=110)


def draw_curves(cells: list[dict], path: Path) -> None:
    """Scores on validation during training, means over seeds and their standard errors."""
    from matplotlib.figure import Figure

    shown = [data for data in DATA if chosen(cells, data, 'RankSeg')]
    rows = -(-len(shown) // 4)
    figure = Figure(figsize=(10.4, 2.8 * rows), layout='constrained')
    for place, data in enumerate(shown, 1):
        axes = figure.add_subplot(rows, 4, place)
        for row in ('baseline', 'RankSeg'):
            curves = [dict(cell['curve']) for cell in chosen(cells, data, row).values()]
            if curves:
                steps = sorted(set.intersection(*map(set, curves)))
                values = 100 * np.array([[curve[step] for step in steps] for curve in curves])
                error = stats.sem(values) if len(values) > 1 else None
                axes.errorbar(steps, values.mean(0), error, marker='.', capsize=3, label=row)
        axes.set(title=data, xlabel='steps', ylabel=DATA[data].metric, ylim=(0, None))
        axes.legend(fontsize='small')
    figure.savefig(path, dpi=110)


def cells_to_run(cells: Callable):
    """Yields (data, row, seed, learning rate), seed by seed; `cells()` reads the finished ones."""
    absent = {'camvid': not _CAMVID.value, 'ccp59_a': not _CCP59.value, 'ccp59_b': not _CCP59.value}
    names = {'rows': list(ROWS), 'hypotheses': list(HYPOTHESES)}
    rows = [row for name in _ROWS.value for row in names.get(name, [name])]
    for seed in map(int, _SEEDS.value):
        for data in _DATA.value or DATA:
            if absent.get(data):
                print(f'{data} is left out: a flag says where it lies')
                continue
            for row in rows:
                searched = row in ('baseline', 'RankSeg') and seed == 0
                for rate in map(float, _RATES.value) if searched else [None]:
                    yield data, row, seed, rate or best_rate(cells(), data, row)


def main(_):
    logging.set_verbosity(logging.WARNING)
    runs = Runs(_OUT.value)
    if not _TABLE.value and not _COSTS.value:
        pretrain()
        if _CCP59.value:
            write_folds(Path(_CCP59.value))
        for cell in [] if _PRETRAIN_ONLY.value else cells_to_run(runs.read):
            if not any(describe(*cell).items() <= found.items() for found in runs.read()):
                print(f'== {" / ".join(map(str, cell))}', flush=True)
                runs.add(run_cell(*cell))
    place = Path(_OUT.value).with_name('costs.json')
    if _COSTS.value:
        save([costs(data) for data in _DATA.value or DATA], str(place))
    if place.exists():
        print(f'\n**Costs**\n\n{costs_table(json.loads(place.read_text()))}')
    cells = runs.read()
    for data in DATA:
        if any(cell['data'] == data for cell in cells):
            print(f'\n**{data}**\n\n{table(cells, data)}')
    if not cells:
        return
    draw(cells, Path(_OUT.value).with_name('gain.png'))
    draw_curves(cells, Path(_OUT.value).with_name('curves.png'))
    path = Path(_OUT.value).with_name('summary.json')
    path.write_text(json.dumps(summary(cells), indent=1) + '\n')


if __name__ == '__main__':
    app.run(main)

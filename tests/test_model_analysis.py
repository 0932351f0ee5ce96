import json

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy import sparse

from rankseg_jax import (
    analysis,
    checkpoint,
    cli,
    data,
    evaluate,
    models,
    processes,
    sharding,
    tasks,
)
from rankseg_jax.analysis import cost, observations, statistics
from rankseg_jax.analysis import model as model_analysis
from rankseg_jax.data import CorruptExample, Source
from rankseg_jax.report.observed import Observed, recall_by_frequency
from tests import tiny

NAMES = (
    'sky',
    'a price of $5 or $\\frac$',
    'under_score^',
    'a name that is much too long to stand beside a chart',
    '道路',
    *'fgh',
)
UNREADABLE, EMPTY = 6, 4  # of the validation images


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """8 classes, of which the last has no pixel.

    One image is unreadable, one is ignored everywhere, and one label file is out of range.
    """
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    (root / 'classes.txt').write_text('\n'.join(NAMES))
    for split, number in (('train', 3), ('validation', 9)):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True)
        for i in range(number):
            rows, columns = [(32, 32), (40, 24), (17, 50)][i % 3]
            blocks = rng.choice(7, (6, 7), p=np.arange(7, 0, -1) / 28)
            label = np.kron(blocks, np.ones((8, 8), int))[:rows, :columns].astype(np.uint8)
            label[:3] = 255
            if (split, i) == ('validation', EMPTY):
                label[:] = 255
            if (split, i) == ('train', 2):
                label[5, 5] = 77
            Image.fromarray(label).save(root / f'labels/{split}/{i}.png')
            picture = Image.fromarray(rng.integers(0, 256, (rows, columns, 3), np.uint8))
            picture.save(root / f'images/{split}/{i}.png')
    path = root / f'images/validation/{UNREADABLE}.png'
    path.write_bytes(path.read_bytes()[:600])  # the header is whole
    return root


def test_costs_of_a_layer_norm_over_ranks():
    config = tiny.config('', rankseg__temperature='layer_norm', rankseg__num_selected=8)
    found = cost.prediction_cost(config, num_classes=8, num_selected=2)
    assert found['num_selected'] == 2 and found['milliseconds'] > 0


def make_run(folder, workdir, **overrides):
    """A config and a checkpoint of random parameters."""
    config = tiny.config(folder, data__name='folder', eval__batch_size=4)
    with config.unlocked():
        if overrides.pop('baseline', False):
            config.rankseg = None
    for key, value in overrides.items():
        config.rankseg[key] = value
    model = models.build(config, 8)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: rng.normal(0.2, 0.3, x.shape).astype(x.dtype) ** 2,
        jax.eval_shape(lambda: models.init(model, 8, 0, (32, 32))),
    )
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        run = {
            'config': config.to_dict(),
            'class_names': list(NAMES),
            'next_step': 5,
            'score': None,
        }
        checkpoint.save(manager, 5, variables, {'count': np.zeros(1)}, run)
    return config, variables


def no_cost(config, num_classes, num_selected):
    return {'num_selected': num_selected, 'milliseconds': 1.0, 'temporary_bytes': 1}


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
    """A run with its analysis: config, variables, what was returned, the folder written."""
    workdir = tmp_path_factory.mktemp('run')
    config, variables = make_run(folder, workdir, temperature='temperature')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_analysis, 'prediction_cost', no_cost)
        return config, variables, analysis.run(config, workdir), workdir / 'analysis_validation_5'


def pixels_of(folder, split='validation'):
    """[N, K] labeled pixels of the label files whose images can be read."""
    source = data.get_source(tiny.config(folder, data__name='folder').data, split)
    labels = [
        source.read_label(path) for i, (_, path) in enumerate(source.files.pairs) if i != UNREADABLE
    ]
    return np.array([[(label == c).sum() for c in range(8)] for label in labels])


@pytest.mark.parametrize('seed', range(3))
def test_recall_equals_counting_by_hand(seed):
    rng = np.random.default_rng(seed)
    # Ties, and zeros of both signs.
    logits = rng.integers(-2, 3, (12, 40)) * np.float32(0.5) * rng.choice([-1, 1], (12, 40))
    counts = rng.integers(1, 50, (12, 40)) * (rng.random((12, 40)) < 0.3)
    counts[3] = 0
    curves = statistics.recall(logits.astype(np.float32), sparse.csr_array(counts))
    labeled = [i for i in range(12) if counts[i].sum()]
    for k in range(1, 41):
        best = [sorted(range(40), key=lambda c: (-logits[i, c], c))[:k] for i in range(12)]
        categories = [
            sum(counts[i, c] > 0 for c in best[i]) / (counts[i] > 0).sum() for i in labeled
        ]
        pixels = [sum(counts[i, c] for c in best[i]) for i in labeled]
        assert curves['category_recall'][k - 1] == pytest.approx(np.mean(categories))
        assert curves['image_pixel_recall'][k - 1] == pytest.approx(
            np.mean(pixels / counts[labeled].sum(1))
        )
        assert curves['pixel_recall'][k - 1] == pytest.approx(sum(pixels) / counts.sum())
    assert [curves[name][-1] for name in curves] == [1, 1, 1]


def test_recall_by_frequency_equals_counting_by_hand():
    rng = np.random.default_rng(1)
    held = rng.random((30, 9)) < np.linspace(0.05, 0.9, 9)[rng.permutation(9)]
    held[4] = False
    found = recall_by_frequency(sparse.csr_array(held * rng.integers(1, 50, (30, 9))))
    commonest = sorted(range(9), key=lambda c: (-held[:, c].sum(), c))
    for k in range(1, 10):
        shares = [row[commonest[:k]].sum() / row.sum() for row in held if row.any()]
        assert found[k - 1] == pytest.approx(np.mean(shares))


@pytest.mark.parametrize('selected', [None, 3, 6])
def test_categories_equal_scikit_learn(selected):
    metrics = pytest.importorskip('sklearn.metrics')
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, (40, 6)) * (rng.random((40, 6)) < 0.4)
    counts[:, 4] = 0
    logits = rng.normal(-0.5, 1, (40, 6)) + (counts > 0)
    logits = np.round(logits, 1).astype(np.float32)  # rounded: ties, and exact zeros
    logits[:, 2] = -3
    chosen = None if selected is None else np.argsort(-logits, 1, kind='stable')[:, :selected]
    empty = sparse.csr_array((6, 6), dtype=np.int64)
    rows = statistics.categories(
        observations.Observations(
            sparse.csr_array(counts), logits, chosen, empty, empty, [], Observed(6)
        ),
        [f'c{i}' for i in range(6)],
    )
    present = counts > 0
    with np.errstate(all='ignore'):
        precision, recall, _, support = metrics.precision_recall_fscore_support(
            present, 1 / (1 + np.exp(-logits)) >= 0.5, average=None, zero_division=np.nan
        )
    for c, row in enumerate(rows):
        assert (row['name'], row['images'], row['pixels']) == (
            f'c{c}',
            support[c],
            counts[:, c].sum(),
        )
        np.testing.assert_allclose(row['precision'], precision[c], rtol=1e-12)
        np.testing.assert_allclose(row['recall'], recall[c], rtol=1e-12)
        expected = (
            metrics.average_precision_score(present[:, c], logits[:, c]) if support[c] else np.nan
        )
        np.testing.assert_allclose(row['average_precision'], expected, rtol=1e-12)
        if selected:
            kept = [c in chosen[i] for i in range(40) if present[i, c]]
            np.testing.assert_allclose(row['selected'], np.mean(kept) if kept else np.nan)
    assert ('selected' in rows[0]) == bool(selected)


class Scenes(Source):
    """Images of several sizes; number 2 is all ignored, number 3 cannot be read."""

    class_names = tuple('abcdef')
    ids = [f'scene {i}' for i in range(7)]

    def load(self, index):
        if index == 3:
            raise CorruptExample('scene 3: no picture')
        rng = np.random.default_rng(index)
        shape = [(5, 9), (70, 3), (8, 8)][index % 3]
        label = rng.integers(-1, 5, shape).astype(np.int32)
        return {
            'image': np.zeros((*shape, 3), np.uint8),
            'label': np.full_like(label, -1) if index == 2 else label,
        }


def test_one_pass_equals_scikit_learn_and_counting_by_hand():
    metrics = pytest.importorskip('sklearn.metrics')
    source, config, mesh = Scenes(), tiny.config('', eval__batch_size=3), sharding.make_mesh(1)
    rng = np.random.default_rng(0)
    answers = {}

    def segment(variables, batch):
        shape = batch['label'].shape
        predictions, chosen = (
            rng.integers(0, 6, shape),
            rng.permuted(np.tile(np.arange(6), (3, 1)), axis=1)[:, :2],
        )
        scores = rng.normal(size=(3, 6))
        for i, index in enumerate(np.asarray(batch['index'])):
            rows, columns = np.asarray(batch['size'])[i]
            answers[int(index)] = predictions[i, :rows, :columns], chosen[i], scores[i]
        return [(predictions, chosen, scores)]

    seen = observations.observe(segment, None, source, config, mesh)
    assert seen.unread == ['scene 3']
    order = [0, 1, 2, 4, 5, 6]
    labels = [source.load(i)['label'] for i in order]
    true = np.concatenate([x[x >= 0] for x in labels])
    predicted = np.concatenate([answers[i][0][x >= 0] for i, x in zip(order, labels, strict=True)])
    np.testing.assert_array_equal(
        seen.confusion.toarray(), metrics.confusion_matrix(true, predicted, labels=range(6))
    )
    np.testing.assert_array_equal(
        seen.counts.toarray(), [[(x == c).sum() for c in range(6)] for x in labels]
    )
    np.testing.assert_array_equal(seen.selected, [answers[i][1] for i in order])
    np.testing.assert_array_equal(seen.presence_logits, [answers[i][2] for i in order])
    missed = np.zeros((6, 6), int)
    for i, label in zip(order, labels, strict=True):
        for t, p in zip(label.ravel(), answers[i][0].ravel(), strict=True):
            missed[t, p] += t >= 0 and t not in answers[i][1]
    np.testing.assert_array_equal(seen.missed.toarray(), missed)

    report = statistics.errors(seen, source.class_names)
    wrong = {
        (t, p): ((true == t) & (predicted == p)).sum() for t in range(6) for p in range(6) if t != p
    }
    assert report['wrong_pixels'] == (true != predicted).sum() and report['labeled_pixels'] == len(
        true
    )
    assert report['not_selected_pixels'] == missed.sum()
    assert [row['pixels'] for row in report['pairs']] == sorted(
        (n for n in wrong.values() if n), reverse=True
    )
    for row in report['pairs']:
        t, p = 'abcdef'.index(row['true']), 'abcdef'.index(row['predicted'])
        assert (row['pixels'], row['not_selected']) == (wrong[t, p], missed[t, p])


def test_the_report_agrees_with_the_evaluation(run):
    config, variables, report, output = run
    source, mesh = data.get_source(config.data, 'validation'), sharding.make_mesh(1)
    task = tasks.from_source(config, source)
    step = evaluate.make_eval_step(models.build(config, 8), config, task, mesh)
    scores = evaluate.evaluate(step, variables, source, config=config, task=task, mesh=mesh)
    assert report['recall']['category_recall'][2] == pytest.approx(scores['category_recall@3'])
    assert report['recall']['image_pixel_recall'][2] == pytest.approx(scores['pixel_recall@3'])
    assert 1 - report['errors']['wrong_pixels'] / report['errors'][
        'labeled_pixels'
    ] == pytest.approx(scores['aAcc'])
    assert json.loads((output / 'analysis.json').read_text()) == evaluate.without_nan(report)
    figures = json.loads((output / 'report.json').read_text())
    for name in ('mIoU', 'mAcc', 'aAcc'):
        assert figures['scores'][name] == pytest.approx(scores[name])
    assert figures['safe'] == report['kappa']['99.9%'] and figures['costs'] == report['costs']
    assert figures['curves'].items() >= report['recall'].items()
    images = [row['images'] for row in report['categories']]
    assert [row['images'] for row in figures['classes']] == images
    assert '</html>' in (output / 'report.html').read_text()


def test_what_is_reported_of_a_run(run, folder, capsys):
    config, variables, report, output = run
    counts = pixels_of(folder)
    assert report['unread'] == [f'{UNREADABLE}.png'] and report['images'] == 8
    per_image = (counts > 0).sum(1)
    numbers = report['categories_per_image']
    assert (numbers['min'], numbers['max']) == (0, per_image.max()) and numbers[
        'mean'
    ] == pytest.approx(per_image.mean())
    assert numbers['histogram'] == [int((per_image == n).sum()) for n in range(per_image.max() + 1)]
    assert [row['pixels'] for row in report['categories']] == counts.sum(0).tolist()
    kept = report['recall']['pixel_recall']
    for name, share in (('99%', 0.99), ('99.9%', 0.999)):
        k = report['kappa'][name]
        assert kept[k - 1] >= share and (k == 1 or kept[k - 2] < share)
    costs = report['costs']
    assert {2, 3, 8, *report['kappa'].values()} <= {row['num_selected'] for row in costs}
    assert all(row['pixel_recall'] == kept[row['num_selected'] - 1] for row in costs)
    log_tau = variables['params']['decoder']['rank']['temperature']['log_tau']
    np.testing.assert_allclose(report['by_rank']['tau'], np.exp(log_tau), rtol=1e-6)
    assert len(report['by_rank']['present']) == 3
    for name in (
        'kappa',
        'costs',
        'categories',
        'ranks',
        'confusion',
        'errors',
        'categories_per_image',
    ):
        assert min(Image.open(output / f'{name}.png').size) > 200
    text = '\n'.join(model_analysis.summary(report))
    assert f'Recommended: κ = {report["kappa"]["99.9%"]}' in text and NAMES[0] in text


@pytest.mark.parametrize(
    'options',
    [dict(baseline=True), dict(oracle=True), dict(select=False), dict(num_selected=8)],
    ids=str,
)
def test_other_kinds_of_runs(options, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_analysis, 'prediction_cost', no_cost)
    config, variables = make_run(folder, tmp_path, **options)
    report = analysis.run(config, tmp_path)
    errors, counts = report['errors'], pixels_of(folder)
    text = capsys.readouterr().out
    pictures = {path.stem for path in (tmp_path / 'analysis_validation_5').glob('*.png')}
    assert {'confusion', 'errors', 'categories_per_image'} <= pictures
    if 'baseline' in options:
        assert (
            'no multi-label head' in text
            and 'recall' not in report
            and errors['not_selected_pixels'] is None
        )
        figures = json.loads((tmp_path / 'analysis_validation_5/report.json').read_text())
        assert not {'curves', 'safe', 'calibration'} & set(figures)
        assert set(report['categories'][0]) == {'name', 'images', 'pixels'} and len(pictures) == 3
    elif 'oracle' in options:
        assert 'oracle' in text
        full = (counts > 0).sum(1)
        assert report['by_rank']['present'] == pytest.approx([(full > r).mean() for r in range(3)])
        # The lowest class ids are selected first.
        lost = sum(row[np.flatnonzero(row)[3:]].sum() for row in counts)
        assert errors['not_selected_pixels'] == lost > 0
    elif 'select' in options:
        assert (
            'select is False' in text
            and 'by_rank' not in report
            and errors['not_selected_pixels'] is None
        )
        assert 'ranks' not in pictures and 'kappa' in pictures
    else:
        assert (
            errors['not_selected_pixels'] == 0
            and len(report['by_rank']['tau']) == len(report['by_rank']['bias']) == 8
        )
        assert all(row['selected'] == 1 for row in report['categories'] if row['images'])


def test_cost_grows_with_what_is_kept(folder):
    config = tiny.config(folder, data__name='folder', eval__size=(96, 96))
    few, all_of_them = (cost.prediction_cost(config, 512, k) for k in (2, 512))
    assert few['num_selected'] == 2 and few['milliseconds'] > 0 and all_of_them['milliseconds'] > 0
    config.eval.size, config.augment.crop_size = (0, 0), (96, 96)  # images keep their own
    memory = cost.prediction_cost(config, 512, 2)['temporary_bytes']
    assert memory == few['temporary_bytes']
    upsampled = 4 * 64 * 96 * (512 - 2)  # bytes of [64, 96, κ]
    assert upsampled < all_of_them['temporary_bytes'] - few['temporary_bytes'] < 4 * upsampled


def test_a_split_without_a_labeled_pixel_is_refused(folder, tmp_path):
    class Nothing(Scenes):
        def load(self, index):
            return Scenes.load(self, 2)

    with pytest.raises(ValueError, match='no labeled pixel'):
        observations.observe(
            lambda variables, batch: [(np.zeros(batch['label'].shape, int), None, None)],
            None,
            Nothing(),
            tiny.config('', eval__batch_size=7),
            sharding.make_mesh(1),
        )


def test_data_alone_from_the_command_line(folder, tmp_path, capsys, monkeypatch, caplog):
    monkeypatch.setattr(processes, 'start', lambda **_: None)
    flags.FLAGS(['main.py', '--mode=analyze', f'--workdir={tmp_path}'])
    with pytest.raises(ValueError, match='--mode=analyze without checkpoints needs --config'):
        cli.run(None, tmp_path)
    cli.run(tiny.config(folder, data__name='folder'), tmp_path)
    text = capsys.readouterr().out
    assert 'PROBLEM: 1 label files with wrong values' in text and '2.png: label value 77' in text
    assert (
        text.count('1 of 8 classes never seen: h') == text.count('never seen') == 2
        and f'{UNREADABLE}.png' in caplog.text
    )
    report = json.loads((tmp_path / 'analysis_data/analysis.json').read_text())
    found, counts = report['validation'], pixels_of(folder)
    assert found['images'] == 8 and [
        f'{UNREADABLE}.png' in message for message in found['unread']
    ] == [True]
    assert [row['pixels'] for row in found['categories']] == counts.sum(0).tolist()
    assert [row['images'] for row in found['categories']] == (counts > 0).sum(0).tolist()
    sizes = [(32, 32), (40, 24), (17, 50)] * 3
    areas = [rows * columns for i, (rows, columns) in enumerate(sizes) if i != UNREADABLE]
    assert found['ignored'] == pytest.approx(1 - counts.sum() / sum(areas))
    assert {(row['rows'], row['columns'], row['images']) for row in found['sizes']} == {
        (32, 32, 2),
        (40, 24, 3),
        (17, 50, 3),
    }
    assert report['train']['images'] == 2 and 'label value 77' in report['train']['unread'][0]
    most = max(int((pixels > 0).sum()) for pixels in counts)
    held = max(most, report['train']['categories_per_image']['max'])
    assert f', {held} those of every image' in text
    for name in ('categories_per_image', 'long_tail'):
        assert min(Image.open(tmp_path / f'analysis_data/{name}.png').size) > 200


def test_data_of_which_nothing_can_be_read(folder, tmp_path, capsys):
    for kind in ('images', 'labels'):
        (tmp_path / kind / 'validation').mkdir(parents=True)
        (tmp_path / kind / 'validation/a.png').write_bytes(b'nothing')
        (tmp_path / kind / 'train').mkdir()
    (tmp_path / 'classes.txt').write_text('a\nb')
    config = tiny.config(tmp_path, data__name='folder', data__num_classes=0)
    report = analysis.run(config, tmp_path / 'run', tmp_path / 'elsewhere')
    assert json.loads((tmp_path / 'elsewhere/analysis.json').read_text()) == report
    assert not (tmp_path / 'run').exists()
    assert (
        report['train']['problems']
        and report['validation']['problems']
        and report['validation']['categories_per_image'] is None
    )
    assert not list((tmp_path / 'elsewhere').rglob('*.png'))
    assert 'which is all of them' in capsys.readouterr().out

"""The report of --mode=evaluate and --mode=analyze: figures, files, and the page itself."""

import base64
import copy
import io
import json
import re
import types
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from rankseg_jax import checkpoint, evaluate, models, report, tasks
from rankseg_jax.data import Source
from rankseg_jax.report import comparison, pictures
from rankseg_jax.report.observed import Observed
from rankseg_jax.tasks.result import Result
from tests import browser, tiny

HOSTILE = '</script><script>window.broken = 1</script><img src="https://x.org/a.png">'
K, N = 1284, 5000


class Scenes(Source):
    """Images of noise whose labels are blocks; reads nothing."""

    def __init__(self, class_names, count, shape=(96, 128)):
        self.class_names, self.shape = class_names, shape
        self.ids = [f'validation/{i:05}' for i in range(count)]

    def load(self, index):
        rng = np.random.default_rng(index)
        blocks = rng.integers(0, len(self.class_names), (3, 4))
        image = rng.integers(0, 256, (*self.shape, 3), np.uint8)
        return {'image': image, 'label': np.kron(blocks, np.ones((32, 32), np.int32))}


class Drawer:
    """A predictor that is right but for a quarter of the image."""

    batch_size = 1

    def __init__(self, class_names):
        self.class_names = class_names
        self.task = types.SimpleNamespace(takes_clips=False, class_names=class_names)
        self.task.image_score_name = 'mIoU'

    def example(self, image):
        return {'image': image}

    def results(self, examples, batch_size):
        for example in examples:
            labels = example['label'].copy()
            labels[:48, :64] = labels[-1, -1]
            ranked = [(self.class_names[c], 0.9 - 0.05 * i) for i, c in enumerate(range(8))]
            yield example['index'], Result(example['image'], labels, ranked, self.class_names)


def observe(source, count, num_images=None, seed=0):
    """An Observed of maps of 12 pixels, and what went into it."""
    rng = np.random.default_rng(seed)
    observed, given = Observed(count), []
    for place in range(len(source) if num_images is None else num_images):
        held = rng.choice(count, min(6, count), replace=False)
        label = rng.choice(held, (3, 4))
        predicted = np.where(rng.random((3, 4)) < 0.7, label, rng.choice(held, (3, 4)))
        label[0, 0] = -1
        logits = rng.normal(-2, 1, count).astype(np.float32)
        logits[held] += 3
        observed.add(place, label, predicted, logits)
        observed.add_categories(label, logits)
        given.append((label, predicted, logits))
    return observed, given


def make_content(observed, source, num_selected: int | None = 3, run='runs/a', others=()):
    task = types.SimpleNamespace(takes_clips=False, class_names=source.class_names)
    task.image_score_name = 'mIoU'
    about = dict(run=run, checkpoint=5, data='scenes', split='validation', task='semantic')
    about |= {'framework': 'segmenter', 'num_selected': num_selected}
    scores = observed.semantic_scores(source.class_names)
    content = report.content(about, observed, scores, task, source, others)
    return evaluate.without_nan(content)


def island(path):
    """The data that a page holds."""
    found = re.search(r'id="data">(.*?)</script>', path.read_text('utf-8'), re.S)
    return json.loads(found[1])


class Addresses(HTMLParser):
    """What a page would load, and its tags."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ('src', 'href', 'srcset')]


# Figures


def test_figures_equal_scikit_learn_and_counting_by_hand():
    metrics = pytest.importorskip('sklearn.metrics')
    calibration = pytest.importorskip('sklearn.calibration')
    source = Scenes(tuple(map(str, range(20))), 60)
    halves = [observe(source, 20, 30, seed) for seed in (0, 1)]
    for place in range(30):
        halves[1][0].pairs[30 + place] = halves[1][0].pairs.pop(place)
    observed = halves[0][0].merge(halves[1][0])
    given = halves[0][1] + halves[1][1]
    true = np.concatenate([label.ravel() for label, _, _ in given])
    predicted = np.concatenate([x.ravel() for _, x, _ in given])[true >= 0]
    true = true[true >= 0]
    expected = metrics.confusion_matrix(true, predicted, labels=range(20))
    np.testing.assert_array_equal(observed.confusion().toarray()[:, :20], expected)
    scores = observed.semantic_scores(source.class_names)
    iou = metrics.jaccard_score(true, predicted, labels=range(20), average=None)
    np.testing.assert_allclose([row['IoU'] for row in scores['classes']], iou)
    label, image, _ = given[3]
    expected = metrics.jaccard_score(label[label >= 0], image[label >= 0], average='macro')
    assert observed.mean_iou([3]) == pytest.approx(expected)

    present = np.array([np.isin(range(20), label) for label, _, _ in given])
    confidences = 1 / (1 + np.exp(-np.array([x for _, _, x in given], np.float64)))
    shares, means = calibration.calibration_curve(present.ravel(), confidences.ravel(), n_bins=10)
    found = observed.calibration()
    np.testing.assert_allclose(found['present'], shares)
    np.testing.assert_allclose(found['confidence'], means)
    assert sum(found['number']) == present.size
    gaps = np.abs(np.array(shares) - means) @ np.array(found['number']) / present.size
    assert found['error'] == pytest.approx(gaps)

    curves = observed.curves(6)
    for k in (1, 3, 6, 20):
        best = [set(np.argsort(-logits, kind='stable')[:k]) for _, _, logits in given]
        held = [set(np.unique(label)) - {-1} for label, _, _ in given]
        shares = [len(a & b) / len(b) for a, b in zip(best, held, strict=True)]
        assert curves['category_recall'][k - 1] == pytest.approx(np.mean(shares))
        if k <= 6:
            right = [
                np.isin(label, list(kept))[label == image].sum()
                for (label, image, _), kept in zip(given, best, strict=True)
            ]
            assert curves['right_pixels'][k - 1] == pytest.approx(sum(right) / len(true))
        kept = [c for a, b in zip(best, held, strict=True) for c in a & b]
        all_held = [c for b in held for c in b]
        np.testing.assert_allclose(
            observed.found(k), np.bincount(kept, minlength=20) / np.bincount(all_held)
        )
    np.testing.assert_array_equal(observed.images_of(), present.sum(0))


def test_the_worst_the_median_and_the_best_and_examples_of_confusions():
    source = Scenes(tuple(map(str, range(10))), 40)
    observed, given = observe(source, 10)
    content = make_content(observed, source)
    scores = [observed.mean_iou([place]) for place in range(40)]
    gallery = content['gallery']
    assert [len(part) for part in gallery.values()] == [12, 12, 12]
    ordered = np.sort(scores)
    np.testing.assert_allclose([scores[i] for i in gallery['worst']], ordered[:12])
    np.testing.assert_allclose([scores[i] for i in gallery['median']], ordered[14:26])
    np.testing.assert_allclose([scores[i] for i in gallery['best']], ordered[::-1][:12])
    pair = content['confusion']['pairs'][0]
    a, b = int(pair['true']), int(pair['predicted'])
    pixels = [((label == a) & (image == b)).sum() for label, image, _ in given]
    assert pair['pixels'] == sum(pixels)
    assert pixels[pair['examples'][0]] == max(pixels)


def test_layers_show_what_is_wrong_and_why():
    names = ('a', 'b', 'c')
    labels = np.array([[0, 0, 1, 1]] * 4)
    truth = np.array([[0, 1, 2, -1]] * 4)
    result = Result(np.zeros((4, 4, 3), np.uint8), labels, [('a', 0.9), ('b', 0.5)], names)
    item = pictures.described([(result, truth)], names)
    errors = pixels_of(item['frames'][0]['errors'])[0]
    assert errors[0][3] == errors[3][3] == 0  # right, ignored: transparent
    assert tuple(errors[1]) == (*pictures.WRONG, 255)
    assert tuple(errors[2]) == (*pictures.NOT_SELECTED, 255)
    assert item['missed'] == ['c']
    assert [found['present'] for found in item['ranked']] == [True, True]
    assert [found['predicted'] for found in item['classes']] == [True, True, False]


def pixels_of(url):
    """uint8 [H, W, 4] of a data URL."""
    file = io.BytesIO(base64.b64decode(url.partition(',')[2]))
    return np.asarray(Image.open(file).convert('RGBA'))


# Of a run


def test_what_evaluation_reports(data_dir, tmp_path, monkeypatch):
    config = tiny.config(data_dir)
    source = tasks.open_source(config, 'validation')
    source.class_names = names = (HOSTILE, *source.class_names[1:])
    monkeypatch.setattr(tasks, 'open_source', lambda *_: source)
    model = models.build(config, len(names))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: rng.normal(0.2, 0.3, x.shape).astype(x.dtype) ** 2,
        jax.eval_shape(lambda: models.init(model, len(names), 0, (32, 32))),
    )
    run = {'config': config.to_dict(), 'class_names': names, 'next_step': 5, 'score': None}
    with checkpoint.open_checkpoints(tmp_path / 'run', keep=1) as manager:
        checkpoint.save(manager, 5, variables, {'count': np.zeros(1)}, run)
    other, _ = observe(source, len(names))
    other = make_content(other, source)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/report.json').write_text(json.dumps(other))
    scores = evaluate.run(config, tmp_path / 'run', compare=[tmp_path / 'other'])
    figures = json.loads((tmp_path / 'run/report.json').read_text())
    path = tmp_path / 'run/report.html'
    data = island(path)
    items = data.pop('items')
    assert data == figures and figures['others'][0]['scores'] == other['scores']
    assert figures['scores'] == evaluate.without_nan(evaluate.totals(scores))
    assert figures['curves']['category_recall'][2] == pytest.approx(scores['category_recall@3'])
    kept = figures['curves']['image_pixel_recall'][2]
    assert kept == pytest.approx(scores['pixel_recall@3'])
    assert figures['curves']['right_pixels'][2] == pytest.approx(scores['aAcc'])
    confusion = figures['confusion']
    wrong = confusion['wrong_pixels'] / confusion['labeled_pixels']
    assert 1 - wrong == pytest.approx(scores['aAcc'])
    expected = evaluate.without_nan(scores['classes'])
    for row, other in zip(figures['classes'], expected, strict=True):
        assert row | other == row and {'images', 'recall@3'} <= set(row)
    worst = items[str(figures['gallery']['worst'][0])]
    assert worst['score'] == min(figures['image_scores']['scores'])
    assert len(worst['ranked']) == 3
    page = Addresses()
    page.feed(path.read_text())
    assert page.found and all(re.match('data:|#', address) for address in page.found)
    assert page.tags.count('script') == 3 and 'img' not in page.tags


def test_runs_side_by_side(tmp_path):
    source = Scenes(('a', 'b', 'c', 'd'), 30)
    contents = {}
    for seed, name in enumerate(('x', 'y')):
        observed, _ = observe(source, 4, seed=seed)
        contents[name] = make_content(observed, source, run=name)
        (tmp_path / name / 'analysis_validation_5').mkdir(parents=True)
        path = tmp_path / name / 'analysis_validation_5' / 'report.json'
        path.write_text(json.dumps(contents[name]))
    (tmp_path / 'y' / 'analysis_elsewhere').mkdir()  # of --output, with a name of the user's
    (tmp_path / 'y' / 'analysis_elsewhere' / 'report.json').write_text('{}')
    (other,) = comparison.read_others([tmp_path / 'y'], 'validation', source.class_names)
    assert other == contents['y']
    observed, _ = observe(source, 4)
    content = make_content(observed, source, others=[other])
    x, y = (
        dict(zip(c['image_scores']['ids'], c['image_scores']['scores'], strict=True))
        for c in contents.values()
    )
    differences = np.array([x[name] - y[name] for name in source.ids])
    paired = content['others'][0]['paired']
    assert paired['mean'] == pytest.approx(differences.mean())
    assert paired['error'] == pytest.approx(stats.sem(differences))
    assert (paired['better'], paired['worse']) == ((differences > 0).sum(), (differences < 0).sum())

    names = source.class_names
    with pytest.raises(FileNotFoundError, match='z has no report.json; make it with python main'):
        comparison.read_others([tmp_path / 'z'], 'validation', names)
    with pytest.raises(ValueError, match="is about the split 'validation', not 'test'"):
        comparison.read_others([tmp_path / 'y'], 'test', names)
    with pytest.raises(ValueError, match='y has other classes .4: a, b, c, ….'):
        comparison.read_others([tmp_path / 'y'], 'validation', (*names, 'e'))


# The page, at 1,284 categories and 5,000 images


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """The path of a page that compares two runs, and its data."""
    folder = tmp_path_factory.mktemp('large')
    names = (HOSTILE, *(f'category {i}' for i in range(1, K)))
    source = Scenes(names, N)
    observed, _ = observe(source, K, N // 5)
    for place in range(N // 5, N):  # as if each were there five times
        observed.pairs[place] = observed.pairs[place % (N // 5)]
    observed.categories, observed.bins = 5 * observed.categories, 5 * observed.bins
    content = make_content(observed, source, 50)
    other = copy.deepcopy(content) | {'run': 'runs/b'}
    for row in other['classes']:
        row['IoU'] = None if row['IoU'] is None else row['IoU'] / 2
    other['image_scores']['scores'] = [score / 2 for score in other['image_scores']['scores']]
    content['others'] = [
        {name: other[name] for name in ('run', 'checkpoint', 'scores', 'classes')}
        | {'paired': comparison.paired(content['image_scores'], other['image_scores'])}
    ]
    report.write(folder, content, Drawer(names), source)
    return folder / 'report.html', content


def test_a_large_page_is_small(large):
    path, content = large
    assert path.stat().st_size < 25e6
    data = island(path)
    assert data['classes'] == content['classes'] and len(data['classes']) == K
    assert data['images'] == N and len(data['items']) >= 36


def test_tables_sort_filter_and_turn_pages(large, chromium):
    path, content = large
    with browser.opened(chromium, path) as page:
        timing = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        assert timing < 2000

        def cells(column):
            return page.locator(f'#class-table tbody td:nth-child({column})').all_inner_texts()

        pixels = sorted((row['pixels'] for row in content['classes']), reverse=True)
        titles = page.locator('#class-table thead').inner_text().split('\t')
        place = titles.index('pixels ↓') + 1
        assert [int(x.replace(',', '')) for x in cells(place)] == pixels[:25]
        page.get_by_role('button', name='Next', exact=True).click()
        assert [int(x.replace(',', '')) for x in cells(place)] == pixels[25:50]
        page.get_by_role('button', name='IoU', exact=True).focus()
        page.keyboard.press('Enter')
        page.keyboard.press('Enter')
        iou = sorted(row['IoU'] for row in content['classes'] if row['images'])
        assert [float(x) for x in cells(2)] == [round(100 * x, 2) for x in iou[:25]]
        assert page.locator('th[aria-sort=ascending]').inner_text() == 'IoU ↑'
        page.get_by_role('button', name='A − B').first.click()
        best = [round(50 * x, 2) for x in iou[::-1][:25]]
        assert [float(x) for x in cells(4)] == pytest.approx(best, abs=0.011)
        page.get_by_label('Filter by name').fill('CATEGORY 12')
        assert len(cells(1)) == 25 and all(x.startswith('category 12') for x in cells(1))
        found = [x for x in content['classes'] if 'category 12' in x['name'] and x['images']]
        assert f'{len(found)} of {K}' in page.locator('#class-count').inner_text()
        page.get_by_label('Filter by name').fill('<script>')
        assert cells(1) == [HOSTILE] and page.evaluate('window.broken') is None


def test_gallery_goes_by_keys_and_colors_fade(large, chromium):
    path, content = large
    names = dict(enumerate(content['image_scores']['ids']))
    with browser.opened(chromium, path, color_scheme='dark') as page:
        background = page.evaluate('getComputedStyle(document.body).backgroundColor')
        assert background == 'rgb(22, 24, 27)'
        title = page.locator('#item-name')
        assert title.inner_text() == names[0]
        page.locator('#thumbnails button').first.focus()
        page.keyboard.press('ArrowRight')
        assert title.inner_text() == names[1]
        page.keyboard.press('ArrowLeft')
        page.keyboard.press('ArrowLeft')
        assert title.inner_text() == names[11]
        assert page.locator('#thumbnails [aria-pressed=true]').count() == 1
        page.get_by_role('button', name='Best').click()
        assert title.inner_text() == names[N - 1]
        layer = page.locator('[data-layer=errors]')
        page.locator('#opacity').fill('25')
        assert layer.evaluate('x => x.style.opacity') == '0.25'
        assert layer.evaluate('x => x.complete && x.naturalWidth') == 128
        assert 'Missed, not selected: ' in page.locator('#missed').inner_text()
        page.locator('#pair-table button').first.click()
        assert (
            page.get_by_role('button', name='Examples of').get_attribute('aria-pressed') == 'true'
        )
        # Contrast of WCAG 2, of all that is text.
        ratios = page.evaluate(CONTRASTS)
        assert min(ratios) >= 4.5
        page.emulate_media(color_scheme='light')
        assert min(page.evaluate(CONTRASTS)) >= 4.5


CONTRASTS = """() => {
  const parse = (x) => x.match(/[\\d.]+/g).map(Number);
  const light = (x) => parse(x).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (x) => {
    for (; x; x = x.parentElement) {
      const color = getComputedStyle(x).backgroundColor;
      if ((parse(color)[3] ?? 1) > 0) return color;
    }
  };
  return [...document.querySelectorAll('h1, h2, p, a, th, td, button:enabled, label, figcaption')]
    .filter((x) => x.offsetParent && x.textContent.trim()).map((x) => {
      const [a, b] = [light(getComputedStyle(x).color), light(ground(x))].sort((p, q) => q - p);
      return (a + 0.05) / (b + 0.05);
    });
}"""


def test_charts_are_drawn_when_they_are_seen(large, chromium):
    with browser.opened(chromium, large[0]) as page:
        for name in ('kappa', 'confusion', 'calibration'):
            page.locator(f'#{name}-chart').scroll_into_view_if_needed()
            page.locator(f'#{name}-chart .main-svg').first.wait_for(timeout=20_000)
        assert f'Smallest safe κ = {large[1]["safe"]}' in page.locator('#kappa-chart').inner_text()


def test_videos_play_with_tracks(large, chromium, tmp_path):
    data = island(large[0])
    first = data['gallery']['worst'][0]
    for place, item in data['items'].items():
        item['frames'] = 3 * item['frames'] + data['items'][str(first)]['frames']
        visible = [True, True, False, True]
        track = {'name': HOSTILE, 'id': 1, 'score': 0.5, 'color': '#0072b2', 'frames': visible}
        item['tracks'] = [track] if int(place) == first else []
    path = tmp_path / 'report.html'
    path.write_text(report.rendered(data | {'unit': 'video'}), encoding='utf-8')
    sync_api = pytest.importorskip('playwright.sync_api')
    with browser.opened(chromium, path) as page:
        number = page.locator('#frame-number')
        assert number.inner_text() == '1 of 4'
        page.locator('#frame').fill('2')
        assert number.inner_text() == '3 of 4'
        assert HOSTILE + ' 1' in page.locator('#tracks').inner_text()
        page.get_by_role('button', name='Play').click()
        sync_api.expect(number).not_to_have_text('3 of 4')
        page.get_by_role('button', name='Pause').click()
        page.get_by_role('button', name='Next video').click()
        assert number.inner_text() == '1 of 7' and not page.locator('#tracks table').count()


@pytest.mark.parametrize('case', ['empty', 'one image', 'baseline', 'unlabeled'])
def test_little_to_show(case, chromium, tmp_path):
    names = ('only',) if case == 'one image' else ('a', 'b', 'c')
    source = Scenes(names, 1)
    observed = Observed(len(names))
    if case == 'unlabeled':
        observed.add(0, np.full((2, 2), -1), np.zeros((2, 2), int), np.zeros(3))
        observed.add_categories(np.full((2, 2), -1), np.zeros(3))
    elif case != 'empty':
        logits = None if case == 'baseline' else np.zeros(len(names))
        observed.add(0, np.zeros((2, 2), int), np.zeros((2, 2), int), logits)
        if logits is not None:
            observed.add_categories(np.zeros((2, 2), int), logits)
    content = make_content(observed, source, None if case == 'baseline' else 1)
    report.write(tmp_path, content, Drawer(names * 8), source)
    assert ('curves' in content) == (case == 'one image')
    data = island(tmp_path / 'report.html')
    assert {'scores', 'classes', 'gallery', 'items'} <= set(data)
    with browser.opened(chromium, tmp_path / 'report.html') as page:
        assert page.locator('#class-table').is_visible()

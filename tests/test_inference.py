"""Windows, scales and mirror images against a PyTorch loop over the windows of each image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from rankseg_jax import inference, models, postprocessing, selector, sharding, windows
from rankseg_jax.data import IGNORE_LABEL, Source, batching, fitting
from rankseg_jax.outputs import PixelOutput
from rankseg_jax.postprocessing import View
from rankseg_jax.ranking import Selection, from_ranks, select
from rankseg_jax.selector import Choice
from rankseg_jax.tasks.semantic import Semantic
from tests import tiny
from tests.helpers import random_variables
from tests.released import full_logits


class Sizes(Source):
    """A source of noise in images of the given sizes, some labels ignored."""

    class_names = tuple('abcdefgh')

    def __init__(self, *sizes):
        self.sizes, self.ids = sizes, [str(size) for size in sizes]

    def load(self, index):
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(self.sizes[index][::-1]))
        return {'image': image, 'label': rng.integers(-1, 8, self.sizes[index]).astype(np.int32)}


def semantic(config):
    return Semantic(config, 'abcdefgh')


def padded(source, config, size):
    """One batch of `size` of all images of a source, padded to the largest view of each scale."""
    examples = []
    for i in range(len(source)):
        example = source.load(i)
        views = fitting.eval_views(example['image'], config)
        label = example['label']
        examples.append({'views': views, 'size': label.shape, 'index': i, 'label': label})
    for scale in range(len(config.eval.scales)):
        shape = np.max([x['views'][scale]['image'].shape for x in examples], 0)
        for example in examples:
            view = example['views'][scale]
            missing = np.subtract(shape, view['image'].shape)
            view['image'] = np.pad(view['image'], [(0, n) for n in missing])
    return batching.stack(examples, size)


def segmenter(**overrides):
    """(model, variables, config) of a Segmenter with RankSeg, random weights and patch size 8."""
    overrides = {
        'model__decoder_heads': 2,
        'rankseg__head': 'first_block',
        'rankseg__temperature': 'none',
        'rankseg__score_prior': False,
    } | overrides
    config = tiny.config(
        '',
        model__framework='segmenter',
        model__backbone='tiny_vit',
        model__auxiliary_weight=0.0,
        **overrides,
    )
    model = models.build(config, 8)
    variables = random_variables(model, jnp.zeros((1, 32, 32, 3)))
    # Without biases, patches differ enough to get several classes.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[-1].key == 'bias' else x, variables['params']
    )
    return model, {'params': params, 'batch_stats': {}}, config


def reference(forward, head, image, *, window, stride, num_selected, size):
    """Sliding-window inference on one image as in mmsegmentation.

    Returns:
      Presence logits [K], and a function from a selection to upsampled logits [κ, *size].
    """
    torch = pytest.importorskip('torch')
    height, width = image.shape[:2]
    corners = [
        (
            max(min(y + window[0], height) - window[0], 0),
            max(min(x + window[1], width) - window[1], 0),
        )
        for y in range(
            0, max(height - window[0] + stride[0] - 1, 0) // stride[0] * stride[0] + 1, stride[0]
        )
        for x in range(
            0, max(width - window[1] + stride[1] - 1, 0) // stride[1] * stride[1] + 1, stride[1]
        )
    ]
    crops = []
    for y, x in corners:
        crop = image[y : y + window[0], x : x + window[1]]
        crops.append(
            np.pad(crop, [(0, window[0] - crop.shape[0]), (0, window[1] - crop.shape[1]), (0, 0)])
        )
    presence_logits = head(np.stack(crops)).max(0)  # [K]

    def logits_over(selection):
        total, count = torch.zeros(num_selected, height, width), torch.zeros(height, width)
        for (y, x), crop in zip(corners, crops, strict=True):
            rows, columns = min(window[0], height - y), min(window[1], width - x)
            logits = torch.from_numpy(np.array(forward(crop[None], selection))).permute(0, 3, 1, 2)
            logits = torch.nn.functional.interpolate(
                logits, window, mode='bilinear', align_corners=False
            )[0]
            total[:, y : y + rows, x : x + columns] += logits[:, :rows, :columns]
            count[y : y + rows, x : x + columns] += 1
        return torch.nn.functional.interpolate(
            (total / count)[None], size, mode='bilinear', align_corners=False
        )[0]

    return presence_logits, logits_over


@pytest.mark.parametrize(
    'window, stride, scales, flip',
    [
        ((32, 32), (32, 32), (1.0,), False),
        ((32, 40), (20, 24), (1.0,), False),
        ((32, 32), (24, 32), (0.75, 1.0, 1.3), True),
    ],
)
def test_windows_scales_and_mirror_images_against_a_loop(window, stride, scales, flip):
    torch = pytest.importorskip('torch')
    model, variables, config = segmenter()
    with config.unlocked():
        config.eval.update(
            base_size=(40, 100), window=window, stride=stride, scales=scales, flip=flip
        )
    source = Sizes((48, 90), (61, 50), (20, 77))
    batch = padded(source, config, 3)
    canvas = batch['label'].shape[1:]
    found = jax.jit(
        lambda v, b: inference.segment(
            model, v, b['views'], b['size'], config, semantic(config), canvas=canvas
        )
    )(variables, batch)
    labels, selection = found.maps['labels'], found.selection

    forward = jax.jit(lambda x, s: models.forward(model, variables, x, Choice(selection=s)).logits)
    head = jax.jit(lambda x: models.forward(model, variables, x, Choice()).presence_logits)
    for i, size in enumerate(source.sizes):
        views = []
        for view in fitting.eval_views(source.load(i)['image'], config):
            rows, columns = view['content']
            image = view['image'][:rows, :columns]
            for mirrored in (False, True)[: 1 + flip]:
                result = reference(
                    forward,
                    head,
                    image[:, ::-1] if mirrored else image,
                    window=window,
                    stride=stride,
                    num_selected=3,
                    size=size,
                )
                views.append((mirrored, *result))
        expected_logits = np.mean([presence_logits for _, presence_logits, _ in views], 0)
        np.testing.assert_allclose(found.presence_logits[i], expected_logits, rtol=1e-4, atol=1e-4)
        chosen = select(jnp.asarray(expected_logits)[None], 3)
        np.testing.assert_array_equal(selection.labels[i], chosen.labels[0])
        scores = 0
        for mirrored, _, logits_over in views:
            probabilities = logits_over(chosen).softmax(0)
            scores = scores + (probabilities.flip(2) if mirrored else probabilities)
        best, second = torch.topk(scores, 2, 0).values
        expected = np.asarray(chosen.labels[0])[scores.argmax(0)]
        clear = (best - second).numpy() > 1e-4
        assert clear.mean() > 0.9 and len(np.unique(expected)) > 1
        np.testing.assert_array_equal(
            np.asarray(labels[i])[: size[0], : size[1]][clear], expected[clear]
        )
        assert (labels[i][size[0] :] == IGNORE_LABEL).all()
        assert (labels[i][:, size[1] :] == IGNORE_LABEL).all()


def test_a_category_in_one_window_is_selected_for_all():
    """With κ = 2, both categories are kept everywhere.

    The head sees category 2 only in the left half of the image, and category 5 only in the right.
    """

    class Halves(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, choice):
            left = x[:, 0, :1, 0] > 0  # [B, 1]
            logits = jnp.where(left, jnp.eye(8)[2], jnp.eye(8)[5]) * 9 + jnp.arange(8) / 10
            logits, selection = selector.choose(config.rankseg, logits, choice, train=train)
            first = choice.spread(selection).labels[:, None, None, :1]
            pixels = jnp.stack([x[..., 0], -x[..., 0]], -1) * (1 - 2 * (first == 5))
            return PixelOutput(pixels, selection, logits)

    config = tiny.config(
        '',
        eval__size=(16, 32),
        eval__window=(16, 16),
        eval__stride=(16, 16),
        rankseg__num_selected=2,
    )
    image = np.ones((1, 16, 32, 3), np.float32) * np.where(np.arange(32) < 16, 1, -1)[:, None]
    views = ({'image': jnp.asarray(image), 'content': jnp.array([[16, 32]])},)
    found = jax.jit(
        lambda views, size: inference.segment(
            Halves(),
            {'params': {}, 'batch_stats': {}},
            views,
            size,
            config,
            semantic(config),
            canvas=(16, 32),
        )
    )(views, jnp.array([[16, 32]]))
    labels = found.maps['labels']
    assert set(np.asarray(found.selection.labels[0]).tolist()) == {2, 5}
    assert (labels[0, :, :14] == 2).all() and (labels[0, :, 18:] == 5).all()


def test_selecting_once_for_all_windows_computes_the_backbone_once():
    model, variables, config = segmenter(
        eval__base_size=(32, 128), eval__window=(32, 32), eval__stride=(32, 32)
    )
    images = jnp.zeros((1, 32, 96, 3))
    views, size = ({'image': images, 'content': jnp.array([[32, 96]])},), jnp.array([[32, 96]])

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()['flops']

    windows = flops(
        lambda v: (
            models.forward(model, v, jnp.zeros((3, 32, 32, 3)) + images.sum(), Choice()).logits
        ),
        variables,
    )
    whole = flops(
        lambda v: (
            inference.segment(
                model, v, views, size, config, semantic(config), canvas=(64, 128)
            ).maps
        ),
        variables,
    )
    upsampling = flops(
        lambda x: postprocessing.best_ranks(
            [View(PixelOutput(x), jnp.zeros((1, 64, 4)), jnp.zeros((1, 128, 12)))], size
        ),
        jnp.zeros((1, 4, 12, 3)),
    )
    assert whole - upsampling < 1.3 * windows


def test_windows_on_eight_devices_agree_with_one():
    model, variables, config = segmenter(
        eval__base_size=(40, 100), eval__window=(32, 32), eval__stride=(24, 32), eval__flip=True
    )
    # Seven images, and one that fills the batch.
    batch = padded(Sizes(*[(20 + 9 * i, 70 - 5 * i) for i in range(7)]), config, 8)
    results = []
    for num_devices in (1, 8):
        mesh = sharding.make_mesh(num_devices)
        run = inference.compiled(model, config, semantic(config), mesh, lambda found, _: found)
        copies = jax.device_put(variables, sharding.copied(mesh))
        found = next(run(copies, sharding.shard_batch(batch, mesh), batch['label'].shape[1:]))
        assert found.maps['labels'].sharding.num_devices == num_devices
        results.append(jax.device_get(found))
    one, eight = results
    np.testing.assert_allclose(one.presence_logits, eight.presence_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(one.selection.labels, eight.selection.labels)
    assert (one.maps['labels'] == eight.maps['labels']).mean() > 0.999


def best_rank(logits, size, *, content=None, image_shape=None, canvas=None, mask_size=(0, 0)):
    """Label maps of whole images, from logits [B, h, w, κ].

    The model's input has `image_shape`; the image fills its part `content`, the rest is padding.
    """
    batch, image_shape = len(logits), image_shape or (4 * logits.shape[1], 4 * logits.shape[2])

    class Given(nn.Module):
        @nn.compact
        def __call__(self, x, **_):
            return PixelOutput(jnp.asarray(logits))

    views = (
        {
            'image': jnp.zeros((batch, *image_shape, 3)),
            'content': jnp.array([content or image_shape] * batch),
        },
    )
    given = {'params': {}, 'batch_stats': {}}
    return np.asarray(
        jax.jit(
            lambda: inference.segment(
                Given(),
                given,
                views,
                jnp.array([size] * batch),
                tiny.config('', rankseg=None, eval__mask_size=mask_size),
                semantic(tiny.config('', rankseg=None)),
                canvas=canvas or size,
            ).maps['labels']
        )()
    )


@pytest.mark.parametrize('size', [(16, 20), (33, 17), (8, 100), (130, 5), (1, 1)])
def test_a_whole_image_is_resized_as_in_torch(size):
    torch = pytest.importorskip('torch')
    logits = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    expected = {}
    for mask_size, shapes in {(0, 0): ((16, 20), size), (-1, -1): (size,)}.items():
        resized = torch.from_numpy(logits).permute(0, 3, 1, 2)
        for shape in shapes:
            resized = torch.nn.functional.interpolate(
                resized, shape, mode='bilinear', align_corners=False
            )
        expected[mask_size] = resized.argmax(1)
        found = best_rank(logits, size, mask_size=mask_size)
        np.testing.assert_array_equal(found, expected[mask_size])
    if size == (33, 17):  # by way of the network's input, or directly
        assert (expected[0, 0] != expected[-1, -1]).float().mean() > 0.01


def test_padding_of_the_input_does_not_leak_into_the_image():
    """Where half of the input is padding, the label map equals that of the other half alone."""
    logits = np.random.default_rng(0).normal(size=(1, 8, 8, 5)).astype(np.float32)
    whole = best_rank(logits, (24, 40), content=(16, 24), image_shape=(32, 32))
    alone = best_rank(logits[:, :4, :6], (24, 40), content=(16, 24), image_shape=(16, 24))
    np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize('content, window, cells', [(70, 70, 18), (35, 70, 18), (21, 21, 6)])
def test_weights_sum_to_one_over_the_cells_of_the_image(content, window, cells):
    """Sizes for which rounding cells / window up in float32 would count one cell too many."""
    size = jnp.array([content])
    weights = windows.interpolation(
        length=content,
        size=size,
        content=size,
        starts=jnp.array([[0]]),
        window=window,
        stride=window,
        cells=cells,
        mirror=False,
    )[0]  # [content, cells]
    held = -(-content * cells // window)
    np.testing.assert_allclose(weights[:, :held].sum(1), 1, rtol=1e-6)
    assert not weights[:, held:].any()


def test_canvas_beyond_the_image_is_ignored():
    logits = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    labels = best_rank(logits, (30, 70), canvas=(64, 128))
    np.testing.assert_array_equal(labels[:, :30, :70], best_rank(logits, (30, 70)))
    assert (labels[:, 30:] == IGNORE_LABEL).all() and (labels[:, :, 70:] == IGNORE_LABEL).all()


def test_ranks_become_class_ids():
    """Argmax in rank space, mapped back, equals argmax over all K with the others at -100."""
    rng = np.random.default_rng(0)
    selection = select(jnp.asarray(rng.normal(size=(3, 300)), jnp.float32), 7)
    logits = rng.normal(size=(3, 4, 4, 7)).astype(np.float32)
    same = np.eye(4)[None].repeat(3, 0)
    ranks = postprocessing.best_ranks([View(PixelOutput(logits), same, same)], jnp.full((3, 2), 4))
    full = np.asarray(full_logits(logits, selection, 300))
    np.testing.assert_array_equal(from_ranks(ranks, selection), full.argmax(-1))


def test_no_tensor_of_all_pixels_and_ranks_is_built():
    """Memory is bounded by the rows that are upsampled at once, however large the image."""

    class Given(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, choice):
            return PixelOutput(
                x.mean((1, 2))[:, None, None, :1] * jnp.ones((16, 16, 8)),
                Selection(jnp.zeros((2, 8), jnp.int32), jnp.zeros((2, 8))),
            )

    def build(image):
        views = ({'image': image, 'content': jnp.full((2, 2), 64)},)
        return inference.segment(
            Given(),
            {'params': {}, 'batch_stats': {}},
            views,
            jnp.full((2, 2), 512),
            tiny.config('', rankseg=None),
            semantic(tiny.config('', rankseg=None)),
            canvas=(512, 512),
        ).maps['labels']

    temporary = (
        jax.jit(build)
        .lower(jnp.zeros((2, 64, 64, 3)))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    four_times_the_rows = 4 * 2 * postprocessing.ROWS * 512 * 8 * 4  # bytes of float32
    assert temporary < four_times_the_rows < 2 * 512 * 512 * 8 * 4


def test_masks_are_asked_of_per_query_frameworks_alone():
    config = tiny.config('', eval__mask_size=(384, 384))
    with pytest.raises(ValueError, match=r'mask_size = \(384, 384\): segmenter has no masks'):
        inference.check(config, PixelOutput(jnp.zeros((1, 4, 4, 3))))


def test_logits_of_windows_are_joined_at_their_size():
    config = tiny.config('', eval__mask_size=(-1, -1), eval__window=(32, 32))
    with pytest.raises(ValueError, match=r'mask_size = \(-1, -1\): windows are joined at'):
        inference.check(config, PixelOutput(jnp.zeros((1, 4, 4, 3))))

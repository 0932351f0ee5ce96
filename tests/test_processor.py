"""Converted checkpoints see and post-process images as Hugging Face's image processors do."""

import inspect
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import common
from rankseg_jax import config_check, convert, predict
from rankseg_jax.data import fitting
from rankseg_jax.pretrained import processor
from tests import tiny  # noqa: F401  (adds the backbone 'swin_tiny')
from tests.helpers import random_parameters

EDGES = {'shortest_edge': 32, 'longest_edge': 58}
PROCESSORS = {
    'height and width': {'size': {'height': 48, 'width': 48}},
    'not square, not a multiple': {'size': [40, 60]},
    'edges': {'size': EDGES},
    'edges, no multiple': {'size': EDGES, 'size_divisor': 0},
    'edges as two keys': {'size': 32, 'max_size': 58},
    'nearest': {'size': EDGES, 'resample': 0},
    'lanczos': {'size': EDGES, 'resample': 1},
    'bicubic': {'size': EDGES, 'resample': 3},
    'box': {'size': EDGES, 'resample': 4},
    'hamming': {'size': EDGES, 'resample': 5},
    'not rescaled': {'size': EDGES, 'do_rescale': False, 'image_mean': 99, 'image_std': 50},
    'rescaled to 0..2': {'size': EDGES, 'rescale_factor': 1 / 127.5},
    'not normalized': {'size': EDGES, 'do_normalize': False},
    'not resized': {'do_resize': False},
    'longest edge alone': {'max_size': 100},
    'defaults': {},
}
SIZES = [(40, 64), (64, 40), (50, 50), (33, 90), (91, 30), (47, 49)]
FRAMEWORKS = ('Mask2Former', 'MaskFormer')


@pytest.fixture
def transformers():
    pytest.importorskip('torch')
    return pytest.importorskip('transformers')


def photo(rows, columns, seed=0):
    """Smooth colors, as in photos."""
    colors = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(colors).resize((columns, rows), Image.Resampling.BICUBIC)


def described(options, model_type='mask2former'):
    """The config that describes a processor."""
    config = common.get_config()
    for section, keys in processor.input_keys(options, model_type).items():
        config[section].update(keys)
    config_check.check(config, common.get_config())
    return config


@pytest.mark.parametrize('name', PROCESSORS)
def test_pixels_are_hugging_faces(transformers, name):
    """Those of torchvision, its default, exactly; those of Pillow within its other rounding.

    Pillow does not always find the nearest ones.
    """
    for framework in FRAMEWORKS:
        backends = [
            getattr(transformers, f'{framework}ImageProcessor{end}')(**PROCESSORS[name])
            for end in ('Pil', '')
        ]
        config = described(PROCESSORS[name], framework.lower())
        saved = described(json.loads(backends[0].to_json_string()), 'unknown')
        assert saved.eval == config.eval and saved.data == config.data
        level = max(1 / np.array(config.data.std))
        for size in SIZES[:1] if name == 'defaults' else SIZES:
            image = photo(*size)
            (view,) = fitting.eval_views(np.asarray(image), config)
            tolerances = {'nearest': (None, 0), 'box': (0, None), 'hamming': (0, None)}
            for backend, tolerance in zip(backends, tolerances.get(name, (2.01, 0)), strict=True):
                if tolerance is None:
                    continue  # torchvision lacks these filters
                pixels = backend(image, return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
                assert view['image'].shape == pixels.shape
                assert tuple(view['content']) == pixels.shape[:2]
                atol = tolerance * level + 1e-5 * np.abs(pixels).max()
                np.testing.assert_allclose(view['image'], pixels, rtol=0, atol=atol)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.integers(1, 1200), st.integers(1, 2000)),
    st.sampled_from([1, 32]),
)
def test_stretched_sizes_are_hugging_faces(size, edges, multiple):
    transforms = pytest.importorskip('transformers.image_transforms')
    expected = transforms.get_size_with_aspect_ratio(size, *edges)
    expected = [max(math.ceil(side / multiple), 1) * multiple for side in expected]
    assert fitting.stretched_size(size, edges, multiple).tolist() == expected
    side = edges[0]
    expected = transforms.get_size_with_aspect_ratio(size, side, side)
    expected = np.clip(expected, 1, side).tolist()  # Hugging Face's may have no or one pixel more
    assert fitting.fitted_size(size, (side, side), 'bilinear').tolist() == expected


def test_views_that_are_stretched_or_not_resized():
    def view(shape, **keys):
        config = common.get_config()
        config.eval.update(keys)
        return [
            (tuple(view['content']), view['image'].shape[:2])
            for view in fitting.eval_views(np.zeros((*shape, 3), np.uint8), config)
        ]

    own = {'size': (0, 0)}
    assert view((51, 101), **own) == [((51, 101), (64, 128))]
    assert view((51, 101), **own, multiple=1) == [((51, 101), (51, 101))]
    assert view((51, 101), **own, stretch=True) == [((64, 128), (64, 128))]
    assert view((50, 100), **own, multiple=8, scales=(0.5, 2.0)) == [
        ((25, 50), (32, 56)),
        ((100, 200), (104, 200)),
    ]
    assert view((51, 101), size=(40, 20), stretch=True, scales=(1.0, 0.5)) == [
        ((40, 20), (40, 20)),
        ((20, 10), (20, 10)),
    ]
    assert view((50, 100), base_size=(32, 500), stretch=True, scales=(1.0, 2.0)) == [
        ((32, 64), (32, 64)),
        ((64, 128), (64, 128)),
    ]


@pytest.mark.parametrize(
    'options, message',
    [
        ({'pad_size': {'height': 64, 'width': 64}}, 'pad_size = .* is not supported, only None'),
        ({'image_processor_type': 'SegformerImageProcessor'}, 'only those of mask2former and mask'),
        ({'resample': 9}, 'resample = 9 is no filter of Pillow, 0 to 5'),
        ({'size': {'shortest_edge': 64}}, "size = {'shortest_edge': 64} lacks longest_edge"),
        ({'size': [384]}, r'size = \[384\] is not supported, only height and width, or'),
        ({'image_mean': [0.5, 0.5]}, 'image_mean and image_std must be a number or three'),
        ({'size': {'max_height': 64, 'max_width': 64}}, 'size = .* only height and width, or'),
    ],
)
def test_processors_that_no_keys_describe_are_refused(options, message):
    with pytest.raises(ValueError, match=f'preprocessor_config.json: .*{message}'):
        described(options)


def small_model(transformers, framework):
    """A tiny model of Hugging Face; its random masks and classes hardly vary yet."""
    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=3,
        out_features=[f'stage{i}' for i in range(1, 5)],
    )
    options = dict(
        backbone_config=backbone, mask_feature_size=32, id2label={0: 'wall', 1: 'tree', 2: 'sky'}
    )
    if framework == 'MaskFormer':
        decoder = transformers.DetrConfig(
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=256,
            num_queries=12,
            encoder_layers=0,
        )
        config = transformers.MaskFormerConfig(
            fpn_feature_size=32, decoder_config=decoder, **options
        )
        return transformers.MaskFormerForInstanceSegmentation(config)
    config = transformers.Mask2FormerConfig(
        hidden_dim=32,
        feature_size=32,
        num_attention_heads=4,
        encoder_layers=1,
        decoder_layers=3,
        encoder_feedforward_dim=128,
        dim_feedforward=256,
        num_queries=12,
        **options,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def sharpen(torch, model, inputs):
    """Sets the last layers so that masks vary from pixel to pixel, and classes between queries."""
    seen = {}

    def keep(name, layer):
        layer.register_forward_pre_hook(
            lambda module, x: seen.__setitem__(name, x[0].reshape(-1, x[0].shape[-1]))
        )
        return layer

    layers = dict(model.named_modules())
    masks = keep('masks', next(x for n, x in layers.items() if n.endswith('mask_embedder.2.0')))
    classes = keep('classes', model.class_predictor)
    with torch.no_grad():
        next(x for n, x in layers.items() if n.endswith('queries_embedder')).weight.mul_(30)
        output = model(**inputs, output_hidden_states=True)
        pixels = output.pixel_decoder_last_hidden_state.transpose(0, 1).flatten(1)  # [D, B · h · w]
        mean, covariance = pixels.mean(1), torch.cov(pixels)
        covariance += 1e-4 * covariance.diagonal().mean() * torch.eye(len(pixels))
        whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        for layer, name in ((masks, 'masks'), (classes, 'classes')):
            queries = seen[name] - seen[name].mean(0)  # [B · Q, D]
            weight = torch.randn(layer.weight.shape)
            if name == 'masks':
                weight = whiten @ weight
                weight -= torch.outer(mean, mean @ weight) / (mean @ mean)
                weight *= 3 / (queries @ weight.T @ pixels).std()
            else:
                weight *= 4 / (queries @ weight.T).std()
            layer.weight.copy_(weight)
            layer.bias.copy_(-weight @ seen[name].mean(0))
            model(**inputs)
    return model


@pytest.fixture(params=FRAMEWORKS)
def published(request, transformers, tmp_path):
    """A model, its processor, the folder that holds both, and images.

    Photos of several shapes; their input and their canvas have one, so as to compile once.
    """
    import torch

    theirs = random_parameters(torch, small_model(transformers, request.param))
    their_processor = getattr(transformers, f'{request.param}ImageProcessor')(
        size={'height': 64, 'width': 96}, resample=3
    )
    images = [photo(*size, seed) for seed, size in enumerate([(40, 60), (64, 33), (50, 50)])]
    theirs = sharpen(torch, theirs, their_processor(images, return_tensors='pt'))
    theirs.save_pretrained(tmp_path / 'hf')
    their_processor.save_pretrained(tmp_path / 'hf')
    return theirs, their_processor, tmp_path / 'hf', images


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"size": ', 'is not JSON: '),
        ('[]', 'holds no JSON object, but list'),
        ('{"resample": 2.0}', 'is no image processor: '),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = tmp_path / 'preprocessor_config.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=f'{path} {message}'):
        convert.describe_input(tmp_path, 'mask2former', common.get_config())


@pytest.mark.parametrize('things, stuff', [(['tree', '2'], {0}), (['all'], None)])
def test_a_converted_run_segments_as_hugging_face(published, tmp_path, things, stuff):
    import torch

    theirs, their_processor, folder, images = published
    config = common.get_config()
    options = {'task': 'panoptic', 'things': things}
    convert.run(folder, tmp_path / 'run', config, as_is=True, **options)
    defaults = inspect.signature(their_processor.post_process_panoptic_segmentation).parameters
    assert config.eval.threshold == defaults['threshold'].default
    assert config.eval.overlap == defaults['overlap_mask_area_threshold'].default

    config.eval.threshold, config.eval.overlap = 0.4, 0.3  # more segments to compare
    predictor = predict.load(tmp_path / 'run', config=config)
    labels, segments = set(), 0
    for image in images:
        with torch.no_grad():
            output = theirs(**their_processor(image, return_tensors='pt'))
        found, shape = predictor(image), [(image.height, image.width)]
        expected = their_processor.post_process_semantic_segmentation(output, shape)[0].numpy()
        assert (found.labels == expected).mean() >= 0.999
        labels |= set(np.unique(expected))
        (expected,) = their_processor.post_process_panoptic_segmentation(
            output,
            target_sizes=shape,
            threshold=0.4,
            overlap_mask_area_threshold=0.3,
            label_ids_to_fuse=stuff,
        )
        ids = np.maximum(expected['segmentation'].numpy(), 0)
        assert (found.segment_ids == ids).mean() >= 0.999
        infos = {info['id']: info['label_id'] for info in expected['segments_info']}
        assert [label for label, _ in found.segments] == list(infos.values())
        segments += len(infos)
    assert len(labels) > 1 and segments >= 6


def test_a_converted_run_finds_the_objects_of_hugging_face(published, tmp_path):
    import torch

    theirs, their_processor, folder, images = published
    config = common.get_config()
    convert.run(folder, tmp_path / 'run', config, as_is=True, task='instance')
    assert config.task == 'instance' and config.eval.max_objects == 12
    defaults = inspect.signature(their_processor.post_process_instance_segmentation).parameters
    assert config.eval.threshold == defaults['threshold'].default

    config.eval.threshold = 0.2  # more objects to compare
    predictor = predict.load(tmp_path / 'run', config=config)
    labels, differing, pixels = set(), 0, 0
    for image in images:
        with torch.no_grad():
            output = theirs(**their_processor(image, return_tensors='pt'))
        (expected,) = their_processor.post_process_instance_segmentation(
            output,
            target_sizes=[(image.height, image.width)],
            threshold=0.2,
            return_binary_maps=True,
        )
        order = sorted(expected['segments_info'], key=lambda info: -info['score'])
        found = predictor(image)
        assert [label for label, _ in found.objects] == [info['label_id'] for info in order]
        scores = [score for _, score in found.objects]
        np.testing.assert_allclose(scores, [info['score'] for info in order], atol=1e-4)
        masks = expected['segmentation'].numpy()[[info['id'] for info in order]].astype(bool)
        differing += (found.masks != masks).sum()
        pixels += masks.sum()
        labels |= {info['label_id'] for info in order}
    assert len(labels) > 1 and differing <= 0.001 * pixels

"""A converted EoMT segments as Hugging Face's own processor, model and post-processing do."""

import json
import re
from functools import partial

import jax
import numpy as np
import pytest

from configs import common
from rankseg_jax import convert, predict, pretrained
from rankseg_jax.backbones import vit
from rankseg_jax.data import fitting
from rankseg_jax.pretrained import hf
from rankseg_jax.pretrained import vit as pretrained_vit
from tests.helpers import mend_torchvision, numpy_state, random_parameters
from tests.test_processor import described, photo

SIDE = 64  # of the model's images
SIZES = [(100, 60), (64, 64), (37, 126), (59, 61)]  # of three canvases
WINDOWS = {'do_split_image': True, 'size': {'shortest_edge': SIDE, 'longest_edge': None}}
PADDED = {'do_pad': True, 'size': {'shortest_edge': SIDE, 'longest_edge': SIDE}}
NAMES = {0: 'wall', 1: 'tree', 2: 'sky', 3: 'person', 4: 'car'}
vit.VARIANTS['eomt_tiny'] = partial(
    vit.ViT, 16, 32, 3, 2, codes='patches', num_registers=4, layer_scale=1e-5
)


SMALL = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_blocks=2,
    num_queries=12,
    patch_size=16,
    image_size=SIDE,
    id2label=NAMES,
)


@pytest.fixture(scope='module')
def torch():
    pytest.importorskip('transformers')
    mend_torchvision()
    return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def model(torch):
    """An EoMT of Hugging Face whose masks vary from pixel to pixel, and classes between queries."""
    import transformers

    config = transformers.EomtConfig(**SMALL)
    model = random_parameters(torch, transformers.EomtForUniversalSegmentation(config), 0.3)
    model.attn_mask_probs.zero_()
    inputs = transformers.EomtImageProcessor(**PADDED)(photos(), return_tensors='pt')
    return sharpen(torch, model, inputs['pixel_values'])


def photos():
    return [photo(*size, seed) for seed, size in enumerate(SIZES)]


def sharpen(torch, model, images):
    """Sets the last layers so that logits are spread about 0."""
    seen, layers = {}, {'classes': model.class_predictor, 'masks': model.mask_head.fc3}

    def keep(name, layer):
        layer.register_forward_hook(lambda _, inputs, output: seen.update({name: inputs[0]}))

    for name, layer in layers.items():
        keep(name, layer)
    model.upscale_block.register_forward_hook(lambda _, x, output: seen.update(pixels=output))
    with torch.no_grad():
        model(pixel_values=images)
        pixels = seen['pixels'].transpose(0, 1).flatten(1)  # [D, B · h · w]
        mean, covariance = pixels.mean(1), torch.cov(pixels)
        covariance += 1e-4 * covariance.diagonal().mean() * torch.eye(len(pixels))
        whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        for name, layer in layers.items():
            queries = seen[name].flatten(0, 1)  # [B · Q, D]
            centered = queries - queries.mean(0)
            weight = torch.randn(layer.weight.shape)
            if name == 'masks':
                weight = whiten @ weight
                weight -= torch.outer(mean, mean @ weight) / (mean @ mean)
                weight *= 3 / (centered @ weight.T @ pixels).std()
            else:
                weight *= 4 / (centered @ weight.T).std()
            layer.weight.copy_(weight)
            layer.bias.copy_(-weight @ queries.mean(0))
    return model


def published(model, options, folder):
    """Saves the model with a processor, and returns that through torchvision and Pillow."""
    import transformers

    model.save_pretrained(folder)
    backends = transformers.EomtImageProcessor, transformers.EomtImageProcessorPil
    processors = [backend(**options) for backend in backends]
    processors[0].save_pretrained(folder)
    return processors


def theirs(torch, model, processor, image):
    with torch.no_grad():
        return model(**processor(image, return_tensors='pt'))


@pytest.mark.parametrize('options', [WINDOWS, PADDED])
def test_pixels_are_hugging_faces(torch, model, tmp_path, options):
    processors = published(model, options, tmp_path)
    config = described(json.loads((tmp_path / 'preprocessor_config.json').read_text()), 'eomt')
    for image in [*photos(), photo(333, 500), photo(91, 30)]:
        (view,) = fitting.eval_views(np.asarray(image), config)
        for processor, levels in zip(processors, (0.01, 2.01), strict=True):
            pixels = processor(image, return_tensors='np')['pixel_values'].transpose(0, 2, 3, 1)
            rows, columns = view['content']
            start = [0] * len(pixels)
            if options is WINDOWS:
                start = [
                    i * (max(rows, columns) - SIDE) // max(len(pixels) - 1, 1)
                    for i in range(len(pixels))
                ]
            for first, window in zip(start, pixels, strict=True):
                r, c = (first, 0) if rows > columns else (0, first)
                found = view['image'][r : r + SIDE, c : c + SIDE]
                np.testing.assert_allclose(found, window, atol=levels / 57)


def test_windows_are_averaged_as_by_hugging_face(torch, model, tmp_path):
    processor, _ = published(model, WINDOWS, tmp_path)
    config = common.get_config()
    convert.run(tmp_path, tmp_path / 'run', config, as_is=True)
    assert config.task == 'semantic' and config.eval.window == (SIDE, SIDE)
    predictor = predict.load(tmp_path / 'run')
    labels = set()
    for image in photos():
        output = theirs(torch, model, processor, image)
        size = [(image.height, image.width)]
        (expected,) = processor.post_process_semantic_segmentation(output, target_sizes=size)
        assert (predictor(image).labels == expected.numpy()).mean() >= 0.999
        labels |= set(np.unique(expected))
    assert len(labels) > 2


def test_segments_are_hugging_faces(torch, model, tmp_path):
    processor, _ = published(model, PADDED, tmp_path)
    config = common.get_config()
    convert.run(tmp_path, tmp_path / 'run', config, as_is=True, things=['3', 'car'])
    assert config.task == 'panoptic'
    assert (config.eval.threshold, config.eval.overlap) == (0.8, 0.8)
    config.eval.threshold, config.eval.overlap = 0.4, 0.3  # more segments to compare
    predictor, count = predict.load(tmp_path / 'run', config=config), 0
    for image in photos():
        (expected,) = processor.post_process_panoptic_segmentation(
            theirs(torch, model, processor, image),
            target_sizes=[(image.height, image.width)],
            threshold=0.4,
            overlap_mask_area_threshold=0.3,
            stuff_classes=[0, 1, 2],
        )
        found, infos = predictor(image), expected['segments_info']
        assert (found.segment_ids == expected['segmentation'].numpy() + 1).mean() >= 0.999
        assert [label for label, _ in found.segments] == [info['label_id'] for info in infos]
        np.testing.assert_allclose(
            [score for _, score in found.segments], [info['score'] for info in infos], atol=1e-4
        )
        count += len(infos)
    assert count >= 6


def test_objects_are_hugging_faces(torch, model, tmp_path):
    processor, _ = published(model, PADDED, tmp_path)
    config = common.get_config()
    convert.run(tmp_path, tmp_path / 'run', config, as_is=True, task='instance')
    assert config.eval.threshold == 0.8 and config.eval.max_objects == 12
    config.eval.threshold = 0.5  # above it a query has one category, as there
    predictor, count = predict.load(tmp_path / 'run', config=config), 0
    for image in photos():
        size = (image.height, image.width)
        (expected,) = processor.post_process_instance_segmentation(
            theirs(torch, model, processor, image), target_sizes=[size], threshold=0.5
        )
        found, infos = predictor(image), expected['segments_info']
        order = sorted(infos, key=lambda info: -info['score'])
        assert [label for label, _ in found.objects] == [info['label_id'] for info in order]
        np.testing.assert_allclose(
            [score for _, score in found.objects], [info['score'] for info in order], atol=1e-4
        )
        ids = np.full(size, -1)  # later queries lie over earlier ones
        for info in infos:
            ids[found.masks[order.index(info)]] = info['id']
        assert (ids == expected['segmentation'].numpy()).mean() >= 0.999
        count += len(infos)
    assert count >= 6


def authors_names(state):
    """Hugging Face's names of an EoMT as its authors call them, with a DINOv3."""
    names = [
        (r'^embeddings\.', 'encoder.backbone.patch_embed.'),
        (r'^layers\.', 'encoder.backbone.blocks.'),
        (r'^layernorm\.', 'encoder.backbone.norm.'),
        (r'^query\.', 'q.'),
        (r'^class_predictor\.', 'class_head.'),
        (r'^mask_head\.fc1\.', 'mask_head.0.'),
        (r'^mask_head\.fc2\.', 'mask_head.2.'),
        (r'^mask_head\.fc3\.', 'mask_head.4.'),
        (r'^upscale_block\.block\.(\d)\.layernorm2d\.', r'upscale.\1.norm.'),
        (r'^upscale_block\.block\.', 'upscale.'),
    ]
    for pattern, replacement in names:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith('criterion.')}
    return {f'network.{key}': value for key, value in state.items()} | {
        'network.encoder.pixel_mean': np.zeros((1, 3, 1, 1), np.float32),
        'criterion.empty_weight': np.ones(6, np.float32),
    }


def dinov3(torch, kind, **options):
    """A model of Hugging Face on DINOv3, or such a backbone, with random weights."""
    import transformers

    name = {'eomt': 'EomtDinov3', 'backbone': 'DINOv3ViT'}[kind]
    config = getattr(transformers, f'{name}Config')(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=1,
        intermediate_size=96,
        patch_size=16,
        num_register_tokens=4,
        image_size=SIDE,
        **options,
    )
    suffix = {'eomt': 'ForUniversalSegmentation', 'backbone': 'Model'}[kind]
    return random_parameters(torch, getattr(transformers, f'{name}{suffix}')(config))


def test_differences_from_a_dinov3_are_added(torch, tmp_path):
    whole = dinov3(torch, 'eomt', num_blocks=2, num_queries=7, num_labels=5)
    base = dinov3(torch, 'backbone')
    with torch.no_grad():
        for value in base.parameters():
            value.add_(0.01 * torch.randn_like(value))
    base.save_pretrained(tmp_path / 'dinov3')
    whole.save_pretrained(tmp_path / 'hf')
    _, expected = hf.load_hf(tmp_path / 'hf')

    state, taken = numpy_state(whole), numpy_state(base)
    taken = {re.sub(r'^(model\.)?layer\.', 'layers.', key): x for key, x in taken.items()}
    taken = {re.sub(r'^norm\.', 'layernorm.', key): x for key, x in taken.items()}
    assert len(taken.keys() & state.keys()) > 40
    differences = {key: x - taken[key] if key in taken else x for key, x in state.items()}

    def save(name, arrays):
        arrays = {key: torch.tensor(x) for key, x in authors_names(arrays).items()}
        torch.save({'state_dict': arrays}, tmp_path / name)
        return tmp_path / name

    path = save('pytorch_model.bin', differences)
    found = pretrained.read_variables(path, tmp_path / 'dinov3')
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), found, expected)
    with pytest.raises(ValueError, match='differences from those of a DINOv3'):
        pretrained.read_variables(path)
    dinov3(torch, 'backbone', use_gated_mlp=True).save_pretrained(tmp_path / 'other')
    with pytest.raises(ValueError, match='other has other parameters than the DINOv3'):
        pretrained.read_variables(path, tmp_path / 'other')
    found = pretrained.read_variables(save('whole.bin', state))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_authors_names_on_dinov2_are_read(torch):
    timm = pytest.importorskip('timm')
    backbone = timm.models.vision_transformer.VisionTransformer(
        img_size=SIDE,
        embed_dim=64,
        depth=3,
        num_heads=1,
        num_classes=0,
        reg_tokens=4,
        no_embed_class=True,
        init_values=1e-5,
    )
    whole = dinov3(torch, 'eomt', num_blocks=2, num_queries=7, num_labels=5)
    state = numpy_state(random_parameters(torch, backbone))
    others = {
        key: x for key, x in authors_names(numpy_state(whole)).items() if 'backbone' not in key
    }
    found = pretrained.convert(
        others | {f'network.encoder.backbone.{key}': x for key, x in state.items()}
    )
    expected = pretrained_vit.from_torch(state)
    jax.tree.map(np.testing.assert_array_equal, found['params']['backbone'], expected)
    assert expected['position'].shape == (4, 4, 64) and found['params'].keys() > {'mask', 'queries'}

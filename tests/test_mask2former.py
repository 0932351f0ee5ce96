import json

import jax
import jax.export
import numpy as np
import pytest

from configs import common
from rankseg_jax import models, pretrained
from rankseg_jax.pretrained import hf, load_hf
from tests import tiny  # noqa: F401  (adds the backbones 'tiny' and 'swin_tiny')
from tests.helpers import random_batch_norms, random_parameters, random_variables, relative_error

# Hugging Face's options of four models, and the size of the images.
MODELS = {
    'plain': (dict(num_queries=5, num_labels=4), dict(window_size=4), (64, 96)),
    'wide': (
        dict(
            num_queries=12,
            num_labels=7,
            hidden_dim=64,
            feature_size=64,
            mask_feature_size=64,
            num_attention_heads=8,
            encoder_layers=1,
            decoder_layers=3,
        ),
        dict(window_size=7, embed_dim=12, num_heads=[1, 2, 3, 4]),
        (75, 49),
    ),
    'absolute': (
        dict(num_queries=3, num_labels=1, dim_feedforward=48, decoder_layers=2),
        dict(window_size=3, use_absolute_embeddings=True, image_size=64),
        (64, 64),
    ),
    'resnet': (
        dict(num_queries=3, num_labels=2, encoder_layers=1, decoder_layers=2),
        dict(
            embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type='basic'
        ),
        (53, 70),
    ),
}


def hf_model(options, backbone):
    """A small random Mask2Former of Hugging Face."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    stages = [f'stage{i}' for i in range(1, 5)]
    if 'hidden_sizes' in backbone:
        backbone = transformers.ResNetConfig(**backbone, out_features=stages)
    else:
        backbone = transformers.SwinConfig(
            **dict(embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], out_features=stages)
            | backbone
        )
    options = (
        dict(
            hidden_dim=32,
            feature_size=32,
            mask_feature_size=32,
            num_attention_heads=4,
            encoder_feedforward_dim=40,
            dim_feedforward=24,
            encoder_layers=2,
            decoder_layers=5,
        )
        | options
    )
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **options)
    model = random_batch_norms(torch, transformers.Mask2FormerForUniversalSegmentation(config))
    return random_parameters(torch, model, 0.15), options


@pytest.mark.parametrize('name', MODELS)
def test_every_output_is_hugging_faces(name, tmp_path):
    torch = pytest.importorskip('torch')
    options, backbone, size = MODELS[name]
    theirs, options = hf_model(options, backbone)
    theirs.save_pretrained(tmp_path, max_shard_size='20KB' if name == 'wide' else '1GB')
    assert (tmp_path / 'model.safetensors.index.json').exists() == (name == 'wide')
    model, variables = load_hf(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    output, state = jax.jit(
        lambda variables, images: model.apply(
            variables, images, train=False, capture_intermediates=True
        )
    )(variables, images)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(images).permute(0, 3, 1, 2),
            output_hidden_states=True,
            output_auxiliary_logits=True,
        )

    predictions = [*output.auxiliary, (output.class_logits, output.mask_logits)]
    last = {
        'class_queries_logits': expected.class_queries_logits,
        'masks_queries_logits': expected.masks_queries_logits,
    }
    assert len(predictions) == options['decoder_layers'] and output.presence_logits is None
    for ours, prediction in zip(predictions, [*expected.auxiliary_logits, last], strict=True):
        assert relative_error(ours[0], prediction['class_queries_logits']) <= 1e-4
        assert relative_error(ours[1], prediction['masks_queries_logits']) <= 1e-4

    def channels_last(x):
        return x.permute(0, 2, 3, 1)

    kept = state['intermediates']
    for ours, feature in zip(
        kept['backbone']['__call__'][0].values(), expected.encoder_hidden_states, strict=True
    ):
        assert relative_error(ours, channels_last(feature)) <= 1e-4
    maps, pixels = kept['pixel_decoder']['__call__'][0]
    assert relative_error(pixels, channels_last(expected.pixel_decoder_last_hidden_state)) <= 1e-4
    for stride, feature in zip((32, 16, 8), expected.pixel_decoder_hidden_states, strict=True):
        assert relative_error(maps[stride], channels_last(feature)) <= 1e-4
    for i, hidden in enumerate(expected.transformer_decoder_hidden_states[1:]):
        assert (
            relative_error(kept['decoder'][f'layer{i}']['__call__'][0], hidden.transpose(0, 1))
            <= 1e-4
        )


def config(**options):
    """configs/common.py with the published sizes, and `options` of its `model`."""
    config = common.get_config()
    config.model.update(
        dict(
            framework='mask2former',
            backbone='swin_t7',
            channels=256,
            decoder_layers=9,
            decoder_heads=8,
        )
        | options
    )
    return config


@pytest.mark.parametrize(
    'backbone, embed_dim, depths, window',
    [('swin_t7', 96, (2, 2, 6, 2), 7), ('swin_l12', 192, (2, 2, 18, 2), 12)],
)
def test_published_sizes_have_hugging_faces_parameters(backbone, embed_dim, depths, window):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    stages = [f'stage{i}' for i in range(1, 5)]
    with torch.device('meta'):
        theirs = transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(
                num_labels=133,
                backbone_config=(
                    transformers.SwinConfig(
                        embed_dim=embed_dim,
                        depths=depths,
                        num_heads=[embed_dim // 32 * 2**i for i in range(4)],
                        window_size=window,
                        out_features=stages,
                    )
                ),
            )
        )
    state = {
        name: np.broadcast_to(np.float32(0), value.shape)
        for name, value in theirs.state_dict().items()
    }
    baseline = config(backbone=backbone)
    baseline.rankseg = None
    ours = jax.eval_shape(lambda: models.init(models.build(baseline, 133), 133, 0, (64, 64)))
    shapes = jax.tree.map(np.shape, hf.variables(theirs.config.to_dict(), state)['params'])
    assert shapes == jax.tree.map(np.shape, ours['params'])


def test_other_configs_and_folders_are_refused(tmp_path):
    theirs, _ = hf_model(*MODELS['absolute'][:2])
    theirs.save_pretrained(tmp_path)
    path = tmp_path / 'config.json'
    original = json.loads(path.read_text())
    for change, message in [
        ({'pre_norm': True}, 'pre_norm = True is not supported, only False'),
        ({'backbone_config': {'model_type': 'vit'}}, "backbone_config: model_type = 'vit'"),
        ({'model_type': 'detr'}, "model_type = 'detr' is not supported, only mask2former"),
        ({'hidden_dim': 64}, 'must be the same'),
    ]:
        path.write_text(json.dumps(original | change))
        with pytest.raises(ValueError, match=message):
            load_hf(tmp_path)
    with pytest.raises(FileNotFoundError, match='nothing holds no config.json'):
        load_hf(tmp_path / 'nothing')
    with pytest.raises(ValueError, match='channels = 48 must be a multiple of 32 and of'):
        models.build(config(channels=48), 60)


def test_rankseg_starts_from_a_baseline_of_other_classes(tmp_path):
    """Its own parts and the class layer start afresh, all else is the file's."""
    theirs, _ = hf_model(
        dict(
            encoder_feedforward_dim=128,
            dim_feedforward=256,
            encoder_layers=1,
            decoder_layers=4,
            num_labels=4,
            num_queries=5,
        ),
        dict(window_size=3, depths=[1, 1, 2, 1]),
    )
    theirs.save_pretrained(tmp_path)
    rankseg = config(
        backbone='swin_tiny',
        channels=32,
        decoder_layers=3,
        decoder_heads=4,
        pixel_layers=1,
        num_queries=5,
    )
    variables = random_variables(models.build(rankseg, 60), np.zeros((1, 32, 32, 3), np.float32))
    loaded = pretrained.load(tmp_path, variables | {'batch_stats': {}})['params']
    for part in ('head', 'rank', 'classes'):
        jax.tree.map(
            np.testing.assert_array_equal,
            loaded['decoder'][part],
            variables['params']['decoder'][part],
        )
    expected = load_hf(tmp_path)[1]['params']
    for part in ('backbone', 'pixel_decoder'):
        jax.tree.map(np.testing.assert_array_equal, loaded[part], expected[part])
    for part in expected['decoder'].keys() - {'classes'}:
        jax.tree.map(
            np.testing.assert_array_equal, loaded['decoder'][part], expected['decoder'][part]
        )

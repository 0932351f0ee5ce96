import json
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax import config_check, convert, models
from rankseg_jax.decoders.fpn import TransformerEncoder
from rankseg_jax.decoders.query_decoder import DetrDecoder
from rankseg_jax.pretrained import hf, load_hf
from rankseg_jax.pretrained.torch_layers import dense, mlp, norm, split_attention
from rankseg_jax.ranking import gather
from rankseg_jax.selector import Choice
from tests import tiny  # noqa: F401  (adds the backbone 'tiny')
from tests.helpers import (
    mend_torchvision,
    numpy_state,
    random_batch_norms,
    random_parameters,
    random_variables,
    relative_error,
)

STAGES = [f'stage{i}' for i in range(1, 5)]
SWIN = dict(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], out_features=STAGES)
# Three models: Hugging Face's options of decoder and backbone, and the size of the images.
MODELS = {
    'swin': (
        dict(num_labels=4),
        dict(num_queries=5, decoder_layers=2),
        SWIN | dict(window_size=4),
        (64, 96),
    ),
    'same_width': (  # the last map has the width of the queries: it is not projected
        dict(num_labels=7, fpn_feature_size=64, mask_feature_size=64),
        dict(
            num_queries=12,
            d_model=64,
            decoder_layers=1,
            decoder_attention_heads=8,
            decoder_ffn_dim=40,
        ),
        SWIN | dict(window_size=3),
        (75, 49),
    ),
    'resnet': (
        dict(num_labels=2),
        dict(num_queries=3, decoder_layers=2),
        dict(
            embedding_size=8,
            hidden_sizes=[32, 64, 128, 256],
            depths=[1, 2, 1, 1],
            out_features=STAGES,
        ),
        (53, 70),
    ),
}


def hf_config(options, decoder, backbone):
    transformers = pytest.importorskip('transformers')
    kind = transformers.SwinConfig if 'embed_dim' in backbone else transformers.ResNetConfig
    decoder = dict(d_model=32, decoder_ffn_dim=24, decoder_attention_heads=4) | decoder
    options = dict(fpn_feature_size=32, mask_feature_size=32) | options
    return transformers.MaskFormerConfig(
        backbone_config=kind(**backbone),
        decoder_config=transformers.DetrConfig(**decoder),
        **options,
    )


@pytest.mark.parametrize('name', MODELS)
def test_every_output_is_hugging_faces(name, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    *options, size = MODELS[name]
    theirs = random_batch_norms(
        torch, transformers.MaskFormerForInstanceSegmentation(hf_config(*options))
    )
    theirs = random_parameters(torch, theirs, 0.15)
    theirs.save_pretrained(tmp_path)
    model, variables = load_hf(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    output, state = jax.jit(
        lambda variables, images: model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=['intermediates']
        )
    )(variables, images)
    kept = state['intermediates']
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True)
    assert relative_error(output.class_logits, expected.class_queries_logits) <= 1e-4
    assert relative_error(output.mask_logits, expected.masks_queries_logits) <= 1e-4

    def channels_last(x):
        return x.permute(0, 2, 3, 1)

    for ours, feature in zip(
        kept['backbone']['__call__'][0].values(), expected.encoder_hidden_states, strict=True
    ):
        assert relative_error(ours, channels_last(feature)) <= 1e-4
    maps, pixels = kept['pixel_decoder']['__call__'][0]
    assert relative_error(pixels, channels_last(expected.pixel_decoder_last_hidden_state)) <= 1e-4
    for stride, feature in zip((16, 8, 4), expected.pixel_decoder_hidden_states, strict=True):
        assert relative_error(maps[stride], channels_last(feature)) <= 1e-4

    # Auxiliary predictions come from normalized queries, like the last one and as published;
    # Hugging Face does not normalize them.
    _, *hidden, last = expected.transformer_decoder_hidden_states
    assert len(output.auxiliary) == len(hidden) == options[1]['decoder_layers'] - 1
    norm = theirs.model.transformer_module.decoder.layernorm
    for i, (ours, x) in enumerate(zip(output.auxiliary, hidden, strict=True)):
        assert relative_error(kept['decoder'][f'layer{i}']['__call__'][0], x) <= 1e-4
        with torch.no_grad():
            x = norm(x)
            masks = torch.einsum(
                'bqc,bchw->bqhw', theirs.mask_embedder(x), expected.pixel_decoder_last_hidden_state
            )
            assert relative_error(ours[0], theirs.class_predictor(x)) <= 1e-4
            assert relative_error(ours[1], masks) <= 1e-4
    assert relative_error(kept['decoder']['norm']['__call__'][-1], last) <= 1e-4


def detr_encoder(width, num_heads, mlp_dim, num_layers):
    """Hugging Face's encoder of DETR, which its MaskFormer lacks."""
    transformers = pytest.importorskip('transformers')
    mend_torchvision()
    from transformers.models.detr.modeling_detr import DetrEncoder

    return DetrEncoder(
        transformers.DetrConfig(
            d_model=width,
            encoder_attention_heads=num_heads,
            encoder_ffn_dim=mlp_dim,
            encoder_layers=num_layers,
        )
    )


def test_an_encoder_replaces_the_last_features(tmp_path):
    """For the pyramid and for the queries, as in the released panoptic models."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    *options, _ = MODELS['same_width']
    width = options[1]['d_model']
    theirs = transformers.MaskFormerForInstanceSegmentation(hf_config(*options))
    theirs = random_parameters(torch, theirs, 0.15)
    theirs.save_pretrained(tmp_path)
    project = random_parameters(torch, torch.nn.Linear(width, width))
    encoder = random_parameters(torch, detr_encoder(width, 8, 40, num_layers=2))

    from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

    def encode(module, inputs, output):
        *others, last = output.feature_maps  # [B, D, h, w]
        position = DetrSinePositionEmbedding(width // 2, normalize=True)(
            last.shape, last.device, last.dtype
        )
        x = encoder(
            inputs_embeds=project(last.flatten(2).mT),
            spatial_position_embeddings=position.flatten(2).mT,
        ).last_hidden_state  # [B, L, D]
        output.feature_maps = (*others, x.mT.reshape(last.shape))
        return output

    theirs.model.pixel_level_module.encoder.register_forward_hook(encode)
    images = np.random.default_rng(0).normal(size=(2, 75, 113, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2))

    model, variables = load_hf(tmp_path)
    model = model.clone(encoder=TransformerEncoder(width, num_layers=2, num_heads=8, mlp_dim=40))
    state = {
        name.replace('.o_proj.', '.out_proj.'): value
        for name, value in numpy_state(encoder).items()
    }
    params = {'project': dense({f'.{k}': v for k, v in numpy_state(project).items()}, '')}
    for i in range(2):
        layer = f'layers.{i}'
        params[f'layer{i}'] = {
            'attention': split_attention(state, f'{layer}.self_attn', 8),
            'norm1': norm(state, f'{layer}.self_attn_layer_norm'),
            'mlp': mlp(state, f'{layer}.mlp'),
            'norm2': norm(state, f'{layer}.final_layer_norm'),
        }
    variables = variables | {'params': variables['params'] | {'encoder': params}}
    output = jax.jit(lambda *arrays: model.apply(*arrays, train=False))(variables, images)
    assert relative_error(output.class_logits, expected.class_queries_logits) <= 1e-4
    assert relative_error(output.mask_logits, expected.masks_queries_logits) <= 1e-4


def test_panoptic_recipe_has_the_released_parameters():
    """Those of Hugging Face's semantic model and DETR's encoder, the projection to it included."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    recipes = json.loads((Path(__file__).parents[1] / 'configs/recipes.json').read_text())
    counts = {row['config']: row['parameters'] for row in recipes}
    with torch.device('meta'):
        semantic = transformers.MaskFormerForInstanceSegmentation(
            transformers.MaskFormerConfig(
                backbone_config=transformers.ResNetConfig(out_features=STAGES),
                decoder_config=transformers.DetrConfig(),
                num_labels=150,
            )
        ).num_parameters()
        encoder = detr_encoder(256, 8, mlp_dim=2048, num_layers=6).num_parameters()
    assert counts['maskformer:ade20k_r50'] == semantic
    # The queries' projection is the encoder's; the pyramid begins with 256 channels, not 2048.
    fewer = 3 * 3 * 256 * (2048 - 256)
    assert counts['maskformer:ade20k_panoptic_r50'] == semantic + encoder - fewer


@pytest.mark.parametrize(
    'name, backbone',
    [
        (
            'swin_b12',
            dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=12),
        ),
        ('resnet50', dict()),
        (
            'resnet18',
            dict(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type='basic'),
        ),
    ],
)
def test_a_config_describes_the_published_sizes(name, backbone, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    theirs = hf_config(
        dict(num_labels=150, fpn_feature_size=256, mask_feature_size=256),
        dict(d_model=256, decoder_ffn_dim=2048, decoder_attention_heads=8),
        backbone | dict(out_features=STAGES),
    )
    with torch.device('meta'):
        state = transformers.MaskFormerForInstanceSegmentation(theirs).state_dict()
    # The names as they are saved.
    state = {
        key.replace('.o_proj.', '.out_proj.').replace('.mlp.fc', '.fc'): np.broadcast_to(
            np.float32(0), value.shape
        )
        for key, value in state.items()
    }
    theirs.save_pretrained(tmp_path)
    described = common.get_config()
    described.model.encoder_layers = 6  # which Hugging Face's models do not have
    model = hf.build(json.loads((tmp_path / 'config.json').read_text()), state)
    assert convert.describe(tmp_path, model, described)[149] == 'LABEL_149'
    config_check.check(described, common.get_config())
    assert described.model.backbone == name and models.build(described, 150) == model
    assert jax.tree.map(np.shape, hf.variables(theirs.to_dict(), state)) == jax.tree.map(
        np.shape,
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, 3)), train=False)
        ),
    )


def test_rank_space_agrees_with_all_classes_and_dropout_drops():
    options = common.get_config().rankseg
    options.update(num_selected=3, train_selected=0, layer=1, temperature='none', score_prior=False)
    model = DetrDecoder(
        num_classes=7,
        num_queries=4,
        channels=16,
        num_layers=2,
        num_heads=2,
        mlp_dim=24,
        rankseg=FrozenConfigDict(options),
        dropout=0.5,
    )
    rng = np.random.default_rng(0)
    memory, pixels = (
        rng.normal(size=shape).astype(np.float32) for shape in [(2, 3, 4, 24), (2, 6, 8, 16)]
    )
    variables = random_variables(model, memory, {}, pixels)

    @jax.jit
    def forward(variables, key):
        def apply(train, choice=Choice()):
            rngs = {'dropout': key}
            return model.apply(variables, memory, {}, pixels, train=train, choice=choice, rngs=rngs)

        return apply(False), apply(False, Choice(all_classes=True)), apply(True)

    (ranked, full, dropped), (_, _, other) = (
        forward(variables, jax.random.key(seed)) for seed in (0, 1)
    )
    chosen = gather(full.class_logits, ranked.selection, keep_last=True)
    np.testing.assert_allclose(ranked.class_logits, chosen, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ranked.mask_logits, full.mask_logits)
    assert np.abs(np.asarray(dropped.mask_logits) - other.mask_logits).max() > 0.01


def test_lowers_for_accelerators_with_its_gradient():
    config = common.get_config()
    config.model.update(
        framework='maskformer', backbone='tiny', channels=32, decoder_heads=4, num_queries=5
    )
    config.rankseg.layer = 1
    model = models.build(config, 60)
    variables = jax.eval_shape(lambda: models.init(model, 60, 0, (64, 64)))

    def loss(variables, images):
        output = model.apply(variables, images, train=False)
        return output.class_logits.mean() + output.mask_logits.mean()

    images = jax.ShapeDtypeStruct((2, 64, 96, 3), np.float32)
    exported = jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=('tpu', 'cuda'))(
        variables, images
    )
    assert exported.out_avals[0].shape == ()

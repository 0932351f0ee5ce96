"""A converted VidEoMT segments as Hugging Face's own processor, model and post-processing do."""

from functools import partial

import numpy as np
import pytest

from configs import common
from rankseg_jax import convert, predict
from rankseg_jax.backbones import vit
from rankseg_jax.data import rle
from rankseg_jax.published_task import video_task
from tests.helpers import mend_torchvision, random_parameters
from tests.test_eomt_hf import SIDE, SMALL, sharpen
from tests.test_processor import photo

FRAMES, SIZE = 5, (50, 90)
vit.VARIANTS['videomt_tiny'] = partial(
    vit.ViT, 16, 32, 3, 2, codes='patches', num_registers=4, layer_scale=1e-5
)


class OfImages:
    """A video model as one of single images, for `sharpen`."""

    def __init__(self, model):
        self.model, self.upscale_block = model, model.upscale_block
        self.class_predictor, self.mask_head = model.class_predictor, model.mask_head

    def __call__(self, pixel_values):
        return self.model(pixel_values_videos=pixel_values[None])


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Folder of a model and its processor, frames, Hugging Face's processor and output for them."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    mend_torchvision()
    config = transformers.VideomtConfig(**SMALL)
    model = random_parameters(torch, transformers.VideomtForUniversalSegmentation(config), 0.3)
    processor = transformers.VideomtVideoProcessor(size={'height': SIDE, 'width': SIDE})
    frames = np.stack([np.asarray(photo(*SIZE, seed)) for seed in range(FRAMES)])
    (pixels,) = processor(videos=[frames], return_tensors='pt')['pixel_values_videos']
    sharpen(torch, OfImages(model), pixels)
    folder = tmp_path_factory.mktemp('videomt')
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad():
        output = model(pixel_values_videos=pixels[None])
    return folder, frames, processor, output


def converted(folder, workdir, **options):
    """The config and the predictor of the run."""
    config = common.get_config()
    convert.run(folder, workdir, config, as_is=True, **options)
    return config, predict.load(workdir)


def test_label_maps_are_hugging_faces(published, tmp_path):
    folder, frames, processor, output = published
    config, predictor = converted(folder, tmp_path)
    assert config.task == 'video_semantic' and config.eval.average_over == 'frame'
    assert config.eval.size == (SIDE, SIDE) and config.eval.stretch
    expected = processor.post_process_semantic_segmentation(output, [SIZE] * FRAMES)
    assert len(np.unique(np.stack(expected))) > 2
    for config.eval.clip_length in (2, 8):
        predictor = predict.load(tmp_path, config=config)
        for result, labels in zip(predictor.video(iter(frames)), expected, strict=True):
            assert (result.labels == labels.numpy()).mean() >= 0.999


def test_tracks_are_queries_of_the_mean_class(published, tmp_path):
    """Masks are resized in two steps, by way of the model's input; Hugging Face's in one."""
    import torch

    folder, frames, _, output = published
    config, predictor = converted(folder, tmp_path, task='video_instance')
    assert config.eval.threshold == 0.5
    classes = output.class_queries_logits.mean(0).softmax(-1)[:, :-1].numpy()  # [Q, K]
    masks = output.masks_queries_logits  # [t, Q, h, w]
    masks = torch.nn.functional.interpolate(masks, SIZE, mode='bilinear') > 0
    video = predictor.video(iter(frames))
    assert len(list(video)) == FRAMES
    tracks = video.content()['tracks']
    assert len(tracks) == min((classes >= 0.5).sum(), 10) > 2
    for track in tracks:
        query = track['id'] - 1
        assert track['score'] == pytest.approx(classes[query, track['category_id']], abs=1e-4)
        for found, expected in zip(track['segmentations'], masks[:, query], strict=True):
            mask = rle.decode(found) if found else np.zeros(SIZE, bool)
            assert (mask == expected.numpy()).mean() > 0.97


def test_other_tasks_are_refused_and_names_tell_of_tracks(published, tmp_path):
    folder, *_ = published
    with pytest.raises(ValueError, match='sees videos, which is --task=video_semantic or'):
        convert.run(folder, tmp_path, common.get_config(), as_is=True, task='panoptic')
    assert video_task('tue-mps/videomt-dinov2-small-ytvis2019', None, None)[0] == ('video_instance')

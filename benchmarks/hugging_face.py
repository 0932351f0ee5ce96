"""Models of Hugging Face with random weights, and ours with the same, for 512 x 512 and K = 150."""

import tempfile

import jax
import numpy as np

from rankseg_jax.pretrained import load_hf
from tests.helpers import mend_torchvision

mend_torchvision()
import torch
import transformers

SIDE, NUM_CLASSES = 512, 150
THEIRS, OURS = 'Hugging Face, PyTorch eager', 'RankSeg-JAX, jitted'


def eomt(width: int, depth: int, num_heads: int, joint_blocks: int):
    config = transformers.EomtConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        num_blocks=joint_blocks,
        num_queries=100,
        image_size=SIDE,
        num_labels=NUM_CLASSES,
    )
    return transformers.EomtForUniversalSegmentation(config)


def mask2former_swin_t():
    backbone = transformers.SwinConfig(
        out_features=[f'stage{i}' for i in range(1, 5)], drop_path_rate=0.0
    )
    config = transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=NUM_CLASSES)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def upernet_swin_t():
    backbone = transformers.SwinConfig(out_features=[f'stage{i}' for i in range(1, 5)])
    config = transformers.UperNetConfig(
        backbone_config=backbone, use_auxiliary_head=False, num_labels=NUM_CLASSES
    )
    return transformers.UperNetForSemanticSegmentation(config)


def upernet_beit_b():
    config = transformers.BeitConfig(
        image_size=SIDE,
        use_relative_position_bias=True,
        use_auxiliary_head=False,
        out_indices=[3, 5, 7, 11],
        num_labels=NUM_CLASSES,
    )
    return transformers.BeitForSemanticSegmentation(config)


MODELS = {
    'Mask2Former Swin-T': mask2former_swin_t,
    'EoMT-S': lambda: eomt(384, 12, 6, 3),
    'EoMT-B': lambda: eomt(768, 12, 12, 3),
    'EoMT-L': lambda: eomt(1024, 24, 16, 4),
    'UPerNet Swin-T': upernet_swin_t,
    'UPerNet BEiT-B': upernet_beit_b,
}


def build(name: str, masks: float = 0.0):
    """Hugging Face's model in inference mode, ours, and our variables.

    Args:
      name: one of MODELS.
      masks: the probability that EoMT's queries use their masks; 0: a finished model.
    """
    torch.manual_seed(0)
    theirs = MODELS[name]().eval()
    if name.startswith('EoMT'):
        theirs.attn_mask_probs.fill_(masks)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, variables = load_hf(folder)
    return theirs, model, jax.device_put(variables)


def outputs(output) -> list[np.ndarray]:
    """The results of Hugging Face's model, channels last where they are maps of K channels."""
    if hasattr(output, 'logits'):
        return [output.logits.permute(0, 2, 3, 1).numpy()]
    return [output.class_queries_logits.numpy(), output.masks_queries_logits.numpy()]

"""The baseline Segmenter in PyTorch: timm's ViT and a mask transformer, named as released."""

import timm
import torch
from timm.models.vision_transformer import Block
from torch.nn.functional import interpolate, normalize


class Segmenter(torch.nn.Module):
    """Images [B, 3, side, side] → logits [B, K, side, side]; without dropout.

    Args:
      backbone: timm's name of a ViT with patches of 16 pixels.
    """

    def __init__(self, side: int, num_classes: int, backbone: str = 'vit_base_patch16_224'):
        super().__init__()
        self.cells = (side // 16, side // 16)
        self.vit = timm.create_model(backbone, img_size=side, num_classes=0, global_pool='')
        width = self.vit.embed_dim
        self.proj_dec = torch.nn.Linear(width, width)
        self.cls_emb = torch.nn.Parameter(torch.randn(1, num_classes, width) * 0.02)
        self.blocks = torch.nn.Sequential(
            *(
                Block(width, width // 64, qkv_bias=True, norm_layer=torch.nn.LayerNorm)
                for _ in range(2)
            )
        )
        self.decoder_norm = torch.nn.LayerNorm(width)
        self.proj_patch, self.proj_classes = (
            torch.nn.Parameter(torch.randn(width, width) * width**-0.5) for _ in range(2)
        )
        self.mask_norm = torch.nn.LayerNorm(num_classes)

    def forward(self, x):
        patches = self.proj_dec(self.vit.forward_features(x)[:, 1:])
        classes = self.cls_emb.expand(len(x), -1, -1)
        x = self.decoder_norm(self.blocks(torch.cat([patches, classes], 1)))
        patches, classes = x.split([patches.shape[1], classes.shape[1]], 1)
        patches = normalize(patches @ self.proj_patch, dim=-1)
        classes = normalize(classes @ self.proj_classes, dim=-1)
        logits = self.mask_norm(patches @ classes.mT).mT.unflatten(-1, self.cells)
        size = [16 * n for n in self.cells]
        return interpolate(logits, size, mode='bilinear', align_corners=False)

"""The rows of benchmarks/device.py that PyTorch computes: the same networks, as in device_jax.py.

Segmenter is timm's ViT and a mask transformer, without RankSeg; Mask2Former is Hugging Face's with
its own loss, whose matching is SciPy's. Parameters are float32, `autocast` computes in bfloat16.
"""

import functools
import gc
import time

import numpy as np
import torch

from benchmarks.device_jax import BATCH, NUM_CLASSES, NUM_TARGETS, entry
from benchmarks.helpers import random_images, random_targets, seconds_per_call
from tests.helpers import mend_torchvision

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SWINS = {  # embed_dim, depths, num_heads, window_size
    'swin_t': (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    'swin_b': (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    'small': (24, (1, 1, 1, 1), (1, 2, 3, 6), 4),
}
VITS = {
    'vit_b16': 'vit_base_patch16_224',
    'vit_l16': 'vit_large_patch16_224',
    'small': 'vit_tiny_patch16_224',
}


torch.set_float32_matmul_precision('high')  # TF32, as JAX's default


def wait(result):
    """Blocks until the device is done."""
    if DEVICE == 'cuda':
        torch.cuda.synchronize()


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16)


def segmenter(backbone: str, side: int):
    """The model, its loss of (images, targets), and its optimizer."""
    mend_torchvision()
    from benchmarks.torch_segmenter import Segmenter

    model = Segmenter(side, NUM_CLASSES, VITS[backbone])

    def loss(images, targets):
        labels = np.take_along_axis(targets.labels, targets.segments.reshape(len(images), -1), 1)
        labels = labels.reshape(targets.segments.shape)
        labels = torch.tensor(labels, device=DEVICE, dtype=torch.long)

        def run():
            with autocast():
                logits = model(images)
            return torch.nn.functional.cross_entropy(logits.float(), labels)

        return run

    optimizer = functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
    return model, loss, optimizer


def mask2former(backbone: str, side: int):
    """As `segmenter`."""
    mend_torchvision()
    import transformers

    width, depths, heads, window = SWINS[backbone]
    swin = transformers.SwinConfig(
        image_size=side,
        embed_dim=width,
        depths=depths,
        num_heads=heads,
        window_size=window,
        drop_path_rate=0.3,
        out_features=[f'stage{i}' for i in range(1, 5)],
    )
    small = {'encoder_layers': 1, 'decoder_layers': 3, 'num_queries': 25, 'train_num_points': 256}
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, num_labels=NUM_CLASSES, **(small if backbone == 'small' else {})
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)

    def loss(images, targets):
        segments = torch.tensor(targets.segments, device=DEVICE)
        places = torch.arange(NUM_TARGETS, device=DEVICE)[:, None, None]
        masks = list((segments[:, None] == places).float())
        classes = list(torch.tensor(targets.labels, device=DEVICE).long())

        def run():
            with autocast():
                return model(images, mask_labels=masks, class_labels=classes).loss

        return run

    optimizer = functools.partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.05)
    return model, loss, optimizer


class LabelMap(torch.nn.Module):
    """From images [B, 3, H, W] to label maps [B, H, W]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        output = self.model(images)
        if torch.is_tensor(output):
            return output.argmax(1)
        masks = torch.nn.functional.interpolate(
            output.masks_queries_logits, images.shape[2:], mode='bilinear', align_corners=False
        ).sigmoid()
        classes = output.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum('bqk,bqhw->bkhw', classes, masks.to(classes.dtype)).argmax(1)


FAMILIES = {'segmenter': segmenter, 'mask2former': mask2former}


def build(family: str, backbone: str, side: int):
    gc.collect()  # the row before
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model, loss, optimizer = FAMILIES[family](backbone, side)
    return model.to(DEVICE), loss, optimizer


def random_tensor(batch: int, side: int):
    return torch.tensor(random_images(batch, side), device=DEVICE).permute(0, 3, 1, 2).contiguous()


def measured(name: str, call, small: bool, **facts) -> dict:
    """The entry of a call, with the peak of its memory on a GPU."""
    if DEVICE == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    wait(call())
    facts['first_s'] = time.perf_counter() - start  # with all that happens once
    seconds = seconds_per_call(call, wait, small)
    if DEVICE == 'cuda':
        facts['memory'] = torch.cuda.max_memory_allocated()
    return entry(name, seconds, **facts)


def train_row(family: str, backbone: str, side: int, small: bool):
    """Eager steps: forward pass, loss, backward pass, optimizer."""
    batch, side, backbone = (2, 64, 'small') if small else (BATCH, side, backbone)

    def measure():
        model, loss, make_optimizer = build(family, backbone, side)
        model.train()
        optimizer = make_optimizer(model.parameters())
        targets = random_targets(batch, side, NUM_TARGETS, NUM_CLASSES)
        run, losses = loss(random_tensor(batch, side), targets), []

        def call():
            optimizer.zero_grad()
            value = run()
            value.backward()
            optimizer.step()
            losses.append(value.detach())

        found = measured('step', call, small, images=batch)
        return [found | {'first_loss': losses[0].item(), 'last_loss': losses[-1].item()}]

    return measure


def predict_row(
    family: str, backbone: str, side: int, small: bool, batch_sizes=(1, BATCH), compiled=False
):
    """From normalized images on the device to label maps there."""
    side, backbone = (64, 'small') if small else (side, backbone)

    def measure():
        model, _, _ = build(family, backbone, side)
        model = LabelMap(model.eval())
        model = torch.compile(model) if compiled else model
        entries = []
        for batch in batch_sizes:
            images = random_tensor(batch, side)

            def call(images=images):
                with torch.inference_mode(), autocast():
                    return model(images)

            entries.append(measured(f'batch {batch}', call, small, images=batch))
        return entries

    return measure


def attention_row(small: bool):
    """`scaled_dot_product_attention` at the tokens of ViT-L/16."""
    batch, tokens, heads, depth = (2, 128, 2, 64) if small else (8, 1025, 16, 64)

    def measure():
        q, k, v = (
            torch.randn(
                (batch, heads, tokens, depth),
                device=DEVICE,
                dtype=torch.bfloat16,
                requires_grad=True,
            )
            for _ in range(3)
        )
        towards = torch.randn_like(q)
        attend = torch.nn.functional.scaled_dot_product_attention

        def forward():
            with torch.inference_mode():
                return attend(q, k, v)

        def both():
            return torch.autograd.grad(attend(q, k, v), (q, k, v), towards)

        flops, name = 4 * batch * heads * tokens**2 * depth, f'{tokens} × {tokens}'
        return [
            measured(f'{name}, forward', forward, small, flops=flops),
            measured(f'{name}, forward and backward', both, small, flops=3 * flops),
        ]

    return measure


MODELS = {  # name → (family, backbone, side of the recipe's images)
    'Segmenter, ViT-B/16': ('segmenter', 'vit_b16', 512),
    'Segmenter, ViT-L/16': ('segmenter', 'vit_l16', 640),
    'Mask2Former, Swin-T': ('mask2former', 'swin_t', 512),
    'Mask2Former, Swin-B': ('mask2former', 'swin_b', 640),
}
ROWS = {
    **{f'PyTorch, train {name}': functools.partial(train_row, *x) for name, x in MODELS.items()},
    **{
        f'PyTorch, predict {name}': functools.partial(predict_row, *x) for name, x in MODELS.items()
    },
    **{
        f'torch.compile, predict {name}': functools.partial(
            predict_row, *x, batch_sizes=(BATCH,), compiled=True
        )
        for name, x in MODELS.items()
    },
    'PyTorch, attention, ViT-L/16': attention_row,
}


def environment() -> dict:
    device = torch.cuda.get_device_name() if DEVICE == 'cuda' else 'cpu'
    return {'device': device, 'torch': torch.__version__}

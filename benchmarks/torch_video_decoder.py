"""Mask2Former's decoder for videos in PyTorch (Cheng et al., 2112.10764), named as released."""

import math

import torch
from torch import nn
from torch.nn.functional import interpolate, relu


class VideoDecoder(nn.Module):
    """Maps and pixel embeddings of clips → predictions, in evaluation mode without dropout."""

    def __init__(
        self,
        num_classes: int,
        num_queries: int = 100,
        channels: int = 256,
        num_layers: int = 9,
        num_heads: int = 8,
        mlp_dim: int = 2048,
    ):
        super().__init__()
        self.num_heads = num_heads

        def layers(*arguments):
            return nn.ModuleList(arguments[0](*arguments[1:]) for _ in range(num_layers))

        self.transformer_cross_attention_layers = layers(CrossAttention, channels, num_heads)
        self.transformer_self_attention_layers = layers(SelfAttention, channels, num_heads)
        self.transformer_ffn_layers = layers(Mlp, channels, mlp_dim)
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_feat = nn.Embedding(num_queries, channels)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.level_embed = nn.Embedding(3, channels)
        self.class_embed = nn.Linear(channels, num_classes + 1)
        self.mask_embed = MaskEmbedding(channels)

    def forward(self, maps, pixels, num_frames: int):
        """Decodes clips.

        Args:
          maps: [B · T, D, h, w] of strides 32, 16 and 8, all frames of a clip after each other.
          pixels: [B · T, D, h, w].
          num_frames: T.

        Returns:
          (class logits [B, Q, K + 1], mask logits [B, Q, T, h, w]) before the first layer and
          after each.
        """
        pixels = pixels.unflatten(0, (-1, num_frames))  # [B, T, D, h, w]
        shapes = [x.shape[-2:] for x in maps]
        memories = [
            clip_tokens(x.unflatten(0, (-1, num_frames))) + level
            for x, level in zip(maps, self.level_embed.weight, strict=True)
        ]  # [B, T · L, D] each
        positions = [
            clip_tokens(position_codes(num_frames, *x.shape[-2:], x.shape[1])[None]) for x in maps
        ]  # [1, T · L, D] each
        x = self.query_feat.weight.expand(len(pixels), -1, -1)  # [B, Q, D]
        found = [self.predict(x, pixels)]
        for i in range(len(self.transformer_ffn_layers)):
            level = i % len(maps)
            hidden = self.hidden(found[-1][1], shapes[level])  # [B · heads, Q, T · L]
            x = self.transformer_cross_attention_layers[i](
                x, self.query_embed.weight, memories[level], positions[level], hidden
            )
            x = self.transformer_self_attention_layers[i](x, self.query_embed.weight)
            x = self.transformer_ffn_layers[i](x)  # [B, Q, D]
            found.append(self.predict(x, pixels))
        return found

    def predict(self, x, pixels):
        """[B, Q, D], [B, T, D, h, w] → class logits [B, Q, K + 1], mask logits [B, Q, T, h, w]."""
        x = self.decoder_norm(x)
        masks = torch.einsum('bqd,btdhw->bqthw', self.mask_embed(x), pixels)
        return self.class_embed(x), masks

    def hidden(self, masks, shape):
        """Where queries may not look, bool [B · heads, Q, T · L], by [B, Q, T, h, w] logits."""
        masks = interpolate(masks.flatten(0, 1), shape, mode='bilinear', align_corners=False)
        outside = masks.sigmoid().unflatten(0, (-1, self.query_feat.num_embeddings)) < 0.5
        outside = outside.flatten(2)  # [B, Q, T · L]
        outside &= ~outside.all(-1, keepdim=True)  # a query without a mask looks everywhere
        return outside.repeat_interleave(self.num_heads, 0)


class CrossAttention(nn.Module):
    """Post-norm attention of queries to cells: [B, Q, D] → [B, Q, D]."""

    def __init__(self, channels, num_heads):
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x, query_position, memory, position, hidden):
        y, _ = self.multihead_attn(
            x + query_position, memory + position, memory, attn_mask=hidden, need_weights=False
        )
        return self.norm(x + y)


class SelfAttention(nn.Module):
    """Post-norm attention of queries to each other: [B, Q, D] → [B, Q, D]."""

    def __init__(self, channels, num_heads):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x, query_position):
        query = x + query_position
        y, _ = self.self_attn(query, query, x, need_weights=False)
        return self.norm(x + y)


class Mlp(nn.Module):
    """A post-norm MLP: [B, Q, D] → [B, Q, D]."""

    def __init__(self, channels, mlp_dim):
        super().__init__()
        self.linear1 = nn.Linear(channels, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(x + self.linear2(relu(self.linear1(x))))


class MaskEmbedding(nn.Module):
    """Three dense layers, [B, Q, D] → [B, Q, D]."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        return self.layers[-1](x)


def clip_tokens(x):
    """[B, T, D, h, w] → [B, T · L, D], the cells of a clip frame by frame."""
    return x.permute(0, 1, 3, 4, 2).flatten(1, 3)


def position_codes(num_frames: int, height: int, width: int, channels: int):
    """[T, D, h, w]: codes of rows and columns, half of the channels each, plus one of the time."""
    time = sine_code(num_frames, channels)[:, :, None, None]  # [T, D, 1, 1]
    rows = sine_code(height, channels // 2).T[:, :, None].expand(-1, -1, width)
    columns = sine_code(width, channels // 2).T[:, None].expand(-1, height, -1)
    return time + torch.cat([rows, columns])


def sine_code(length: int, channels: int):
    """[length, channels] of the places 1 to length, scaled to 2π."""
    place = 2 * math.pi * torch.arange(1, length + 1) / (length + 1e-6)  # [length]
    frequency = 10_000.0 ** (-2 * torch.arange(channels // 2) / channels)  # [channels / 2]
    angles = place[:, None] * frequency
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

"""From per-query outputs to label maps and panoptic segments (Cheng et al., CVPR 2022), a block of rows at a time.

A view is one pass over the images: (class_logits [B, Q, κ + 1] with no-object last, mask_logits [B, Q, h, w], weights of their rows
[B, rows, h] and columns [B, columns, w] that resize them bilinearly to the result, see `inference.interpolation`).
"""

import flax
import jax
import jax.numpy as jnp
from jax import lax

ROWS = 64  # of the result are upsampled at once, so that memory stays at Q × these


def semantic_ranks(views):
    """The rank with the greatest Σ over queries of p(rank | query) · σ(mask), summed over the views: [B, rows, columns] int32."""
    probabilities = [jax.nn.softmax(classes.astype(jnp.float32))[..., :-1] for classes, *_ in views]  # [B, Q, κ] each

    def of_block(masks, _):
        scores = sum(jnp.einsum('bqrc,bqk->brck', x, p, precision='highest')
                     for x, p in zip(masks, probabilities, strict=True))
        return scores.argmax(-1).astype(jnp.int32)  # [B, ROWS, columns]

    return in_place(blocks(of_block, views), views[0][2].shape[1])


@flax.struct.dataclass
class Segments:
    """Panoptic segments of a batch of images.

    Attributes:
      ids: [B, rows, columns] int32, 1 + place in the lists below; 0: void.
      labels: [B, Q] int32 rank of each segment; -1 after the last.
      scores: [B, Q] float32, the class probability of the query that a segment comes from, of stuff the first one.
    """

    ids: jax.Array
    labels: jax.Array
    scores: jax.Array


def panoptic_segments(view, things, size, *, threshold=0.8, overlap=0.8, keep_unsure=False) -> Segments:
    """Every pixel goes to the query with the greatest p(class) · σ(mask); stuff of one class becomes one segment.

    Args:
      view: see above.
      things: [B, κ] bool, ranks whose queries are segments of their own; with a selection, `ranking.gather` gives them.
      size: [B, 2] int32, rows and columns of the image within the result; the rest is void.
      threshold: queries below this class probability, and those for no-object, count nowhere.
      overlap: a query that keeps a smaller share of its mask (σ ≥ 0.5) counts nowhere either, and what it has is void.
      keep_unsure: False, as released: pixels where the winner's σ is below 0.5 are void. True, as HF transformers has it: they are
        the winner's, and its mask is where p(class) · σ ≥ 0.5.
    """
    class_logits, _, rows, columns = view
    num_queries, no_object = class_logits.shape[1], class_logits.shape[-1] - 1
    probabilities = jax.nn.softmax(class_logits.astype(jnp.float32))
    scores, labels = probabilities.max(-1), probabilities.argmax(-1)  # [B, Q]
    kept = (labels != no_object) & (scores > threshold)
    inside_columns = jnp.arange(columns.shape[1]) < size[:, 1:]  # [B, columns]

    def of_block(masks, first):
        masks = masks[0]  # [B, Q, ROWS, columns]
        inside_rows = first + jnp.arange(ROWS) < size[:, :1]  # [B, ROWS]
        inside = inside_rows[:, None, :, None] & inside_columns[:, None, None]  # [B, 1, ROWS, columns]
        weighted = masks * scores[..., None, None]
        winner = jnp.where(kept[..., None, None], weighted, -1).argmax(1)  # [B, ROWS, columns]
        own = (winner[:, None] == jnp.arange(num_queries)[:, None, None]) & inside
        sure = ((weighted if keep_unsure else masks) >= 0.5) & inside
        shown = own if keep_unsure else own & sure
        areas = [x.sum((2, 3)) for x in (own, sure, shown)]  # [B, Q] each
        return jnp.where(shown.any(1), winner, num_queries), jnp.stack(areas)

    winner, areas = blocks(of_block, [view])
    winner = in_place(winner, rows.shape[1])  # [B, rows, columns], Q: nobody
    own, sure, shown = areas.sum(0)  # [B, Q] each
    exists = kept & (shown > 0) & (sure > 0) & (own / jnp.maximum(sure, 1) >= overlap)

    # The first query of a class stands for all stuff of it; the others only for themselves.
    stuff = ~jnp.take_along_axis(things, jnp.minimum(labels, no_object - 1), -1)  # [B, Q]
    same = (labels[:, :, None] == labels[:, None]) & stuff[:, :, None] & exists[:, None]  # [B, Q, Q]
    place = jnp.arange(num_queries)
    first = jnp.where(stuff, same.argmax(-1), place)
    new = exists & (first == place)
    ids = jnp.where(exists, jnp.take_along_axis(jnp.cumsum(new, -1), first, -1), 0)  # [B, Q]
    slots = jnp.where(new, ids - 1, num_queries)

    def of_image(winner, ids, slots, labels, scores):
        table = jnp.pad(ids, (0, 1))  # [Q + 1]
        empty = jnp.full(num_queries, -1, jnp.int32), jnp.zeros(num_queries)
        labels, scores = (x.at[slots].set(y, mode='drop') for x, y in zip(empty, (labels, scores), strict=True))
        return Segments(table[winner], labels, scores)

    return jax.vmap(of_image)(winner, ids, slots, labels, scores)


def blocks(of_block, views):
    """Stacks what `of_block` makes of the views' mask probabilities, [B, Q, ROWS, columns] each, and the first row's number."""
    num_rows = views[0][2].shape[1]
    count = -(-num_rows // ROWS)

    def cut(rows):  # [B, rows, h] -> [count, B, ROWS, h]
        rows = jnp.pad(rows, ((0, 0), (0, count * ROWS - num_rows), (0, 0)))
        return rows.reshape(rows.shape[0], count, ROWS, -1).swapaxes(0, 1)

    def of_rows(block):
        rows_of_views, first = block
        masks = []
        for rows, (_, logits, _, columns) in zip(rows_of_views, views, strict=True):
            logits = jnp.einsum('brh,bqhw->bqrw', rows, logits.astype(jnp.float32), precision='highest')
            masks.append(jax.nn.sigmoid(jnp.einsum('bcw,bqrw->bqrc', columns, logits, precision='highest')))
        return of_block(masks, first)

    return lax.map(of_rows, ([cut(rows) for _, _, rows, _ in views], ROWS * jnp.arange(count)))


def in_place(maps, num_rows: int):
    """[blocks, B, ROWS, columns] -> [B, num_rows, columns]."""
    maps = maps.swapaxes(0, 1)
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])[:, :num_rows]

"""From a model's outputs to label maps and panoptic segments (Cheng et al., CVPR 2022), a block of rows at a time.

A view is one pass over the images: their logits, and the weights of the logits' rows [B, rows, h] and columns [B, columns, w] that
resize them bilinearly to the result, see `inference.interpolation`. The logits are [B, h, w, κ] of pixels; of queries class_logits
[B, Q, κ + 1] with no-object last, and mask_logits [B, Q, h, w].
"""

import flax
import jax
import jax.numpy as jnp
from jax import lax

ROWS = 64  # of the result are upsampled at once, so that memory stays at κ or Q × these


def best_ranks(views):
    """Per pixel: the rank of the highest logit, or mean probability of several views: [B, rows, columns] int32."""

    def of_block(rows_of_views, _):
        scores = []
        for rows, (logits, _, columns) in zip(rows_of_views, views, strict=True):
            logits = jnp.einsum('brh,bhwk->brwk', rows, logits, precision='highest')
            scores.append(
                jnp.einsum('bcw,brwk->brck', columns, logits, precision='highest')
            )  # [B, ROWS, columns, κ]
        scores = scores[0] if len(scores) == 1 else sum(map(jax.nn.softmax, scores))
        return scores.argmax(-1).astype(jnp.int32)

    rows = [rows for _, rows, _ in views]
    return in_place(blocks(of_block, rows), rows[0].shape[1])


def semantic_ranks(views):
    """The rank with the greatest Σ over queries of p(rank | query) · σ(mask), summed over the views: [B, rows, columns] int32."""
    probabilities = [
        jax.nn.softmax(classes.astype(jnp.float32))[..., :-1] for classes, *_ in views
    ]  # [B, Q, κ] each

    def of_block(rows_of_views, _):
        masks = [
            mask_probabilities(rows, view) for rows, view in zip(rows_of_views, views, strict=True)
        ]
        scores = sum(
            jnp.einsum('bqrc,bqk->brck', x, p, precision='highest')
            for x, p in zip(masks, probabilities, strict=True)
        )
        return scores.argmax(-1).astype(jnp.int32)  # [B, ROWS, columns]

    rows = [rows for *_, rows, _ in views]
    return in_place(blocks(of_block, rows), rows[0].shape[1])


def mask_probabilities(rows, view):
    """[B, ROWS, h] weights of rows -> σ of the masks there, [B, Q, ROWS, columns]."""
    _, mask_logits, _, columns = view
    logits = jnp.einsum(
        'brh,bqhw->bqrw', rows, mask_logits.astype(jnp.float32), precision='highest'
    )
    return jax.nn.sigmoid(jnp.einsum('bcw,bqrw->bqrc', columns, logits, precision='highest'))


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


def panoptic_segments(
    view, things, size, *, threshold=0.8, overlap=0.8, keep_unsure=False
) -> Segments:
    """Every pixel goes to the query with the greatest p(class) · σ(mask); stuff of one class becomes one segment.

    Args:
      view: of queries, see above.
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

    def of_block(rows_of_view, first):
        masks = mask_probabilities(*rows_of_view, view)  # [B, Q, ROWS, columns]
        inside_rows = first + jnp.arange(ROWS) < size[:, :1]  # [B, ROWS]
        inside = (
            inside_rows[:, None, :, None] & inside_columns[:, None, None]
        )  # [B, 1, ROWS, columns]
        weighted = masks * scores[..., None, None]
        winner = jnp.where(kept[..., None, None], weighted, -1).argmax(1)  # [B, ROWS, columns]
        own = (winner[:, None] == jnp.arange(num_queries)[:, None, None]) & inside
        sure = ((weighted if keep_unsure else masks) >= 0.5) & inside
        shown = own if keep_unsure else own & sure
        areas = [x.sum((2, 3)) for x in (own, sure, shown)]  # [B, Q] each
        return jnp.where(shown.any(1), winner, num_queries), jnp.stack(areas)

    winner, areas = blocks(of_block, [rows])
    winner = in_place(winner, rows.shape[1])  # [B, rows, columns], Q: nobody
    own, sure, shown = areas.sum(0)  # [B, Q] each
    exists = kept & (shown > 0) & (sure > 0) & (own / jnp.maximum(sure, 1) >= overlap)

    # The first query of a class stands for all stuff of it; the others only for themselves.
    stuff = ~jnp.take_along_axis(things, jnp.minimum(labels, no_object - 1), -1)  # [B, Q]
    same = (
        (labels[:, :, None] == labels[:, None]) & stuff[:, :, None] & exists[:, None]
    )  # [B, Q, Q]
    place = jnp.arange(num_queries)
    first = jnp.where(stuff, same.argmax(-1), place)
    new = exists & (first == place)
    ids = jnp.where(exists, jnp.take_along_axis(jnp.cumsum(new, -1), first, -1), 0)  # [B, Q]
    slots = jnp.where(new, ids - 1, num_queries)

    def of_image(winner, ids, slots, labels, scores):
        table = jnp.pad(ids, (0, 1))  # [Q + 1]
        empty = jnp.full(num_queries, -1, jnp.int32), jnp.zeros(num_queries)
        labels, scores = (
            x.at[slots].set(y, mode='drop') for x, y in zip(empty, (labels, scores), strict=True)
        )
        return Segments(table[winner], labels, scores)

    return jax.vmap(of_image)(winner, ids, slots, labels, scores)


def blocks(of_block, rows):
    """Stacks what `of_block` makes of ROWS rows of the result: of their weights in each view, and the first one's number.

    Args:
      rows: for each view [B, rows, h].
    """
    num_rows = rows[0].shape[1]
    count = -(-num_rows // ROWS)

    def cut(rows):  # [B, rows, h] -> [count, B, ROWS, h]
        rows = jnp.pad(rows, ((0, 0), (0, count * ROWS - num_rows), (0, 0)))
        return rows.reshape(rows.shape[0], count, ROWS, -1).swapaxes(0, 1)

    return lax.map(
        lambda block: of_block(*block), ([cut(x) for x in rows], ROWS * jnp.arange(count))
    )


def in_place(maps, num_rows: int):
    """[blocks, B, ROWS, columns] -> [B, num_rows, columns]."""
    maps = maps.swapaxes(0, 1)
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])[:, :num_rows]

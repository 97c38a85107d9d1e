"""Near duplicates: images of a held-out split that look like one of another split, by a perceptual hash."""

import numpy as np
import tensorflow as tf

from kd_keras.data.overlaps import listed, sortable
from kd_keras.data.sources import Source, Splits

_BATCH = 256
# A hash has 8 rows of 8 bits: whether each of 9 grey levels in a row is darker than the next one.
_GRID = (8, 9)
# Most bits by which the hashes of two images that look alike differ; one of _BANDS bands of bits is then equal.
_MOST_BITS, _BANDS = 3, 4
# Grey levels: an image that varies less has no hash that says anything.
_FLAT = 4.0


def lookalikes(splits: Splits) -> list[str]:
    """A sentence on each held-out split with images that look like images of another split, but are not equal to any.

    A copy in another size, format or brightness has nearly the same hash; a mirrored or cropped one has not. Simple
    drawings may look alike by chance.

    Reference: the difference hash of N. Krawetz, "Kind of Like That" (2013).
    """
    sources = {name: getattr(splits, name) for name in ("train", "unlabelled", "val", "test")}
    sources = {name: source for name, source in sources.items() if source is not None}
    hashes = {name: _hashes(source) for name, source in sources.items()}
    sentences = []
    for held_out in ("test", "val"):
        for name in ("train", "unlabelled", "val"):
            if name not in sources or name == held_out:
                continue
            pairs = _pairs(hashes[held_out], hashes[name])
            same = np.isin(sortable(sources[held_out].digests), sortable(sources[name].digests))
            rows = np.array([row for row in pairs if not same[row]], int)
            if len(rows):
                which = listed(sources[held_out], rows)
                other = sources[name].name_of(pairs[rows[0]])
                sentences.append(
                    f"{len(rows)} of the {len(sources[held_out])} {held_out} images look like images in {name} "
                    f"({which}; the first like {other}): near duplicates make figures too good, look at them"
                )
    return sentences


def _hashes(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (N, 8) uint8, and whether (N,) they say anything: an image without structure is like many others."""
    parts, tells = [], []
    for start in range(0, len(source), _BATCH):
        images, _ = source.read(np.arange(start, min(start + _BATCH, len(source))))
        grey = tf.reduce_mean(tf.cast(images, tf.float32), axis=-1, keepdims=True)
        small = tf.image.resize(grey, _GRID, method="area")[..., 0].numpy()
        bits = np.packbits(small[:, :, 1:] > small[:, :, :-1], axis=-1)[..., 0]
        parts.append(bits)
        tells.append(small.std(axis=(1, 2)) >= _FLAT)
    return np.concatenate(parts), np.concatenate(tells)


def _pairs(held_out: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]) -> dict[int, int]:
    """A row of the others for each held-out row whose hash is nearly the same."""
    (ours, is_ours), (theirs, are_theirs) = held_out, others
    rows = np.flatnonzero(are_theirs)
    theirs, found = theirs[rows], {}
    for band in range(_BANDS):
        values, keys = (_band(hashes, band) for hashes in (ours, theirs))
        order = np.argsort(keys, kind="stable")
        low, high = (np.searchsorted(keys[order], values, side=side) for side in ("left", "right"))
        for row in np.flatnonzero(is_ours & (high > low)):
            if int(row) in found:
                continue
            candidates = order[low[row] : high[row]]
            distances = np.unpackbits(theirs[candidates] ^ ours[row], axis=1).sum(axis=1)
            nearest = int(distances.argmin())
            if distances[nearest] <= _MOST_BITS:
                found[int(row)] = int(rows[candidates[nearest]])
    return dict(sorted(found.items()))


def _band(hashes, band) -> np.ndarray:
    """Two bytes of each hash as one number (N,)."""
    return np.ascontiguousarray(hashes[:, 2 * band : 2 * band + 2]).view(np.uint16)[:, 0]

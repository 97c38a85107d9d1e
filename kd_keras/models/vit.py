"""Vision transformers."""

import keras

from kd_keras.errors import InputError, is_count, is_number
from kd_keras.models import layers as _layers

_POOLS = ("token", "mean")
_TAPS = 4


def ViT(
    num_classes: int,
    input_shape: tuple[int, int, int],
    patch: int = 4,
    depth: int = 6,
    heads: int = 3,
    width: int = 192,
    mlp_ratio: float = 4.0,
    pool: str = "token",
    dropout: float = 0.0,
) -> keras.Model:
    """A vision transformer (Dosovitskiy et al., 2010.11929) with pre-norm blocks and learned position embeddings.

    The defaults are a small network for images with sides of 28 to 32 pixels. For 224 pixels: ViT-Ti/16 is
    ``vit(patch=16, depth=12, heads=3, width=192)``, S/16 has heads=6 and width=384, B/16 heads=12 and width=768.

    The class token and the bias of the patch projection are only added to a position embedding, and so are part of it
    here: 2 · width weights fewer than published (with ``pool='mean'``, which has no class token, width fewer).

    Taps: ``stage1 … stage4``, the patches' tokens after each quarter of the blocks as a map (B, H / patch, W / patch,
    width), without the class token (as many stages as blocks, where there are fewer than 4); ``pooled``, the vector
    (B, width) that enters the classifier.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C), both sides multiples of ``patch``.
        patch: side of a patch in pixels.
        depth: number of blocks.
        heads: heads of each attention, a divisor of ``width``.
        width: size D of a token.
        mlp_ratio: units of each block's hidden layer over ``width``.
        pool: ``'token'``: a class token is read. ``'mean'``: the mean of the patches' tokens, without class token.
        dropout: share of units dropped after the position embedding, each attention and each dense layer of a block,
            in 0 <= dropout < 1.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: ``patch`` does not divide the image's sides, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    for key, value in (("patch", patch), ("depth", depth), ("heads", heads), ("width", width)):
        if not is_count(value):
            raise InputError(f"{key}={value!r} is not a positive whole number: write for example {key}=6")
    if width % heads:
        raise InputError(f"heads={heads} does not divide width={width}: every head takes an equal part of it")
    if not is_number(mlp_ratio) or width * mlp_ratio < 1:
        raise InputError(f"mlp_ratio={mlp_ratio!r} leaves the hidden layer no unit: give a positive number, such as 4")
    if pool not in _POOLS:
        raise InputError(f"pool={pool!r} is unknown: choose one of {', '.join(map(repr, _POOLS))}")
    _layers.check_dropout(dropout)
    height, wide, _ = input_shape
    if height % patch or wide % patch:
        raise InputError(_misfit(height, wide, patch))

    image, x = _layers.image_input(input_shape)
    grid = (height // patch, wide // patch)
    x = _embedding(x, grid, patch, width, class_token=pool == "token")
    x = _dropped(x, dropout, "embedding")
    taps = min(_TAPS, depth)
    after = {round(depth * k / taps): k for k in range(1, taps + 1)}
    for i in range(1, depth + 1):
        x = _block(x, heads, round(width * mlp_ratio), dropout, f"block{i}")
        if i in after:
            x = _tapped(x, grid, after[i], class_token=pool == "token")
    x = _norm(x, "norm")
    if pool == "token":
        x = keras.layers.Cropping1D((0, x.shape[1] - 1), name="class_token")(x)
        x = keras.layers.Flatten(name="pooled")(x)
    else:
        x = keras.layers.GlobalAveragePooling1D(name="pooled")(x)
    return keras.Model(image, _layers.logits(x, num_classes), name=f"vit{depth}_{patch}")


def _embedding(x, grid, patch, width, class_token):
    """Images -> tokens (B, T, width): each patch projected, plus a weight for each position.

    Among stock layers only a bias over two axes gives each position a weight. The class token is a row of zeros that is
    projected like a patch: what remains is the bias of its position.
    """
    rows, columns = grid
    x = keras.layers.Reshape((rows, patch, columns, patch * x.shape[-1]), name="patch_rows")(x)
    x = keras.layers.Permute((1, 3, 2, 4), name="patch_columns")(x)
    x = keras.layers.Reshape((rows * columns, -1), name="patches")(x)
    if class_token:
        x = keras.layers.ZeroPadding1D((1, 0), name="with_class_token")(x)
    return keras.layers.EinsumDense(
        "btp,pd->btd",
        output_shape=(x.shape[1], width),
        bias_axes="td",
        bias_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name="embedding",
    )(x)


def _block(x, heads, hidden, dropout, name):
    """Attention and a two-layer perceptron, each of the normalised input and added to it (equations 2 and 3)."""
    width = x.shape[-1]
    y = _norm(x, f"{name}_norm1")
    attention = keras.layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")
    y = _dropped(attention(y, y), dropout, f"{name}_attention")
    x = keras.layers.Add(name=f"{name}_add1")([x, y])
    y = _norm(x, f"{name}_norm2")
    y = keras.layers.Dense(hidden, activation="gelu", name=f"{name}_dense1")(y)
    y = _dropped(y, dropout, f"{name}_dense1")
    y = keras.layers.Dense(width, name=f"{name}_dense2")(y)
    y = _dropped(y, dropout, f"{name}_dense2")
    return keras.layers.Add(name=f"{name}_add2")([x, y])


def _norm(x, name):
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)


def _dropped(x, share, name):
    return keras.layers.Dropout(share, name=f"{name}_dropout")(x) if share else x


def _tapped(x, grid, stage, class_token):
    """The same tokens, passed through the tapped map: a side branch would not be a layer of the model."""
    count, width = x.shape[1:]
    name = f"stage{stage}"
    patches = keras.layers.Cropping1D((1, 0), name=f"{name}_patches")(x) if class_token else x
    patches = keras.layers.Reshape((*grid, width), name=name)(patches)
    patches = keras.layers.Reshape((grid[0] * grid[1], width), name=f"{name}_tokens")(patches)
    if not class_token:
        return patches
    token = keras.layers.Cropping1D((0, count - 1), name=f"{name}_class_token")(x)
    return keras.layers.Concatenate(axis=1, name=f"{name}_joined")([token, patches])


def _misfit(height, width, patch):
    """What to do where the patches do not cover the image."""
    near = sorted({max(patch, side // patch * patch + more) for side in (height, width) for more in (0, patch)})
    fit = [size for size in range(2, min(height, width) + 1) if height % size == width % size == 0]
    advice = f"read the images with --image_size={' or '.join(map(str, near))}"
    if fit:
        advice += f", or give patch={', '.join(map(str, fit[:6]))}"
    return f"patch={patch} does not divide the sides of a {height}x{width} image: {advice}"

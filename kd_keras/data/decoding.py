"""Image files and images as TensorFlow operations: decoding, resizing, colour."""

import tensorflow as tf


def decode_rgb(content: tf.Tensor) -> tf.Tensor:
    """The bytes of an image file, in its own size: uint8 (H, W, 3); `decode` says what is raised."""
    # Always by way of RGB: the decoder cannot turn CMYK, GIF or BMP into grey itself.
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def decode(path: tf.Tensor, image_shape: tuple[int, int, int], orientation: tf.Tensor | None = None) -> tf.Tensor:
    """Reads one image file as TensorFlow operations.

    Args:
        path: string scalar.
        image_shape: (H, W, C), C being 1 or 3.
        orientation: integer scalar, how the camera was held (EXIF, 1 to 8); by default as the pixels are stored.

    Returns:
        uint8 (H, W, C): 16-bit values are scaled down, alpha is dropped, of an animation the first frame is taken.

    Raises:
        tf.errors.InvalidArgumentError: the file is no whole image.
    """
    image = decode_rgb(tf.io.read_file(path))
    return fit(image if orientation is None else upright(image, orientation), image_shape)


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """An image (H, W, C) turned as its EXIF orientation says, so that what was up in the scene is up.

    Reference: CIPA DC-008 (Exif 2.32), tag 0x0112: 2 and 4 mirror, 3 turns by 180°, 5 to 8 exchange rows and columns.
    """

    def among(*values):
        return tf.reduce_any(tf.equal(orientation, tf.constant(values, orientation.dtype)))

    image = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(image, (1,)), lambda: image)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(image, (0,)), lambda: image)


def fit(images: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Images in another size, with antialiasing, and in colour or grey.

    Args:
        images: uint8 (…, h, w, c), an image or a batch; c, which has to be known, being 1 or 3.
        image_shape: (H, W, C), C being 1 or 3.

    Returns:
        uint8 (…, H, W, C); what fits already is left as it is, to the bit.
    """
    height, width, channels = image_shape
    given = images.shape[-1]

    def resized():
        scaled = tf.image.resize(images, (height, width), antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(scaled), 0.0, 255.0), tf.uint8)

    fits = tf.reduce_all(tf.equal(tf.shape(images)[-3:-1], (height, width)))
    images = tf.ensure_shape(tf.cond(fits, lambda: images, resized), (*images.shape[:-3], height, width, given))
    if given == 3 and channels == 1:
        # Whole numbers whose weights (ITU-R BT.601) sum to one, so that a grey file keeps its values exactly.
        weighted = tf.reduce_sum(tf.cast(images, tf.int32) * tf.constant([299, 587, 114]), axis=-1, keepdims=True)
        images = tf.cast((weighted + 500) // 1000, tf.uint8)
    return tf.repeat(images, 3, axis=-1) if given == 1 and channels == 3 else images

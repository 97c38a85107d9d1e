"""Ranges of quantisation that are learned with the weights: Learned Step Size Quantization (LSQ).

A range [l, h] of 2^b values has the step s = (h − l) / (2^b − 1). Rounding passes gradients straight through, so that
of the rounded value q of v with respect to s is (q − v) / s within the range; outside of it q is an end of the range.
"""

import functools

import tensorflow as tf

from kd_keras._compat import tfmot as tfmot_names

# No range is smaller.
_LEAST = 1e-8


def learn_ranges(wrapped) -> None:
    """Makes the ranges of a model of `quantize_apply` trainable: those of kernels or their filters, and of activations.

    Args:
        wrapped: the model; its kernels' ranges begin at their largest weights, those of activations stay as they are.

    Reference: Esser et al., arXiv:1902.08153, equations 1 to 3, and section 2.2 for the scale of the gradients; with
    two ends for activations, whose ranges have no middle, as Bhalgat et al., arXiv:2004.09576, have an offset.
    """
    for layer in wrapped.layers:
        tfmot_names.replace_quantizers(layer, _learned())


@functools.cache
def _learned() -> type:
    import tensorflow_model_optimization as tfmot

    class Learned(tfmot.quantization.keras.quantizers.Quantizer):
        """A quantiser whose range is learned; outside of training it rounds as the one that it replaces.

        Args:
            inner: a quantiser of tfmot's.
            weight: the kernel that is rounded, with the range −h to h for each filter; None for activations.
            variables: ``min_var`` and ``max_var``.
        """

        def __init__(self, inner, weight, variables):
            self.inner, self.is_weight = inner, weight is not None
            if weight is not None:
                high = variables["max_var"]
                high.assign(tf.reduce_max(tf.abs(weight), axis=_shared_axes(weight, high)))
            learned = ("max_var",) if self.is_weight else ("min_var", "max_var")
            for name in learned:
                tfmot_names.make_trainable(variables[name])

        def build(self, tensor_shape, name, layer):
            return self.inner.build(tensor_shape, name, layer)

        def get_config(self):
            return self.inner.get_config()

        def __call__(self, inputs, training, weights, **kwargs):
            if self.is_weight:
                high = tf.maximum(weights["max_var"], _LEAST)
                if training:
                    return rounded_weights(tf.convert_to_tensor(inputs), high)
                return self.inner(inputs, False, {"min_var": -high, "max_var": high}, **kwargs)
            if training:
                return rounded_activations(inputs, *map(tf.convert_to_tensor, (weights["min_var"], weights["max_var"])))
            return self.inner(inputs, False, weights, **kwargs)

    return Learned


def _shared_axes(weights, high) -> list[int]:
    """The axes of a kernel whose weights share a range: all but the filters', or all."""
    return list(range(len(weights.shape) - len(high.shape)))


@tf.custom_gradient
def rounded_weights(weights, high):
    """Weights (…, F) rounded to 255 values from −h to h, (F,) or a scalar, with LSQ's gradients."""
    levels, step = 127.0, high / 127.0
    places = weights / step
    inside = tf.abs(places) <= levels
    integers = tf.clip_by_value(tf.round(places), -levels, levels)
    count = tf.cast(tf.size(weights) / tf.size(high), tf.float32)

    def gradients(upstream):
        of_step = tf.where(inside, integers - places, integers)
        summed = tf.reduce_sum(upstream * of_step, axis=_shared_axes(weights, high))
        # d/dh = d/ds / 127; to move h, 127 times the step, by its own share takes 127² as much.
        return tf.where(inside, upstream, 0.0), summed * levels / tf.sqrt(count * levels)

    return integers * step, gradients


@tf.custom_gradient
def rounded_activations(values, low, high):
    """Activations (B, …) rounded to 256 values from l to h, scalars, zero among the values, with LSQ's gradients."""
    low, high = tf.minimum(low, 0.0), tf.maximum(high, _LEAST)
    levels = 255.0
    step = (high - low) / levels
    zero = tf.round(-low / step)
    below, above = values < -zero * step, values > (levels - zero) * step
    integers = tf.clip_by_value(tf.round(values / step) + zero, 0.0, levels)
    quantised = (integers - zero) * step
    count = tf.cast(tf.size(values) / tf.shape(values)[0], tf.float32)

    def gradients(upstream):
        inside = tf.logical_not(tf.logical_or(below, above))
        share = tf.where(inside, (quantised - values) / (high - low), 0.0)
        scale = levels**2 / tf.sqrt(count * levels)
        of_high = tf.reduce_sum(upstream * (share + tf.cast(above, tf.float32)))
        of_low = tf.reduce_sum(upstream * (tf.cast(below, tf.float32) - share))
        return tf.where(inside, upstream, 0.0), scale * of_low, scale * of_high

    return quantised, gradients

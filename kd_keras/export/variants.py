"""The kinds of TFLite file. This module does not import TensorFlow."""

#: Kinds of TFLite file that `kd_keras.export.tflite.convert` writes.
VARIANTS = ("float32", "float16", "dynamic", "int8", "int8_io", "int16x8")
#: Variants with integer activations, whose ranges are calibrated on training images.
CALIBRATED = ("int8", "int8_io", "int16x8")
#: Variants that a student can be exported as after quantisation-aware training.
QUANTISED = ("int8", "int8_io")

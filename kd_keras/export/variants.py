"""The kinds of TFLite file. Nothing here imports TensorFlow."""

#: Kinds of TFLite file that `kd_keras.export.tflite.convert` writes.
VARIANTS = ("float32", "float16", "dynamic", "int8", "int8_io", "int16x8")
#: Variants with integer activations: their ranges are calibrated on training images.
CALIBRATED = ("int8", "int8_io", "int16x8")
#: Variants that a student after quantisation-aware training can be exported as.
QUANTISED = ("int8", "int8_io")

"""Builders for TensorFlow Datasets, an importable one a file; `kd_keras.data.tfds` registers them."""

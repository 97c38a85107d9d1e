"""Builders for TensorFlow Datasets, one per file, importable; `kd_keras.data.tfds` registers them."""

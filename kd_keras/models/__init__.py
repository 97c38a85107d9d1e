"""Model families, one a file: ``name(key=value)`` is ``name.py``'s ``build(num_classes, input_shape, key=value)``."""

"""The sections of ``tools/benchmark.py``, one a file: ``run(options, done)`` measures; `show` tells what it gives."""

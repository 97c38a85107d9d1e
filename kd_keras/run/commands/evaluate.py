"""Measures trained models, .keras or .tflite, on a data set: kd-keras evaluate student.keras --data=…."""


def main(argv: list[str]) -> int:
    """Prints the table of the models.

    Args:
        argv: files, and flags of ``kd-keras run``: ``student.keras student.tflite --data='folder(path=photos)'``.

    Raises:
        InputError: a file is no such model, or does not fit the data.
    """
    from kd_keras.run import brought

    brought.evaluate(argv)
    return 0

"""Writes TFLite files of a trained model: kd-keras export student.keras --export=int8 --data=…."""


def main(argv: list[str]) -> int:
    """Writes the files beside the model, prints their table and where they are.

    Args:
        argv: a ``.keras`` file, and flags of ``kd-keras run``; the data calibrate and measure.

    Raises:
        InputError: the file is no model, does not fit the data, or can't be converted; a file is there already.
    """
    from kd_keras.run import brought

    print("\n".join(map(str, brought.export(argv))))
    return 0

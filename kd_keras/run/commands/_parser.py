"""Arguments of the commands that are not flags of a run."""

import argparse
from typing import NoReturn

from kd_keras.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are those of every command."""

    def error(self, message: str) -> NoReturn:
        """Raises the message as an InputError."""
        raise InputError(f"{message}; {self.prog} --help says more")

"""``python -m kd_keras`` is the console command `kd-keras`."""

import sys

from kd_keras.run.commands import main

sys.exit(main())

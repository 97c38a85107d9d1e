"""What a run ran on."""

import importlib.metadata
import os
import platform
import subprocess

_PACKAGES = (
    "kd_keras",
    "tensorflow",
    "keras",
    "numpy",
    "scikit-learn",
    "mlflow",
    "ai-edge-litert",
    "tensorflow-model-optimization",
    "tensorflow-datasets",
    "keras-hub",
)


def environment():
    """What a run ran on.

    Returns:
        dict of JSON types: ``python``, ``platform``, ``cpus``, ``packages`` (name to version, those installed),
        ``devices`` (TensorFlow's), ``git_revision`` and ``git_dirty`` of the current folder, None outside a repository
        or without git.
    """
    import tensorflow as tf

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = []
    for device in tf.config.list_physical_devices():
        name = tf.config.experimental.get_device_details(device).get("device_name")
        devices.append(f"{device.device_type}: {name}" if name else device.device_type)
    changes = _git("status", "--porcelain")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages,
        "devices": devices,
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
    }


def _git(*arguments):
    try:
        process = subprocess.run(("git", *arguments), capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()

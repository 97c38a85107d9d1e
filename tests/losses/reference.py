"""The formulas of the papers in float64 numpy, written without looking at the code; and fixed inputs."""

import numpy as np

BATCH, CLASSES = 6, 5


def logits(seed=0, classes=CLASSES, batch=BATCH, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, (batch, classes)).astype("float32")


def classes(batch=BATCH, num_classes=CLASSES):
    return (np.arange(batch) * 2 + 1) % num_classes


def shares(seed=2, batch=BATCH, num_classes=CLASSES):
    """Labels after mixup: rows that sum to 1."""
    return np.random.default_rng(seed).dirichlet(np.ones(num_classes), batch).astype("float32")


def features(seed, *shape, batch=BATCH):
    return np.random.default_rng(seed).normal(0, 1, (batch, *shape)).astype("float32")


def log_softmax(z):
    z = np.asarray(z, "float64")
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def standardized(z):
    z = np.asarray(z, "float64")
    return (z - z.mean(axis=-1, keepdims=True)) / (z.std(axis=-1, ddof=1, keepdims=True) + 1e-7)


def kl(z_t, z_s, temperature):
    """Σ_k p_t (log p_t − log p_s), (B,)."""
    log_p_t, log_p_s = log_softmax(np.float64(z_t) / temperature), log_softmax(np.float64(z_s) / temperature)
    return np.sum(np.exp(log_p_t) * (log_p_t - log_p_s), axis=-1)


def entropy(z, temperature=1.0):
    log_p = log_softmax(np.float64(z) / temperature)
    return -np.sum(np.exp(log_p) * log_p, axis=-1)

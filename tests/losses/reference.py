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


def multi_hot(seed=3, batch=BATCH, num_labels=CLASSES):
    """Independent labels: 0 and 1, some rows without any 1."""
    labels = (np.random.default_rng(seed).random((batch, num_labels)) < 0.4).astype("int32")
    labels[0] = 0
    return labels


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


def log_sigmoid(z):
    """log σ(z), without overflow."""
    z = np.asarray(z, "float64")
    return -(np.maximum(-z, 0) + np.log1p(np.exp(-np.abs(z))))


def binary_kl(z_t, z_s, temperature):
    """KL of the Bernoulli distributions of each label, (B, K)."""
    z_t, z_s = np.float64(z_t) / temperature, np.float64(z_s) / temperature
    p = np.exp(log_sigmoid(z_t))
    of_0 = np.exp(log_sigmoid(-z_t)) * (log_sigmoid(-z_t) - log_sigmoid(-z_s))
    return p * (log_sigmoid(z_t) - log_sigmoid(z_s)) + of_0

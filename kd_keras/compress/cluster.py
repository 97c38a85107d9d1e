"""Weight clustering: each kernel has a small number of distinct values, which compress well."""

import numpy as np
from absl import logging

from kd_keras._compat import tfmot as tfmot_names
from kd_keras.compress.base import Step, check_layers, layer_names, replace_layers, takes, weights_by_layer
from kd_keras.errors import InputError, is_count
from kd_keras.schedules import ScheduleLike


class Cluster(Step):
    """Clusters the kernels of convolutions and dense layers, and trains the centroids.

    After ``prune()`` the zeros stay zeros. Depthwise kernels, biases, kernels with fewer weights than clusters, and
    layers that are not trainable are left unchanged.

    A centroid moves by the mean of its weights' gradients. The paper takes their sum, which is hundreds of times as
    large: SGD would diverge at a learning rate that suits the other steps.

    Args:
        clusters: number of distinct values per kernel; 16 are 4 bits.
        skip: names of layers to leave unchanged, joined by commas.
        epochs: of its training; by default ``--compress_epochs``.
        learning_rate: a number or a schedule; by default ``--compress_learning_rate``.

    Raises:
        InputError: a value is out of range.

    Reference: Han et al., "Deep compression", arXiv:1510.00149, section 3 (k-means; here initialised by k-means++).
    """

    rank = 2
    leaves = frozenset({"clusters"})

    def __init__(
        self,
        clusters: int = 16,
        skip: str = "",
        epochs: int | None = None,
        learning_rate: ScheduleLike | None = None,
    ) -> None:
        self.trained(epochs, learning_rate)
        if not is_count(clusters, least=3):
            raise InputError(f"cluster's clusters={clusters!r} is not a whole number of at least 3: give 16, say")
        self.clusters, self.skip = clusters, layer_names("cluster's skip", skip)

    def wrap(self, model, kept, steps):
        import tensorflow_model_optimization as tfmot

        del steps
        check_layers(self.skip, [layer.name for layer in model.layers], "cluster's skip")
        clustering = tfmot.clustering.keras

        def wrap(layer):
            if not takes(layer, self.skip):
                return None
            kernel = layer.get_weights()[0]
            # A layer that pruning skipped has no zeros to keep.
            sparse = "zeros" in kept and not kernel.all()
            clusters = self._number_of_clusters(kernel, sparse)
            if clusters < 3:
                logging.warning("%s has too few weights for clusters and is left unchanged", layer.name)
                return None
            return clustering.cluster_weights(
                layer,
                number_of_clusters=clusters,
                cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
                preserve_sparsity=sparse,
                cluster_gradient_aggregation=tfmot_names.average_gradients(),
            )

        return replace_layers(model, wrap)

    def _number_of_clusters(self, kernel, sparse):
        """At most as many as k-means++ can draw, which takes each centroid from a different weight.

        In a sparse kernel one centroid is zero, and about half of the rest is drawn from the weights of each sign.
        """
        if not sparse:
            return self.clusters if kernel.size > self.clusters else 0
        fewest = min(np.sum(kernel > 0), np.sum(kernel < 0))
        return int(min(self.clusters, 2 * fewest - 1))

    def imitate(self, kernel):
        """Rounds to evenly spaced values, zeros to zeros; see `Step.imitate`."""
        step = 2 * np.abs(kernel).max() / (self.clusters - 1)
        return np.round(kernel / step) * step if step else kernel

    def strip(self, wrapped):
        import tensorflow_model_optimization as tfmot

        return weights_by_layer(tfmot.clustering.keras.strip_clustering(wrapped))

    def shortfall(self, wrapped, weights):
        kernels = {layer.layer.name: weights[layer.layer.name][0] for layer in wrapped.layers if _is_clustered(layer)}
        counts = {name: len(np.unique(kernel)) for name, kernel in kernels.items()}
        over = ", ".join(f"{name} {count}" for name, count in counts.items() if count > self.clusters)
        return f"cluster(clusters={self.clusters}) is not reached: distinct values are {over}" if over else None


def _is_clustered(layer) -> bool:
    return hasattr(layer, "number_of_clusters")

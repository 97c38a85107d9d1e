"""Weight clustering: each kernel has a handful of different values only, which compress well."""

import numpy as np
from absl import logging

from kd_keras._compat import tfmot as tfmot_names
from kd_keras.compress import base as _base
from kd_keras.errors import InputError, is_count


class Cluster(_base.Step):
    """Clusters the kernels of convolutions and dense layers, and trains the centroids on.

    Behind ``prune()`` the zeros stay zeros. Depthwise kernels and biases are left as they are. Kernels of fewer weights
    than clusters are, too.

    A centroid moves by the mean of its weights' gradients. The paper takes their sum, which is hundreds of times as
    large: at a rate that suits the other ways, SGD would diverge.

    Args:
        clusters: different values a kernel may have; 16 are 4 bits.
        skip: names of layers to leave as they are, joined by commas.

    Raises:
        InputError: a value is out of range.

    Source: Han et al., "Deep compression", arXiv:1510.00149, section 3 (k-means; here started by k-means++).
    """

    rank = 2
    leaves = frozenset({"clusters"})

    def __init__(self, clusters: int = 16, skip: str = "") -> None:
        if not is_count(clusters, least=3):
            raise InputError(f"cluster's clusters={clusters!r} is not a whole number of at least 3: give 16, say")
        self.clusters, self.skip = clusters, _base.names("cluster's skip", skip)

    def wrap(self, model, kept, steps):
        import tensorflow_model_optimization as tfmot
        import tf_keras

        del steps
        _base.check_layers(self.skip, [layer.name for layer in model.layers], "cluster's skip")
        clustering = tfmot.clustering.keras

        def wrap(layer):
            if type(layer) not in (tf_keras.layers.Conv2D, tf_keras.layers.Dense) or layer.name in self.skip:
                return None
            kernel = layer.get_weights()[0]
            # One that was left dense has no zeros to keep.
            sparse = "zeros" in kept and not kernel.all()
            clusters = self._clusters(kernel, sparse)
            if clusters < 3:
                logging.warning("%s has too few weights for clusters, and is left as it is", layer.name)
                return None
            return clustering.cluster_weights(
                layer,
                number_of_clusters=clusters,
                cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
                preserve_sparsity=sparse,
                cluster_gradient_aggregation=tfmot_names.average_gradients(),
            )

        return _base.rewrapped(model, wrap)

    def _clusters(self, kernel, sparse):
        """As many as are asked for and can be drawn: k-means++ takes each centroid from another weight.

        Of a sparse kernel one is zero, and of each sign it draws about a half.
        """
        if not sparse:
            return self.clusters if kernel.size > self.clusters else 0
        fewest = min(np.sum(kernel > 0), np.sum(kernel < 0))
        return int(min(self.clusters, 2 * fewest - 1))

    def imitate(self, kernel):
        """See `Step`; what is zero stays zero."""
        step = 2 * np.abs(kernel).max() / (self.clusters - 1)
        return np.round(kernel / step) * step if step else kernel

    def strip(self, wrapped):
        import tensorflow_model_optimization as tfmot

        return _base.weights(tfmot.clustering.keras.strip_clustering(wrapped))

"""kd_keras."""

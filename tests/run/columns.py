"""The columns of a table, as a study that reads results.json relies on them."""

COLUMNS = (
    *("stage", "role", "architecture", "labelled_images", "unlabelled_images", "updates"),
    *("train_accuracy", "val_accuracy", "test_accuracy"),
    *("precision", "recall", "f1", "ece", "teacher_agreement", "float_agreement"),
    *("accuracy_change", "accuracy_change_low", "accuracy_change_high", "worst_class_drop", "marked"),
    *("parameters", "macs", "bytes", "zip_bytes", "memory_bytes", "latency_ms_median", "latency_ms_iqr"),
    *("latency_all_threads_ms_median", "latency_all_threads_ms_iqr"),
)

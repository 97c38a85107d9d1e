"""TensorFlow Datasets' builder of the chest X-rays; what it reads is listed by `kd_keras.data.chest_xray`."""

import tensorflow_datasets as tfds

from kd_keras.data import chest_xray

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class ChestXray(tfds.core.GeneratorBasedBuilder):
    """Chest X-ray pneumonia with Kaggle's splits, the validation split of 16 images included."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{chest_xray.ADVICE}; name it as manual_dir (it may hold chest_xray or be it)."

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Chest radiographs of children, normal or with pneumonia; Kaggle's splits train, val (here "
            "validation, 16 images) and test.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=chest_xray.CLASS_NAMES),
                    "patient": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia",
        )

    def _split_generators(self, dl_manager):
        listed = chest_xray.read(dl_manager.manual_dir)
        return {_SPLITS[split]: self._generate_examples(images) for split, images in listed.items()}

    def _generate_examples(self, images):
        for number, (path, label) in enumerate(images):
            yield number, {"image": path, "label": label, "patient": chest_xray.patient(path)}

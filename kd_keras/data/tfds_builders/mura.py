"""TensorFlow Datasets' builder of MURA; what it reads is listed by `kd_keras.data.mura`."""

import tensorflow_datasets as tfds

from kd_keras.data import mura


class Mura(tfds.core.GeneratorBasedBuilder):
    """MURA v1.1 with MURA's own splits; no patient is in both."""

    VERSION = tfds.core.Version("1.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{mura.ADVICE}; name it as manual_dir (it may hold MURA-v1.1 or be it)."

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Radiographs of seven parts of the arm, each study normal or abnormal; MURA's splits train "
            "and valid (here validation).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "body_part": tfds.features.ClassLabel(names=mura.BODY_PARTS),
                    "abnormal": tfds.features.ClassLabel(names=mura.FINDINGS),
                    "patient": tfds.features.Text(),
                    "study": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "body_part"),
            homepage="https://stanfordmlgroup.github.io/competitions/mura/",
        )

    def _split_generators(self, dl_manager):
        listed = mura.read(dl_manager.manual_dir)
        return {
            "train": self._generate_examples(listed["train"]),
            "validation": self._generate_examples(listed["valid"]),
        }

    def _generate_examples(self, radiographs):
        for number, radiograph in enumerate(radiographs):
            yield (
                number,
                {
                    "image": radiograph.path,
                    "body_part": radiograph.body_part,
                    "abnormal": radiograph.abnormal,
                    "patient": radiograph.patient,
                    "study": radiograph.study,
                },
            )

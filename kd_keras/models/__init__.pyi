# Written by tools/stubs.py.
from kd_keras.models.alexnet import AlexNet as AlexNet
from kd_keras.models.cnn import CNN as CNN
from kd_keras.models.densenet import DenseNet as DenseNet
from kd_keras.models.hub import Hub as Hub
from kd_keras.models.mobilenet import MobileNet as MobileNet
from kd_keras.models.resnet import ResNet as ResNet
from kd_keras.models.saved import Saved as Saved
from kd_keras.models.shufflenet import ShuffleNet as ShuffleNet
from kd_keras.models.vgg import VGG as VGG
from kd_keras.models.vit import ViT as ViT
from kd_keras.models.wide_resnet import WideResNet as WideResNet

"""How many trainable weights networks have, counted without making these: they take most of the time of building."""

import concurrent.futures
import math

import keras

from kd_keras import spec

#: (spec, number of classes, side of the image of 3 channels, trainable weights), published but where it is said.
PUBLISHED = [
    # torchvision's
    ("alexnet()", 1000, 224, 61_100_840),
    ("vgg(depth=11, batch_norm=False)", 1000, 224, 132_863_336),
    ("vgg(depth=11)", 1000, 224, 132_868_840),
    ("vgg(depth=13, batch_norm=False)", 1000, 224, 133_047_848),
    ("vgg(depth=13)", 1000, 224, 133_053_736),
    ("vgg(depth=16, batch_norm=False)", 1000, 224, 138_357_544),
    ("vgg(depth=16)", 1000, 224, 138_365_992),
    ("vgg(depth=19, batch_norm=False)", 1000, 224, 143_667_240),
    ("vgg(depth=19)", 1000, 224, 143_678_248),
    ("resnet(depth=18)", 1000, 224, 11_689_512),
    ("resnet(depth=34)", 1000, 224, 21_797_672),
    ("resnet(depth=50)", 1000, 224, 25_557_032),
    ("resnet(depth=101)", 1000, 224, 44_549_160),
    ("resnet(depth=152)", 1000, 224, 60_192_808),
    ("densenet(depth=121)", 1000, 224, 7_978_856),
    ("densenet(depth=169)", 1000, 224, 14_149_480),
    ("densenet(depth=201)", 1000, 224, 20_013_928),
    ("shufflenet(width=0.5)", 1000, 224, 1_366_792),
    ("shufflenet()", 1000, 224, 2_278_604),
    ("shufflenet(width=1.5)", 1000, 224, 3_503_624),
    ("shufflenet(width=2)", 1000, 224, 7_393_996),
    # squeeze-and-excitation, 28.1 M and 49.3 M (arXiv:1709.01507, table 2)
    ("resnet(depth=50, se_ratio=16)", 1000, 224, 28_088_024),
    ("resnet(depth=101, se_ratio=16)", 1000, 224, 49_326_872),
    # keras.applications'; torchvision's too, where it has them (width 1)
    ("mobilenet(width=0.35)", 1000, 224, 1_677_128),
    ("mobilenet(width=0.5)", 1000, 224, 1_968_680),
    ("mobilenet(width=0.75)", 1000, 224, 2_636_424),
    ("mobilenet()", 1000, 224, 3_504_872),
    ("mobilenet(width=1.4)", 1000, 224, 6_108_776),
    ("mobilenet(version='v3_small', width=0.75)", 1000, 224, 2_041_872),
    ("mobilenet(version='v3_small')", 1000, 224, 2_542_856),
    ("mobilenet(version='v3_large', width=0.75)", 1000, 224, 3_993_528),
    ("mobilenet(version='v3_large')", 1000, 224, 5_483_032),
    # arXiv:1707.01083
    ("shufflenet(version='v1')", 1000, 224, 1_865_728),
    ("shufflenet(version='v1', groups=1)", 1000, 224, 1_531_936),
    ("shufflenet(version='v1', groups=8)", 1000, 224, 2_434_768),
    ("shufflenet(version='v1', width=0.5)", 1000, 224, 718_324),
    ("shufflenet(version='v1', width=0.25)", 1000, 224, 305_902),
    # DeiT's Ti, S, B (arXiv:2012.12877), less 2 · width: class token and patch bias are part of the position embedding,
    # to which they are only ever added.
    ("vit(patch=16, depth=12, heads=3, width=192)", 1000, 224, 5_717_416 - 2 * 192),
    ("vit(patch=16, depth=12, heads=6, width=384)", 1000, 224, 22_050_664 - 2 * 384),
    ("vit(patch=16, depth=12, heads=12, width=768)", 1000, 224, 86_567_656 - 2 * 768),
    # CIFAR-10: study S2 prints 11.18 M and 23.5 M; 0.8 M for DenseNet-BC (arXiv:1608.06993, table 2)
    ("resnet(depth=18, stem='cifar')", 10, 32, 11_173_962),
    ("resnet(depth=18, stem='imagenet')", 10, 32, 11_181_642),
    ("resnet(depth=50, stem='imagenet')", 10, 32, 23_528_522),
    ("densenet(depth=100)", 10, 32, 769_162),
    # CIFAR-100, the distillation benchmarks' networks
    ("resnet(depth=20)", 100, 32, 278_324),
    ("resnet(depth=32)", 100, 32, 472_756),
    ("resnet(depth=56)", 100, 32, 861_620),
    ("resnet(depth=110)", 100, 32, 1_736_564),
    ("resnet(depth='8x4')", 100, 32, 1_233_540),
    ("resnet(depth='32x4')", 100, 32, 7_433_860),
    ("vgg(depth=8)", 100, 32, 3_965_028),
    ("vgg(depth=13)", 100, 32, 9_462_180),
    ("wide_resnet(depth=16, width=2)", 100, 32, 703_284),
    ("wide_resnet(depth=40, width=1)", 100, 32, 569_780),
    ("wide_resnet(depth=40, width=2)", 100, 32, 2_255_156),
    ("shufflenet(version='v1')", 100, 32, 949_258),
    ("shufflenet()", 100, 32, 1_355_528),
    # counted once and not published: with the CIFAR stem
    ("alexnet()", 10, 32, 23_272_266),
    ("densenet(depth=121)", 10, 32, 6_956_298),
]


def symbolic(build, *args, **keys) -> keras.Model:
    """``build(*args, **keys)``, a model whose weights have shapes and no values; size costs nothing."""

    def built():
        with keras.StatelessScope(initialize_variables=False):
            return build(*args, **keys)

    # Keras keeps, for each thread, what it has yet to draw, and draws it at the next occasion: in a later test, if
    # this were its thread.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(built).result()


def trainable(text: str, num_classes: int, side: int) -> int:
    """Trainable weights of what a spec builds for square images of 3 channels."""
    one = spec.parse(text)

    def build():
        return spec.build("kd_keras.models", one, num_classes=num_classes, input_shape=(side, side, 3))

    return sum(math.prod(weight.shape) for weight in symbolic(build).trainable_weights)

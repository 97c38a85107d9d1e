"""The same distillation step as a plain PyTorch loop; run by ``step.py``, never by hand, and without TensorFlow.

``python torch_worker.py FOLDER`` reads the networks and the batch from the folder, says ``{}`` when it is ready (or
``{"missing": why}``), and then answers each line of its input: ``kd``, ``features``, either with ``channels_last``
behind it, runs one step and tells its ``seconds``; ``logits`` tells the teacher's first logits.
"""

import json
import pathlib
import sys
import time

import numpy as np

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    print(json.dumps({"missing": "PyTorch is not installed"}))
    sys.exit()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


#: Of a Keras layer, what the loop takes for granted.
_ONLY = {"activation": "linear", "groups": 1, "dilation_rate": [1, 1]}


class Unknown(Exception):
    """A layer that has no counterpart here."""


class Net(nn.Module):
    """A Keras functional model, layer by layer.

    Strided convolutions pad on both sides, as PyTorch's networks do, where TensorFlow pads the end alone.

    Args:
        layers: from ``step.describe``.
        weights: arrays by ``layer/number``.
    """

    def __init__(self, layers, weights):
        super().__init__()
        self.plan = [(layer["name"], layer["kind"], layer["inputs"], layer["config"]) for layer in layers]
        self.layers = nn.ModuleDict()
        for name, kind, _, config in self.plan:
            arrays = [torch.from_numpy(weights[key]) for key in sorted(weights) if key.rpartition("/")[0] == name]
            if any(config.get(key, value) != value for key, value in _ONLY.items()):
                raise Unknown(f"{name} has settings that have no counterpart in the PyTorch loop")
            if kind == "Conv2D":
                self.layers[name] = _convolution(config, arrays)
            elif kind == "BatchNormalization":
                self.layers[name] = _batch_norm(config, arrays)
            elif kind == "Dense":
                self.layers[name] = nn.Linear(*arrays[0].shape)
                _assign(self.layers[name].weight, arrays[0].T)
                _assign(self.layers[name].bias, arrays[1])
            elif kind not in ("InputLayer", "Rescaling", "ReLU", "Add", "GlobalAveragePooling2D"):
                raise Unknown(f"layers of the kind {kind} have no counterpart in the PyTorch loop")

    def forward(self, images, taps):
        """The named taps and ``logits`` for images (B, C, H, W)."""
        values = {}
        for name, kind, inputs, config in self.plan:
            x = values[inputs[0]] if inputs else images
            if kind == "Rescaling":
                x = x * config["scale"] + config["offset"]
            elif kind == "ReLU":
                x = functional.relu(x)
            elif kind == "Add":
                x = x + values[inputs[1]]
            elif kind == "GlobalAveragePooling2D":
                x = x.mean((2, 3))
            elif kind != "InputLayer":
                x = self.layers[name](x)
            values[name] = x
        return {"logits": x, **{name: values[name] for name in taps}}


def _assign(parameter, value):
    with torch.no_grad():
        parameter.copy_(value)


def _convolution(config, arrays):
    kernel = arrays[0].permute(3, 2, 0, 1)
    size = tuple(config["kernel_size"])
    padding = tuple((side - 1) // 2 for side in size) if config["padding"] == "same" else 0
    made = nn.Conv2d(
        kernel.shape[1], kernel.shape[0], size, tuple(config["strides"]), padding, bias=bool(config["use_bias"])
    )
    _assign(made.weight, kernel)
    if config["use_bias"]:
        _assign(made.bias, arrays[1])
    return made


def _batch_norm(config, arrays):
    # The two count momentum from opposite ends.
    made = nn.BatchNorm2d(len(arrays[0]), eps=config["epsilon"], momentum=1 - config["momentum"])
    for target, value in zip((made.weight, made.bias, made.running_mean, made.running_var), arrays, strict=True):
        _assign(target, value)
    return made


class Loop:
    """Teacher, student, optimizer and batch in one memory layout; `step` trains on the batch once."""

    def __init__(self, settings, arrays, features, channels_last):
        self.settings, self.taps = settings, settings["stages"] if features else []
        layout = torch.channels_last if channels_last else torch.contiguous_format
        nets = {}
        for role, layers in settings["nets"].items():
            weights = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{role}/")}
            nets[role] = Net(layers, weights).to(DEVICE, memory_format=layout)
        self.teacher, self.student = nets["teacher"].eval(), nets["student"].train()
        images = torch.from_numpy(arrays["images"].transpose(0, 3, 1, 2))
        self.images = images.to(DEVICE).contiguous(memory_format=layout)
        self.labels = torch.from_numpy(arrays["labels"]).long().to(DEVICE)
        with torch.no_grad():
            seen = [net.eval()(self.images[:1], self.taps) for net in (self.student, self.teacher)]
        self.student.train()
        self.projectors = nn.ModuleDict(
            {name: nn.Conv2d(seen[0][name].shape[1], seen[1][name].shape[1], 1) for name in self.taps}
        ).to(DEVICE, memory_format=layout)
        parameters = [*self.student.parameters(), *self.projectors.parameters()]
        self.optimizer = torch.optim.SGD(parameters, settings["rate"], settings["momentum"])

    def step(self):
        heat, weight = self.settings["temperature"], self.settings["weight"]
        with torch.no_grad():
            teacher = self.teacher(self.images, self.taps)
        student = self.student(self.images, self.taps)
        soft = functional.kl_div(
            functional.log_softmax(student["logits"] / heat, 1),
            functional.softmax(teacher["logits"] / heat, 1),
            reduction="batchmean",
        )
        loss = (1 - weight) * functional.cross_entropy(student["logits"], self.labels) + weight * heat**2 * soft
        for name in self.taps:
            loss = loss + functional.mse_loss(self.projectors[name](student[name]), teacher[name])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        accuracy = (student["logits"].argmax(1) == self.labels).float().mean()
        # Reading them waits for the device.
        return loss.item(), accuracy.item()


def main(folder):
    settings = json.loads((folder / "settings.json").read_text())
    with np.load(folder / "arrays.npz") as file:
        arrays = dict(file)
    loops = {}
    try:
        Loop(settings, arrays, False, False)
    except Unknown as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "logits":
            loop = Loop(settings, arrays, False, False)
            with torch.no_grad():
                logits = loop.teacher(loop.images, [])["logits"]
            print(json.dumps({"logits": logits.tolist()}), flush=True)
            continue
        if command not in loops:
            loops[command] = Loop(settings, arrays, "features" in command, "channels_last" in command)
        start = time.perf_counter()
        loops[command].step()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

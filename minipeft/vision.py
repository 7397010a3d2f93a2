"""Beyond language: a small ResNet, handwritten digits, and what the methods become at the doors that a ResNet has.

input    trained pixels around the image                      VisualPrompt
memory   no such door, since a ResNet attends to nothing      (a prefix has no place)
weights  modules beside or in place of the layers             ConvLoRA, ResidualAdapter, NormAndBias, Full
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minipeft.methods.base import check_count, seeded_by

Split = tuple[Float[Tensor, "N 1 8 8"], Int[Tensor, " N"]]
FIRST, SECOND = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)  # what a base learns, and what it is adapted to
ROWS = {"train": (0, 900), "dev": (900, 1250), "test": (1250, 1797)}
"""Of the file, in its order, which seems to be by writer: then few wrote for two of these splits."""


def digits(classes: Sequence[int]) -> dict[str, Split]:
    """Handwritten digits (Alpaydin & Kaynak 1998), pixels from 0 to 1. Raises ImportError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the digits come with scikit-learn; install it: pip install scikit-learn") from None
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16  # [N, 1, 8, 8]
    splits = {}
    for name, (start, end) in ROWS.items():
        rows = [row for row in range(start, end) if found.target[row] in classes]
        splits[name] = images[rows], torch.tensor([list(classes).index(found.target[row]) for row in rows])
    return splits


class Block(nn.Module):
    """Two convolutions and a way past them. With more channels the image is halved. Source: He et al. 2016, §3.2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.past = nn.Sequential()
        if stride > 1:
            self.past.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x: Float[Tensor, "B I h w"]) -> Float[Tensor, "B O h2 w2"]:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.past(x) + self.norm2(self.conv2(y)))


class ResNet(nn.Module):
    """A convolution, a block of each width, the mean over all places, a linear head; for images of any size."""

    def __init__(self, classes: int = 5, widths: Sequence[int] = (16, 32, 64), pad: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.pad = pad
        with seeded_by(torch.Generator().manual_seed(seed)):
            self.conv, self.norm = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
            self.blocks = nn.Sequential(*(Block(i, o) for i, o in zip((widths[0], *widths), widths, strict=False)))
            self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Float[Tensor, "B 1 h w"], border: Tensor | None = None) -> Float[Tensor, "B C"]:
        """Logits. `pad` blank pixels go around each image; `border` [1, 1, H, W] is added to them: the input door."""
        x = F.pad(images, (self.pad,) * 4)
        x = F.relu(self.norm(self.conv(x if border is None else x + border)))
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class Probe:
    """A new head and nothing else. Every other method is a probe and something more."""

    def change(self, net: ResNet) -> nn.Module | None:
        """Replace modules of `net`, whose tensors lie in the base's memory; or return what makes a border."""


class VisualPrompt(Probe):
    """The blank pixels around the image, trained. Sources: Elsayed et al. 2019, §3; Bahng et al. 2022, §3."""

    def change(self, net: ResNet) -> nn.Module:
        return Border(net.pad)


@dataclass(frozen=True)
class ConvLoRA(Probe):
    """A kernel of low rank beside each 3 x 3 one. Source: Hu et al. 2021, §4.1."""

    rank: int = 1
    alpha: float = 1.0

    def change(self, net: ResNet) -> None:
        check_count("rank", self.rank)
        _replace(net, lambda conv: LoRAConv(conv, self.rank, self.alpha))


class ResidualAdapter(Probe):
    """A 1 x 1 convolution beside each 3 x 3 one. Source: Rebuffi et al. 2018, in parallel."""

    def change(self, net: ResNet) -> None:
        _replace(net, AdaptedConv)


class NormAndBias(Probe):
    """BatchNorm's scales and biases, but not its statistics. Compare BitFit: Zaken et al. 2022."""

    def change(self, net: ResNet) -> None:
        for norm in [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]:
            norm.weight, norm.bias = (nn.Parameter(p.detach().clone()) for p in (norm.weight, norm.bias))


class Full(Probe):
    """A copy of everything; the only method under which BatchNorm goes on counting, in the copy."""

    def change(self, net: ResNet) -> None:
        net._modules.update(copy.deepcopy(net).requires_grad_(True)._modules)


class Border(nn.Module):
    """Numbers around a hole of 8 x 8, row by row."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.around = F.pad(torch.zeros(1, 1, 8, 8, dtype=torch.bool), (pad,) * 4, value=True)
        self.values = nn.Parameter(torch.zeros(int(self.around.sum())))

    def forward(self) -> Float[Tensor, "1 1 H W"]:
        return torch.zeros(self.around.shape).masked_scatter(self.around, self.values)


class LoRAConv(nn.Module):
    """(W + α/r · B A) * x: A is a convolution to r channels, and B, which starts at zero, one of 1 x 1 from there."""

    def __init__(self, conv: nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.conv, self.scale = conv, alpha / rank
        self.A = nn.Parameter(torch.empty(rank, *conv.weight.shape[1:]))  # [r, I, 3, 3]
        self.B = nn.Parameter(torch.zeros(conv.out_channels, rank, 1, 1))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "B I h w"]) -> Float[Tensor, "B O h2 w2"]:
        low = F.conv2d(x, self.A, stride=self.conv.stride, padding=1)  # [B, r, h2, w2]
        return self.conv(x) + self.scale * F.conv2d(low, self.B)

    def kernel(self) -> Float[Tensor, "O I 3 3"]:
        return self.conv.weight + self.scale * (self.B.flatten(1) @ self.A.flatten(1)).view_as(self.conv.weight)


class AdaptedConv(nn.Module):
    """W * x + A x, where A, which starts at zero, mixes the channels of each pixel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.A = nn.Parameter(torch.zeros(*conv.weight.shape[:2], 1, 1))

    def forward(self, x: Float[Tensor, "B I h w"]) -> Float[Tensor, "B O h2 w2"]:
        return self.conv(x) + F.conv2d(x, self.A, stride=self.conv.stride)

    def kernel(self) -> Float[Tensor, "O I 3 3"]:
        return self.conv.weight + F.pad(self.A, (1, 1, 1, 1))  # in the middle of 3 x 3


class Tuned(nn.Module):
    """A frozen ResNet with a method. `classes`: how many its new head has, or which old output stands for each."""

    def __init__(self, base: ResNet, method: Probe, classes: int | Sequence[int] = 5, seed: int = 0) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, so that it is no submodule
        self.counts_on, self.labels = isinstance(method, Full), None if isinstance(classes, int) else list(classes)
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in base.parameters()}  # the same memory
        self.net = copy.deepcopy(base, {**shared, **{id(buffer): buffer for buffer in base.buffers()}})
        with seeded_by(torch.Generator().manual_seed(seed)):
            self.border = method.change(self.net)
            if isinstance(classes, int):
                self.net.head = nn.Linear(self.net.head.in_features, classes)
        self.eval()

    def forward(self, images: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B C"]:
        logits = self.net(images, None if self.border is None else self.border())
        return logits if self.labels is None else logits[:, self.labels]

    def train(self, mode: bool = True) -> "Tuned":
        """A base stays in evaluation mode: in the other its BatchNorm would count on, however frozen its weights."""
        super().train(mode)
        self.net.train(mode and self.counts_on)
        return self

    def num_trainable(self) -> int:
        """How many numbers training changes."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def detach(self) -> ResNet:
        """The base back, bit-identical, with the statistics of its BatchNorm."""
        return self._base[0]

    def merge(self) -> ResNet:
        """A plain ResNet that does the same. Raises ValueError if there is a border or a choice of labels."""
        if self.border is not None or self.labels is not None:
            raise ValueError("a border and a choice of labels are no weights, so they cannot be merged into any.")
        net = copy.deepcopy(self.net)
        for parent, name, layer in _layers(net, LoRAConv | AdaptedConv):
            layer.conv.weight = nn.Parameter(layer.kernel().detach())
            setattr(parent, name, layer.conv)
        return net


def fit(net: nn.Module, split: Split, steps: int, lr: float, batch_size: int = 32, seed: int = 0) -> None:
    """Train what is trainable: AdamW without weight decay, at a rate that falls to zero in a line."""
    images, labels = split
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer, generator = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0), torch.Generator().manual_seed(seed)
    net.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        rows = torch.randint(len(labels), (batch_size,), generator=generator)
        F.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()  # last, so that no gradient stays behind
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, split: Split) -> float:
    """The share of images that get their label."""
    return float((net(split[0]).argmax(dim=1) == split[1]).float().mean())


@torch.no_grad()
def matched(base: ResNet, split: Split) -> list[int]:
    """For each class an output of `base` that most of its images get, none twice. Source: Chen et al. 2023."""
    from scipy.optimize import linear_sum_assignment  # comes with scikit-learn

    counts = F.one_hot(split[1]).T @ F.one_hot(base(split[0]).argmax(dim=1), base.head.out_features)  # [new, old]
    return linear_sum_assignment(counts, maximize=True)[1].tolist()


def _layers(net: nn.Module, kind: Any) -> list[tuple[nn.Module, str, Any]]:
    return [(p, name, c) for p in net.modules() for name, c in p.named_children() if isinstance(c, kind)]


def _replace(net: ResNet, make: Callable[[nn.Conv2d], nn.Module]) -> None:
    for parent, name, conv in _layers(net, nn.Conv2d):
        setattr(parent, name, make(conv) if conv.kernel_size == (3, 3) else conv)

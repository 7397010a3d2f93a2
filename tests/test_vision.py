"""A small ResNet and its methods: frozen is frozen, kernels fold, numbers are counted, statistics do not drift."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.vision import (
    FIRST,
    SECOND,
    AdaptedConv,
    Border,
    ConvLoRA,
    Full,
    LoRAConv,
    NormAndBias,
    Probe,
    ResidualAdapter,
    ResNet,
    Split,
    Tuned,
    VisualPrompt,
    accuracy,
    digits,
    fit,
    matched,
)

WIDTHS = (3, 4, 6)
SHAPES = [(1, 3), (3, 3), (3, 3), (3, 4), (4, 4), (4, 6), (6, 6)]
"""(in, out) of the 3 x 3 convolutions of a ResNet with these widths."""
HEAD = 6 * 5 + 5
METHODS = (Probe(), VisualPrompt(), ConvLoRA(rank=2, alpha=3.0), ResidualAdapter(), NormAndBias(), Full())
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


def base() -> ResNet:
    """A ResNet whose BatchNorm has seen something, so that none of its numbers is a round one."""
    net = ResNet(widths=WIDTHS)
    fit(net, noise(1), steps=3, lr=0.01)
    return net


def noise(seed: int, count: int = 12) -> Split:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 5


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- frozen -----------------------------------------------------------------------------------------------------------


@each_method
def test_the_base_stays_bit_identical_statistics_included(method: Probe) -> None:
    net = base()
    before, logits = state(net), net(noise(2)[0])
    tuned = Tuned(net, method)
    trained = state(tuned)
    fit(tuned, noise(3), steps=4, lr=0.05)
    assert not same(trained, state(tuned))
    assert any("running_mean" in name for name in before)
    assert tuned.detach() is net
    assert same(before, state(net))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(net(noise(2)[0]), logits)


@each_method
def test_nothing_but_what_is_counted_gets_a_gradient_or_moves(method: Probe) -> None:
    tuned = Tuned(base(), method)
    before = state(tuned)
    fit(tuned, noise(3), steps=2, lr=0.05)
    images, labels = noise(4)
    F.cross_entropy(tuned(images), labels).backward()
    for name, parameter in tuned.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        assert torch.equal(before[name], parameter) == (not parameter.requires_grad), name


@each_method
def test_only_a_copy_goes_on_counting(method: Probe) -> None:
    tuned = Tuned(base(), method).train()
    modes = {module.training for module in tuned.modules() if isinstance(module, nn.BatchNorm2d)}
    assert modes == {isinstance(method, Full)}
    assert not any(module.training for module in tuned.eval().modules())


def test_the_same_seed_gives_the_same_numbers() -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        tuned = Tuned(base(), ConvLoRA(), seed=seed)
        fit(tuned, noise(3), steps=3, lr=0.05, seed=seed)
        return state(tuned)

    assert same(trained(0), trained(0))
    assert not same(trained(0), trained(1))


# -- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        (Probe(), 0),
        (VisualPrompt(), 16 * 16 - 8 * 8),
        (ConvLoRA(rank=2), 2 * sum(9 * i + o for i, o in SHAPES)),
        (ResidualAdapter(), sum(i * o for i, o in SHAPES)),
        (NormAndBias(), 2 * (sum(o for _, o in SHAPES) + 4 + 6)),  # and the two on the ways past
    ],
    ids=lambda value: type(value).__name__,
)
def test_counts_follow_their_formulas(method: Probe, extra: int) -> None:
    assert Tuned(base(), method).num_trainable() == HEAD + extra
    assert Tuned(base(), method, classes=3).num_trainable() == 6 * 3 + 3 + extra
    assert Tuned(base(), method, classes=[4, 0, 1]).num_trainable() == extra


def test_full_finetuning_counts_everything() -> None:
    kernels = sum(9 * i * o for i, o in SHAPES) + 3 * 4 + 4 * 6
    norms = 2 * (sum(o for _, o in SHAPES) + 4 + 6)
    assert Tuned(base(), Full()).num_trainable() == kernels + norms + HEAD


@pytest.mark.parametrize("stride", [1, 2])
def test_lora_is_one_convolution_with_the_merged_kernel(stride: int) -> None:
    """Against a kernel put together number by number."""
    torch.manual_seed(0)
    conv, r, alpha = nn.Conv2d(3, 4, 3, stride, 1, bias=False), 2, 5.0
    lora = LoRAConv(conv, r, alpha)
    nn.init.normal_(lora.B)
    merged = conv.weight.detach().clone()
    for o, i, y, x in torch.cartesian_prod(*(torch.arange(size) for size in merged.shape)).tolist():
        merged[o, i, y, x] += alpha / r * sum((lora.B[o, k, 0, 0] * lora.A[k, i, y, x]).item() for k in range(r))
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(lora.kernel(), merged, rtol=0, atol=1e-5)
    torch.testing.assert_close(lora(images), F.conv2d(images, merged, stride=stride, padding=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_adapter_is_one_convolution_with_a_changed_middle(stride: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride, 1, bias=False)
    adapted = AdaptedConv(conv)
    nn.init.normal_(adapted.A)
    folded = conv.weight.detach().clone()
    for o in range(4):
        for i in range(3):
            folded[o, i, 1, 1] += adapted.A[o, i, 0, 0].item()
    images = torch.randn(2, 3, 8, 8)
    two = conv(images) + torch.einsum("oi,bihw->bohw", adapted.A[:, :, 0, 0], images)[:, :, ::stride, ::stride]
    torch.testing.assert_close(adapted(images), two, rtol=0, atol=1e-4)
    torch.testing.assert_close(adapted(images), F.conv2d(images, folded, stride=stride, padding=1), rtol=0, atol=1e-4)
    torch.testing.assert_close(adapted.kernel(), folded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [ConvLoRA(rank=2, alpha=3.0), ResidualAdapter(), NormAndBias(), Full(), Probe()])
def test_merging_changes_no_logit(method: Probe) -> None:
    tuned = Tuned(base(), method)
    fit(tuned, noise(3), steps=4, lr=0.05)
    merged, images = tuned.merge(), noise(2)[0]
    assert {name: tensor.shape for name, tensor in state(merged).items()} == {
        name: tensor.shape for name, tensor in state(base()).items()
    }
    torch.testing.assert_close(merged(images), tuned(images), rtol=0, atol=1e-5)
    assert (merged(images) - base()(images)).abs().max() > 0.01


@pytest.mark.parametrize(("method", "classes"), [(VisualPrompt(), 5), (Probe(), [0, 1])])
def test_what_is_no_weight_cannot_be_merged(method: Probe, classes: int | list[int]) -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        Tuned(base(), method, classes).merge()


@pytest.mark.parametrize("method", [method for method in METHODS if not isinstance(method, Full)])
def test_with_the_old_head_a_new_method_changes_nothing(method: Probe) -> None:
    net, images = base(), noise(2)[0]
    torch.testing.assert_close(Tuned(net, method, classes=[2, 0])(images), net(images)[:, [2, 0]], rtol=0, atol=1e-6)


def test_a_border_leaves_the_image_alone() -> None:
    border = Border(pad=2)
    nn.init.uniform_(border.values, 1, 2)
    canvas = border()[0, 0]
    assert canvas.shape == (12, 12)
    assert (canvas == 0).nonzero().tolist() == [[y, x] for y in range(2, 10) for x in range(2, 10)]
    assert torch.equal(canvas[0], border.values[:12])  # along the rows
    assert torch.equal(canvas[3, :2], border.values[28:30])
    canvas.sum().backward()
    assert torch.equal(border.values.grad, torch.ones(12 * 12 - 8 * 8))


def test_the_input_door_adds_to_the_black_pixels() -> None:
    net, images = base(), noise(2)[0]
    canvas = torch.rand(1, 1, 16, 16)
    canvas[:, :, 4:12, 4:12] = 0
    by_hand = canvas.repeat(len(images), 1, 1, 1)
    by_hand[:, :, 4:12, 4:12] = images
    plain = copy.deepcopy(net)
    plain.pad = 0
    torch.testing.assert_close(net(images, border=canvas), plain(by_hand), rtol=0, atol=1e-6)


def test_a_rank_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="rank is 0"):
        Tuned(base(), ConvLoRA(rank=0))


# -- the digits -------------------------------------------------------------------------------------------------------


def test_importing_needs_no_scikit_learn() -> None:
    program = "import json, sys, minipeft, minipeft.vision; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in json.loads(done.stdout)} & {"sklearn", "scipy"}


def test_a_missing_scikit_learn_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits(FIRST)


def test_the_splits_share_no_image_and_count_from_zero() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    first, second = digits(FIRST), digits(SECOND)
    assert {name: len(split[1]) for name, split in first.items()} == {"train": 453, "dev": 175, "test": 273}
    assert {name: len(split[1]) for name, split in second.items()} == {"train": 447, "dev": 175, "test": 274}
    images = [tuple(image.flatten().tolist()) for split in (*first.values(), *second.values()) for image in split[0]]
    assert len(set(images)) == len(images) == 1797
    for images_of, labels in second.values():
        assert (images_of.min(), images_of.max()) == (0, 1)
        assert labels.unique().tolist() == [0, 1, 2, 3, 4]


def test_labels_are_matched_without_using_an_output_twice() -> None:
    """Class 0 is mostly called 1, and so is class 1, though less clearly: it must take what is left."""

    class Saying(ResNet):
        def forward(self, images: Tensor, border: Tensor | None = None) -> Tensor:
            return F.one_hot(torch.tensor([1, 1, 1, 1, 1, 2, 0, 0, 0]), 3).float()

    images = torch.zeros(9, 1, 8, 8)
    assert matched(Saying(classes=3), (images, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]))) == [1, 2, 0]


def test_accuracy_is_a_share() -> None:
    images, labels = noise(2)
    net = base()
    right = sum(int(net(image[None]).argmax()) == int(label) for image, label in zip(images, labels, strict=True))
    assert accuracy(net, (images, labels)) == pytest.approx(right / len(labels))


def test_the_stored_results_are_of_this_protocol() -> None:
    path = Path(__file__).parents[1] / "docs" / "results" / "vision.json"
    if not path.exists():
        pytest.skip("the results come with the whole project")
    found = json.loads(path.read_text(encoding="utf-8"))
    for row in found["methods"]:
        mean = {rate: sum(scores) / len(scores) for rate, scores in row["dev"].items()}
        assert mean[str(row["rate"])] == max(mean.values())
        assert {len(scores) for scores in row["dev"].values()} == {len(found["dev_seeds"])}
        assert len(row["test"]) == len(found["test_seeds"])
    assert not set(found["test_seeds"]) & set(found["dev_seeds"])

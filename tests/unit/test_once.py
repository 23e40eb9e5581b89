"""Constants that are made once."""

import copy

import pytest
import torch

from svimo_core.model.interaction import InteractionModel
from svimo_core.model.mmdit import MMDiT
from svimo_core.once import OnceForEach

CPU = torch.device("cpu")


class Counting:
    def __init__(self):
        self.calls = []

    def make(self, size, device):
        self.calls.append((size, device))
        return torch.arange(size, device=device)


def test_made_once_for_each_key():
    counting = Counting()
    numbers = OnceForEach(counting.make)
    first = numbers(3, CPU)
    assert numbers(3, CPU) is first
    assert numbers(4, CPU).tolist() == [0, 1, 2, 3]
    assert numbers(3, torch.device("meta")).is_meta
    assert numbers(3, CPU) is first
    assert counting.calls == [(3, CPU), (4, CPU), (3, torch.device("meta"))]


def test_the_last_few_are_kept():
    counting = Counting()
    numbers = OnceForEach(counting.make)
    for size in range(1, 40):
        numbers(size, CPU)
        assert len(numbers.made) <= OnceForEach.KEPT
    for size in range(40 - OnceForEach.KEPT, 40):
        numbers(size, CPU)
    assert len(counting.calls) == 39
    numbers(1, CPU)
    assert len(counting.calls) == 40


def test_what_inference_made_serves_training():
    """With a weight that is trained times it, which autograd must be able to keep."""
    numbers = OnceForEach(lambda size: torch.arange(float(size)))
    with torch.inference_mode():
        numbers(3)
    assert not numbers(3).is_inference()
    weight = torch.ones(3, requires_grad=True)
    (weight * numbers(3)).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2]
    made = OnceForEach(lambda: 2 * weight)()
    assert not made.requires_grad  # a constant


@pytest.mark.parametrize("part", ["backbone", "interaction"])
def test_networks_can_be_trained_after_inference(config, part):
    """At the same size, so that they use the tables made in inference mode."""
    torch.manual_seed(0)
    z = torch.randn(1, *config.latent_shape(config.frames, config.height, config.width))
    time = torch.tensor([5])
    if part == "backbone":
        network = MMDiT(config.backbone)
        text = torch.randn(1, config.backbone.text_length, config.backbone.text_dim)
        inputs = z, z, text, time, z, z
    else:
        network = InteractionModel(config.interaction)
        hands, points = (torch.randn(1, config.frames, n, 3) for n in (42, config.interaction.num_points))
        inputs = hands, points, z, z, time
        places = torch.randn(1, 42 + config.interaction.num_points, 2)

    def run():
        first, second = network(*inputs)
        if part == "interaction":
            alignment = network.alignment
            moves = alignment(alignment.find(z[:, :, 0]), hands, points, places)
            first, second = first + moves[0], second + moves[1]
        return first.square().mean() + second.square().mean()

    with torch.inference_mode():
        expected = run()
    loss = run()
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(weight.grad is not None for weight in network.proj_out.parameters())


def test_a_copys_tables_are_its_own():
    """It must not keep the network that it was copied from."""
    counting = Counting()
    counting.numbers = OnceForEach(counting.make)
    counting.numbers(3, CPU)
    other = copy.deepcopy(counting)
    assert other.numbers.make.__self__ is other
    assert other.numbers(3, CPU) is not counting.numbers(3, CPU)
    assert len(counting.calls) == 1

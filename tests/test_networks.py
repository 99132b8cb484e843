"""Population-stacked networks against plain torch modules, one per member and copy."""

from __future__ import annotations

import math

import pytest
import torch
from spine import generator, normal

from pglab.networks import ACTIVATIONS, MLP, Parameters, by_member, by_row, orthogonal
from pglab.noise import Noise

MODULES = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU, "silu": torch.nn.SiLU}


def plain(network: MLP, parameters: Parameters, i: int) -> torch.nn.Sequential:
    """Member-copy i as a torch module with the same weights."""
    layers: list[torch.nn.Module] = []
    for n, (a, b) in enumerate(zip(network.sizes[:-1], network.sizes[1:], strict=True)):
        linear = torch.nn.Linear(a, b, dtype=parameters.flat.dtype)
        linear.weight.data = parameters.views[f"weight{n}"][i].detach().T.clone()
        linear.bias.data = parameters.views[f"bias{n}"][i, 0].detach().clone()
        layers += [linear, MODULES[network.activation]()]
    return torch.nn.Sequential(*layers[:-1])


def double(parameters: Parameters) -> Parameters:
    """In float64, with random biases too."""
    flat = parameters.flat.double() + 0.1 * normal(*parameters.flat.shape, key=5)
    return Parameters(parameters.shapes, flat, parameters.copies)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("copies", [1, 2])
def test_forward_and_backward_equal_torch_modules(activation, copies):
    network = MLP((4, 6, 5, 3), activation)
    parameters = double(network.initial(Noise.of_seeds([0, 7, 3]), copies))
    x, seed = normal(3 * copies, 8, 4), normal(3 * copies, 8, 3, key=1)
    y = network(parameters.views, x)
    grad = parameters.backward([y], [seed])
    assert grad is parameters.grad
    assert grad.shape == (3, copies * parameters.size)
    by_copy = grad.view(3 * copies, -1)
    for i in range(3 * copies):
        module = plain(network, parameters, i)
        out = module(x[i])
        torch.testing.assert_close(y[i], out)
        out.backward(seed[i])
        theirs = []
        for layer in module:
            if isinstance(layer, torch.nn.Linear):
                theirs += [layer.weight.grad.T.flatten(), layer.bias.grad]
        torch.testing.assert_close(by_copy[i], torch.cat(theirs))


def test_no_hidden_layer():
    network = MLP((3, 2))
    parameters = double(network.initial(Noise.of_seeds([0, 1])))
    x = normal(2, 5, 3)
    torch.testing.assert_close(network(parameters.views, x)[1], plain(network, parameters, 1)(x[1]))


def test_backward_replaces_what_was_there_and_zeroes_what_was_not_reached():
    network = MLP((2, 3, 1))
    parameters = network.initial(Noise.of_seeds([0, 1]), extra={"log_std": torch.zeros(1, 2).numpy()})
    x = normal(2, 4, 2).float()
    first = parameters.backward([network(parameters.views, x).sum()]).clone()
    again = parameters.backward([network(parameters.views, x).sum()])
    assert torch.equal(first, again)
    assert bool((again[:, -2:] == 0).all())


def test_views_share_memory_with_the_flat_tensor():
    parameters = MLP((2, 3, 1)).initial(Noise.of_seeds([0, 1]), copies=2)
    with torch.no_grad():
        parameters.flat.fill_(7)
    assert all(bool((v == 7).all()) for v in parameters.views.values())


def test_twins_start_differently_and_copies_do_not_share_memory():
    parameters = MLP((4, 5, 1)).initial(Noise.of_seeds([0]), copies=2)
    w = parameters.views["weight0"]
    assert w.shape == (2, 4, 5)
    assert not torch.equal(w[0], w[1])
    target = parameters.frozen_copy()
    assert target.grad is None
    assert not any(v.requires_grad for v in target.views.values())
    assert torch.equal(target.flat, parameters.flat)
    target.flat.add_(1)
    assert not torch.equal(target.flat, parameters.flat)
    repeated = parameters.repeated(3)
    assert torch.equal(repeated.flat, parameters.flat.expand(3, -1))


@pytest.mark.parametrize("copies", [1, 2])
def test_a_members_initial_weights_do_not_depend_on_the_population(copies):
    network = MLP((4, 6, 2))
    among = network.initial(Noise.of_seeds([5, 0, 9]), copies).flat
    assert torch.equal(among[2], network.initial(Noise.of_seeds([9]), copies).flat[0])
    assert not torch.equal(among[0], among[1])


def test_networks_of_one_member_start_apart_and_one_copy_is_the_first_of_two():
    noise = Noise.of_seeds([0])
    assert not torch.equal(MLP((4, 6, 2), stream=0).initial(noise).flat, MLP((4, 6, 2), stream=1).initial(noise).flat)
    single, twin = MLP((4, 6, 2)).initial(noise), MLP((4, 6, 2)).initial(noise, 2)
    assert torch.equal(twin.flat[:, : single.size], single.flat)


@pytest.mark.parametrize(("a", "b"), [(8, 8), (8, 3), (3, 8), (1, 4)])
def test_orthogonality(a, b):
    w = torch.from_numpy(orthogonal(generator(0), a, b, 1.7))
    assert w.shape == (a, b)
    small = w.T @ w if a >= b else w @ w.T
    torch.testing.assert_close(small, 1.7**2 * torch.eye(min(a, b)).double())


def test_initial_gains_and_zero_biases():
    network = MLP((6, 6, 6, 2), output_gain=0.01)
    views = network.initial(Noise.of_seeds([0, 1])).views
    for name, gain in (("weight0", math.sqrt(2)), ("weight1", math.sqrt(2)), ("weight2", 0.01)):
        found = torch.linalg.svdvals(views[name].detach())
        torch.testing.assert_close(found, torch.full_like(found, gain))
    assert all(bool((v == 0).all()) for name, v in views.items() if name.startswith("bias"))


def test_orthogonal_matrices_are_uniformly_distributed_in_sign():
    """Without the correction by the signs of R, the QR of LAPACK is not uniform over the orthogonal group."""
    g = generator(1)
    corner = torch.tensor([float(orthogonal(g, 3, 3, 1.0)[0, 0]) for _ in range(4000)])
    assert abs(float(corner.mean())) < 6 * (1 / 3) ** 0.5 / 4000**0.5


def test_rows_to_members_and_back():
    rows = normal(5, 3, 4, 2)  # [T, P, N, X]
    flat = by_member(rows)
    assert flat.shape == (3, 20, 2)
    assert torch.equal(flat[1, 4 * 2 + 3], rows[2, 1, 3])
    assert torch.equal(by_row(flat, torch.Size((5, 3, 4))), rows)
    assert by_member(rows[0]) is not None
    assert torch.equal(by_row(by_member(rows[0]), torch.Size((3, 4))), rows[0])

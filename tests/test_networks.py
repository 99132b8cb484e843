"""Population-stacked networks against plain torch modules, one per member and copy."""

from __future__ import annotations

import math

import pytest
import torch
from spine import generator, normal

from pglab import networks
from pglab.networks import ACTIVATIONS, MLP, NARROW, Parameters, Recorder, by_member, by_row, orthogonal
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


def of_modules(network: MLP, parameters: Parameters, x: torch.Tensor, seed: torch.Tensor):
    """Output and flat gradient of one torch module per member and copy."""
    outputs, gradients = [], []
    for i in range(len(x)):
        module = plain(network, parameters, i)
        out = module(x[i])
        out.backward(seed[i])
        outputs.append(out.detach())
        layers = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
        gradients.append(torch.cat([part for m in layers for part in (m.weight.grad.T.flatten(), m.bias.grad)]))
    return torch.stack(outputs), torch.stack(gradients)


WIDTHS = {
    "all narrow": (3, NARROW - 7, NARROW - 1, 2),
    "narrow head": (3, NARROW + 5, 2 * NARROW, 1),
    "at the border": (NARROW, NARROW, NARROW - 1, NARROW),
    "all wide": (NARROW + 1, NARROW + 4, NARROW + 2),
}


@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("members", [1, 3])
def test_a_float32_tanh_network_equals_torch_modules(sizes, members):
    """On a CPU tanh is taken by way of the sigmoid there, and narrow layers are multiplied transposed."""
    network = MLP(sizes)
    exact = double(network.initial(Noise.of_seeds(range(members))))
    parameters = Parameters(exact.shapes, exact.flat.float())
    x = (2 * normal(members, 20, sizes[0])).float()
    seed = normal(members, 20, sizes[-1], key=1).float() / 20
    y = network(parameters.views, x)
    theirs, gradient = of_modules(network, parameters, x, seed)
    torch.testing.assert_close(y, theirs, rtol=0, atol=2e-6)
    torch.testing.assert_close(parameters.backward([y], [seed]), gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS.keys())
def test_every_width_equals_torch_modules(activation, sizes):
    network = MLP(sizes, activation)
    parameters = double(network.initial(Noise.of_seeds([0, 1])))
    x, seed = normal(2, 5, sizes[0]), normal(2, 5, sizes[-1], key=1)
    y = network(parameters.views, x)
    theirs, gradient = of_modules(network, parameters, x, seed)
    torch.testing.assert_close(y, theirs)
    torch.testing.assert_close(parameters.backward([y], [seed]), gradient)


@pytest.mark.parametrize("z", [0.0, 1e-4, -0.3, 4.0, -20.0, 200.0])
def test_tanh_by_way_of_the_sigmoid_is_within_2e_7(z):
    network = MLP((1, 1, 1))
    weights = [torch.ones(1, 1, 1), torch.zeros(1, 1, 1)] * 2
    (kept,), _ = network.run(weights, torch.full((1, 1, 1), z))
    assert float(kept) == pytest.approx(math.tanh(z), abs=2e-7)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_network_can_be_differentiated_twice(activation):
    """In the weights and in the input, against finite differences."""
    network = MLP((2, 4, 3, 2), activation)
    parameters = double(network.initial(Noise.of_seeds([0, 3])))
    x = normal(2, 3, 2, key=8).requires_grad_()
    weights = [parameters.views[name].detach().clone().requires_grad_() for name in network.layer_names]

    def f(x, *weights):
        return network(dict(zip(network.layer_names, weights, strict=True)), x)

    assert torch.autograd.gradcheck(f, (x, *weights))
    assert torch.autograd.gradgradcheck(f, (x, *weights))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_the_gradients_graph_equals_that_of_plain_operations(activation):
    """The derivative of a gradient's norm, as torch finds it through its own operations."""
    network = MLP((3, 20, 5, 1), activation)
    parameters = double(network.initial(Noise.of_seeds([0, 1])))
    x = normal(2, 6, 3).requires_grad_()
    weights = [parameters.views[name] for name in network.layer_names]
    found = []
    for y in (network(parameters.views, x), network.plain(weights, x)):
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *weights], allow_unused=True))
    for mine, theirs in zip(*found, strict=True):
        assert (mine is None or not mine.any()) if theirs is None else torch.allclose(mine, theirs)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(
    "wanted", [[True] * 7, [False] + [True] * 6, [True] + [False] * 6, [False, False] + [True] * 5]
)
@pytest.mark.parametrize("few", [0, 2])
def test_a_backward_pass_in_parts_is_the_whole_one(monkeypatch, activation, wanted, few):
    """A few members at a time, the last part smaller; what is not wanted is None in both."""
    network = MLP((3, 18, 4, 2), activation)
    parameters = double(network.initial(Noise.of_seeds(range(5))))
    weights = [parameters.views[name].detach() for name in network.layer_names]
    x, seed = normal(5, 7, 3), normal(5, 7, 2, key=1)
    kept, _ = network.run(weights, x)
    whole = network.pull(weights, x, kept, seed, wanted)
    calls = []
    pull = MLP.pull
    monkeypatch.setattr(MLP, "pull", lambda self, *args: calls.append(len(args[1])) or pull(self, *args))
    monkeypatch.setattr(networks, "CACHED", few * 7 * 18 * 8)
    parts = network.pull_in_parts(weights, x, kept, seed, wanted)
    assert calls == ([1] * 5 if few == 0 else [2, 2, 1])
    assert [part is not None for part in whole] == wanted
    for a, b in zip(whole, parts, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def recorded_pass(steps: int = 4):
    """A network, its parameters, a recorder that has kept `steps` steps of 3 environments, and the rows it saw."""
    network = MLP((2, 20, 5, 3))
    parameters = network.initial(Noise.of_seeds([0, 4]))
    recorder = Recorder(network, 2, steps, 3, torch.device("cpu"))
    rows = normal(steps, 2, 3, 2).float()
    recorder.begin(network, parameters)
    with torch.inference_mode():
        outputs = [recorder.step(row).clone() for row in rows]
    return network, parameters, recorder, rows, outputs


def gradient_of(network, parameters, x, recorded=None):
    return parameters.backward([network(parameters.views, x, recorded).square().sum()]).clone()


def test_a_recorded_pass_is_used_where_it_holds(monkeypatch):
    network, parameters, recorder, rows, outputs = recorded_pass()
    recorded, x = recorder.take(), by_member(rows)
    assert recorded.holds(parameters)
    whole = network(parameters.views, x).detach()
    torch.testing.assert_close(
        by_row(recorded.output, torch.Size((4, 2, 3))), torch.stack([o.clone() for o in outputs])
    )
    torch.testing.assert_close(recorded.output, whole)
    expected = gradient_of(network, parameters, x)
    monkeypatch.setattr(MLP, "run", None)  # nothing is computed again
    torch.testing.assert_close(gradient_of(network, parameters, x, recorded), expected)
    with torch.no_grad():
        assert network(parameters.views, x, recorded) is recorded.output


def test_a_recorded_pass_can_be_differentiated_twice():
    network, parameters, recorder, rows, _ = recorded_pass()
    found, x = [], by_member(rows)
    leaves = [parameters.views[name] for name in network.layer_names]
    for recorded in (recorder.take(), None):
        first = torch.autograd.grad(network(parameters.views, x, recorded).square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["in place", "another object", "another rollout"])
def test_a_recorded_pass_no_longer_holds(change):
    network, parameters, recorder, _, _ = recorded_pass()
    recorded = recorder.take()
    asked = parameters
    if change == "in place":
        with torch.no_grad():
            parameters.flat.mul_(1.5)
    elif change == "another object":
        asked = parameters.repeated(1)
    else:
        recorder.begin(network, parameters)
    assert not recorded.holds(asked)

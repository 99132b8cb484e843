import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from pglab.environments.spaces import action_spec, encode_action_mask, observation_encoder, to_env_actions
from pglab.errors import PglabError

OBSERVATIONS = [
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(0, 255, (2, 3, 4), np.uint8),
    spaces.Box(-1.0, 1.0, (), np.float64),
    spaces.Discrete(5),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([3, 2, 4]),
    spaces.MultiDiscrete([[3, 2], [4, 1]], start=[[1, 0], [-3, 7]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 3)),
    spaces.Dict({"z": spaces.Box(-1.0, 1.0, (2,)), "a": spaces.Discrete(3, start=1), "m": spaces.MultiBinary(2)}),
    spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2, 2)), spaces.MultiDiscrete([2, 3]))),
    spaces.Dict({"in": spaces.Dict({"x": spaces.Discrete(2)}), "t": spaces.Tuple((spaces.Discrete(2),))}),
]


@pytest.mark.parametrize("space", OBSERVATIONS, ids=str)
def test_encoding_agrees_with_gymnasium_sample_by_sample(space):
    space.seed(0)
    samples = [space.sample() for _ in range(7)]
    batch = concatenate(space, samples, create_empty_array(space, n=7))
    encoder = observation_encoder(space)
    encoded = encoder.encode(batch, 7)
    assert encoded.dtype == np.float32
    assert encoded.shape == (7, encoder.size) == (7, spaces.utils.flatdim(space))
    np.testing.assert_array_equal(
        encoded, np.stack([spaces.utils.flatten(space, s) for s in samples]).astype(np.float32)
    )


def test_encoding_is_a_copy_and_keeps_nan():
    batch = np.array([[1.0, np.nan]], dtype=np.float32)
    encoded = observation_encoder(spaces.Box(-1, 1, (2,))).encode(batch, 1)
    batch[:] = 0
    np.testing.assert_array_equal(encoded, [[1.0, np.nan]])


def test_a_discrete_observation_outside_of_its_space_is_refused():
    encoder = observation_encoder(spaces.Discrete(3, start=1))
    for outside in (0, 4):
        with pytest.raises(PglabError, match="outside"):
            encoder.encode(np.array([1, outside]), 2)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.Dict({"a": spaces.Box(0, 1, (2,)), "t": spaces.Text(3)}),
    ],
    ids=str,
)
def test_unsupported_observation_spaces_are_named(space):
    with pytest.raises(PglabError, match="Box, Discrete, MultiDiscrete, MultiBinary") as error:
        observation_encoder(space)
    assert str(space) in str(error.value)


ACTIONS = [
    spaces.Discrete(4),
    spaces.Discrete(3, start=5),
    spaces.MultiDiscrete([3, 2, 4]),
    spaces.MultiDiscrete([[3, 2], [4, 1]], start=[[1, 0], [-3, 7]], dtype=np.int32),
    spaces.MultiBinary(3),
    spaces.MultiBinary((2, 2)),
    spaces.Box(-2.0, 2.0, (1,), np.float32),
    spaces.Box(np.array([[0.0, -1.0], [2.0, 5.0]]), np.array([[0.1, 3.0], [2.0, 9.0]]), dtype=np.float64),
    spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,), np.float32),
    spaces.Box(-np.inf, np.inf, (3,), np.float32),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_encoded_actions_come_out_in_the_space(space, as_tensor):
    spec = action_spec(space)
    rng = np.random.default_rng(0)
    n = 50
    if spec.kind == "discrete":
        # Noise that prefers nothing, with padding out of reach as it is for policies.
        logits = rng.standard_normal((n, *spec.event_shape))
        padding = spec.padding_mask()
        if padding is not None:
            logits[:, ~padding.numpy()] = -np.inf
        encoded = np.eye(spec.categories, dtype=np.float32)[logits.argmax(-1)]
    elif spec.kind == "binary":
        encoded = rng.integers(0, 2, (n, *spec.event_shape)).astype(np.float32)
    else:
        encoded = rng.uniform(-1.5, 1.5, (n, *spec.event_shape)).astype(np.float32)
    assert encoded.shape == (n, *spec.event_shape)
    actions = to_env_actions(spec, torch.from_numpy(encoded) if as_tensor else encoded)
    assert actions.dtype == space.dtype
    assert actions.shape == (n, *space.shape)
    assert all(space.contains(space.dtype.type(a) if space.shape == () else a) for a in actions)
    assert batch_space(space, n).contains(actions)


def test_actions_have_the_values_they_stand_for():
    one_hot = np.array([[[1, 0, 0, 0], [0, 1, 0, 0]], [[0, 0, 1, 0], [1, 0, 0, 0]]])
    spec = action_spec(spaces.MultiDiscrete([4, 2], start=[10, -1]))
    assert spec.sizes == (4, 2)
    assert spec.event_shape == (2, 4)
    np.testing.assert_array_equal(to_env_actions(spec, one_hot), [[10, 0], [12, -1]])

    binary = action_spec(spaces.MultiBinary(2))
    assert to_env_actions(binary, np.array([[0.0, 1.0]])).tolist() == [[0, 1]]

    box = action_spec(spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64))
    assert box.bounded
    np.testing.assert_allclose(
        to_env_actions(box, np.array([[-1.0, 1.0], [0.25, 0.0], [-3.0, 7.0]])),
        [[-2.0, 10.0], [0.5, 5.0], [-2.0, 10.0]],
    )
    free = action_spec(spaces.Box(-np.inf, np.inf, (2,)))
    assert not free.bounded
    np.testing.assert_array_equal(to_env_actions(free, np.array([[-3.0, 7.0]])), [[-3.0, 7.0]])


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Box(0.0, np.inf, (2,)), "some directions only"),
        (spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf])), "some directions only"),
        (spaces.Box(0, 255, (2,), np.uint8), "Box of floats"),
        (spaces.Text(3), "not supported"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "not supported"),
    ],
    ids=str,
)
def test_unsupported_action_spaces_are_named(space, says):
    with pytest.raises(PglabError, match=says) as error:
        action_spec(space)
    assert str(space) in str(error.value)


def objects(*rows):
    array = np.full(len(rows), None, dtype=object)
    for i, row in enumerate(rows):
        array[i] = row
    return array


def test_action_masks_in_every_form():
    discrete = action_spec(spaces.Discrete(3))
    expected = [[[True, False, True]], [[False, True, True]]]
    for given in (np.array([[1, 0, 1], [0, 1, 1]], dtype=np.int8), objects([1, 0, 1], (0, 1, 1))):
        assert encode_action_mask(discrete, given).tolist() == expected

    ragged = action_spec(spaces.MultiDiscrete([2, 3]))
    expected = [[[True, False, False], [True, False, True]]]
    factors = (np.array([1, 0], dtype=np.int8), np.array([1, 0, 1], dtype=np.int8))
    for given in (np.array([[1, 0, 1, 0, 1]]), objects(factors), objects([[1, 0], [1, 0, 1]])):
        assert encode_action_mask(ragged, given).tolist() == expected
    for wrong in (np.ones((1, 6)), objects(([1, 0], [1, 0]))):
        with pytest.raises(PglabError, match="5 choices"):
            encode_action_mask(ragged, wrong)

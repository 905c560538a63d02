"""The definitions agree with loops written out by hand, on odd sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deploykit import definitions as define

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("groups", "strides", "pads", "dilations"),
    [
        (1, (1, 1), ((0, 0), (0, 0)), (1, 1)),
        (2, (2, 1), ((1, 0), (0, 2)), (1, 2)),
        (4, (3, 2), ((2, 2), (1, 1)), (2, 1)),
    ],
)
def test_convolution_is_the_sum_over_the_window(
    groups: int,
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], ...],
    dilations: tuple[int, int],
) -> None:
    x = RANDOM.standard_normal((2, 4, 9, 7))
    kernel = RANDOM.standard_normal((8, 4 // groups, 3, 2))
    bias = RANDOM.standard_normal(8)
    found = define.convolution(
        x, kernel, bias, strides=strides, pads=pads, dilations=dilations, groups=groups
    )
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    for n, m, i, j in itertools.product(*(range(size) for size in found.shape)):
        total = bias[m]
        group = m // (8 // groups)
        for c, a, b in itertools.product(range(4 // groups), range(3), range(2)):
            place = (i * strides[0] + a * dilations[0], j * strides[1] + b * dilations[1])
            total += kernel[m, c, a, b] * padded[(n, group * (4 // groups) + c, *place)]
        assert found[n, m, i, j] == pytest.approx(total)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_is_the_adjoint_of_convolution(groups: int) -> None:
    strides, pads, dilations = (2, 3), ((1, 0), (1, 1)), (1, 2)
    kernel = RANDOM.standard_normal((6, 4 // groups, 3, 2))
    image = RANDOM.standard_normal((1, 4, 11, 10))
    shape = define.convolution(
        image, kernel, strides=strides, pads=pads, dilations=dilations, groups=groups
    )
    y = RANDOM.standard_normal(tuple(shape.shape))
    back = define.transposed_convolution(
        y,
        kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
        extra=(0, 0),
    )
    height, width = back.shape[2:]
    # <conv(x), y> == <x, transposed(y)> for every x that the windows reach
    full = np.zeros_like(image)
    full[..., :height, :width] = back
    assert float((shape * y).sum()) == pytest.approx(float((image * full).sum()))


def test_padding_never_wins_a_maximum_and_counts_in_a_mean_only_where_asked() -> None:
    x = -np.ones((1, 1, 3, 3))
    pads = ((1, 1), (1, 1))
    largest = define.max_pool(x, (2, 2), strides=(2, 2), pads=pads)
    np.testing.assert_array_equal(largest, -np.ones((1, 1, 2, 2)))
    own = define.average_pool(x, (2, 2), strides=(2, 2), pads=pads)
    np.testing.assert_array_equal(own, -np.ones((1, 1, 2, 2)))
    every = define.average_pool(x, (2, 2), strides=(2, 2), pads=pads, counted=pads)
    np.testing.assert_array_equal(every[0, 0], [[-0.25, -0.5], [-0.5, -1]])


def test_local_response_normalisation_sums_neighbouring_channels() -> None:
    x = RANDOM.standard_normal((1, 5, 1, 1))
    found = define.local_response_normalisation(x, size=3, alpha=0.3, beta=0.5, bias=2.0)
    for c in range(5):
        near = x[0, max(c - 1, 0) : c + 2, 0, 0]
        assert found[0, c, 0, 0] == pytest.approx(
            x[0, c, 0, 0] / np.sqrt(2 + 0.1 * (near**2).sum())
        )


def test_batch_normalisation_works_along_any_axis() -> None:
    x = RANDOM.standard_normal((2, 3, 4))
    mean, variance = RANDOM.standard_normal(4), RANDOM.random(4)
    found = define.batch_normalisation(x, None, None, mean, variance, epsilon=1e-3, axis=2)
    np.testing.assert_allclose(found, (x - mean) / np.sqrt(variance + 1e-3))


def test_recurrence_runs_in_either_direction() -> None:
    steps = np.arange(1.0, 4.0)[:, None]
    outputs, (last,) = define.recurrent(steps, (np.zeros(1),), lambda x, s: (s[0] * 2 + x,))
    np.testing.assert_array_equal(outputs[:, 0], [1, 4, 11])
    assert last == 11
    outputs, (last,) = define.recurrent(
        steps, (np.zeros(1),), lambda x, s: (s[0] * 2 + x,), reverse=True
    )
    np.testing.assert_array_equal(outputs[:, 0], [17, 8, 3])
    assert last == 17


def test_sigmoid_and_softmax_do_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(define.sigmoid(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])
        np.testing.assert_allclose(define.softmax(np.array([1e4, 1e4])), [0.5, 0.5])

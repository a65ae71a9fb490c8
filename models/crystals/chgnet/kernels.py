"""Compiled CPU kernels of CHGNet's gated MLPs, forward and backward, for rows of WIDTH features.

Between two matrix products an interaction block gathers, activates, normalises, gates, weights and sums.
One kernel does all of it row by row, in the processor's nearest cache, instead of one pass over memory for
each. Gradients are written by hand. One thread: several trials at once use a processor better.

An array of the hidden layer has shape (2, n, WIDTH), the core's plane and the gate's. All floats are
float32 and all indices int32. Sums run in a fixed order: the same input gives the same bits.
"""

# Kernels are not annotated: numba compiles them for the types they are called with.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numba
import numpy as np

from data.machine.compiled import KEPT

WIDTH = 64
_1 = np.float32(1.0)
_PER_WIDTH = np.float32(1.0 / WIDTH)
_EPSILON = np.float32(1e-5)  # of torch's LayerNorm

# Sums over rows are reassociated and multiply-adds fused, without which they are not vectorised. It is not
# assumed that there are no NaNs: a network that diverges must be seen to.
_MATH = {"reassoc", "contract", "arcp", "nsz"}
_kernel = numba.njit(cache=KEPT, nogil=True, fastmath=_MATH, error_model="numpy")
_part = numba.njit(inline="always", fastmath=_MATH, error_model="numpy")


@_part
def _exp(x):
    """e^x, relative error 1e-7, as code that compiles to vector instructions (Cephes' expf)."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + _1
    power = np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23))
    return p * power.view(np.float32)


@_part
def _gather(parts, indices, e, h):
    """`h = sum over parts of part[index[e]]`; three parts or four."""
    first = parts[0][indices[0][e]]
    second = parts[1][indices[1][e]]
    third = parts[2][indices[2][e]]
    if len(parts) == 3:
        for c in range(2 * WIDTH):
            h[c] = first[c] + second[c] + third[c]
    else:
        fourth = parts[len(parts) - 1][indices[len(parts) - 1][e]]
        for c in range(2 * WIDTH):
            h[c] = first[c] + second[c] + third[c] + fourth[c]


@_part
def _scatter(parts, indices, e, h):
    """`part[index[e]] += h` for every part."""
    for k in range(len(parts)):
        row = parts[k][indices[k][e]]
        for c in range(2 * WIDTH):
            row[c] += h[c]


@_part
def _normalise(row, x):
    """`x = (row - mean) / deviation`; returns 1 / deviation."""
    total = np.float32(0.0)
    for c in range(len(row)):
        total += row[c]
    mean = total * _PER_WIDTH
    square = np.float32(0.0)
    for c in range(len(row)):
        difference = row[c] - mean
        square += difference * difference
    inverse = _1 / np.sqrt(square * _PER_WIDTH + _EPSILON)
    for c in range(WIDTH):
        x[c] = (row[c] - mean) * inverse
    return inverse


@_part
def _back_through_norm(x, inverse, gradient):
    """From the gradient of the normalised row to that of the row, in place."""
    total = np.float32(0.0)
    along = np.float32(0.0)
    for c in range(WIDTH):
        total += gradient[c]
        along += gradient[c] * x[c]
    total *= _PER_WIDTH
    along *= _PER_WIDTH
    for c in range(WIDTH):
        gradient[c] = inverse * (gradient[c] - total - x[c] * along)


@_part
def _gate(core, gate, norm, normed, out, x, y):
    """`out = silu(norm(core)) * sigmoid(norm(gate))`; leaves the normalised rows in x and y."""
    core_inverse = gate_inverse = _1
    if normed:
        core_inverse = _normalise(core, x)
        gate_inverse = _normalise(gate, y)
    else:
        for c in range(WIDTH):
            x[c] = core[c]
            y[c] = gate[c]
    for c in range(WIDTH):
        u = x[c] * norm[0, 0, c] + norm[0, 1, c]
        v = y[c] * norm[1, 0, c] + norm[1, 1, c]
        out[c] = u / ((_1 + _exp(-u)) * (_1 + _exp(-v)))
    return core_inverse, gate_inverse


@_part
def _back_through_gate(gradient, norm, normed, inverses, x, y, d_core, d_gate, d_norm):
    """From the gradient of the gate's output to those of its two inputs and of the norms' parameters."""
    for c in range(WIDTH):
        u = x[c] * norm[0, 0, c] + norm[0, 1, c]
        v = y[c] * norm[1, 0, c] + norm[1, 1, c]
        s = _1 / (_1 + _exp(-u))
        t = _1 / (_1 + _exp(-v))
        d_core[c] = gradient[c] * t * s * (_1 + u * (_1 - s))
        d_gate[c] = gradient[c] * u * s * t * (_1 - t)
    for c in range(WIDTH):
        d_norm[0, 0, c] += d_core[c] * x[c]
        d_norm[0, 1, c] += d_core[c]
        d_core[c] *= norm[0, 0, c]
    for c in range(WIDTH):
        d_norm[1, 0, c] += d_gate[c] * y[c]
        d_norm[1, 1, c] += d_gate[c]
        d_gate[c] *= norm[1, 0, c]
    if normed:
        _back_through_norm(x, inverses[0], d_core)
        _back_through_norm(y, inverses[1], d_gate)


@_kernel
def gather_silu(parts, indices, out):
    """`out[:, e] = silu(sum over parts of part[index[e]])`.

    Args:
        parts: three or four arrays of shape (n_rows, 2 * WIDTH), the core's columns first.
        indices: as many, shape (n,).
        out: to fill, shape (2, n, WIDTH).
    """
    h = np.empty(2 * WIDTH, dtype=np.float32)
    for e in range(out.shape[1]):
        _gather(parts, indices, e, h)
        core = out[0, e]
        gate = out[1, e]
        for c in range(WIDTH):
            core[c] = h[c] / (_1 + _exp(-h[c]))
        for c in range(WIDTH):
            gate[c] = h[WIDTH + c] / (_1 + _exp(-h[WIDTH + c]))


@_kernel
def gather_silu_backward(parts, indices, gradient, d_parts):
    """Add to `d_parts`, shaped as `parts`, what follows from the gradient of `gather_silu`'s output."""
    h = np.empty(2 * WIDTH, dtype=np.float32)
    for e in range(gradient.shape[1]):
        _gather(parts, indices, e, h)
        for half in range(2):
            above = gradient[half, e]
            for c in range(WIDTH):
                v = h[half * WIDTH + c]
                s = _1 / (_1 + _exp(-v))
                h[half * WIDTH + c] = above[c] * s * (_1 + v * (_1 - s))
        _scatter(d_parts, indices, e, h)


@_kernel
def gate_and_sum(hidden, norm, normed, weights, weight_indices, count, target, out):
    """`out[target[e]] += count[e] * product of weights[index[e]] * gate(hidden[:, e])`.

    Args:
        hidden: core and gate, shape (2, n, WIDTH).
        norm: of core and gate the scale and the shift, shape (2, 2, WIDTH).
        normed: whether there is a layer norm before scale and shift.
        weights: one or two arrays of shape (n_rows, WIDTH).
        weight_indices: as many, shape (n,).
        count: float32, shape (n,).
        target: shape (n,); faster where equal values follow one another.
        out: to add to, shape (n_targets, WIDTH).
    """
    x = np.empty(WIDTH, dtype=np.float32)
    y = np.empty(WIDTH, dtype=np.float32)
    message = np.empty(WIDTH, dtype=np.float32)
    for e in range(hidden.shape[1]):
        _gate(hidden[0, e], hidden[1, e], norm, normed, message, x, y)
        row = out[target[e]]
        times = count[e]
        first = weights[0][weight_indices[0][e]]
        last = weights[len(weights) - 1][weight_indices[len(weights) - 1][e]]
        if len(weights) == 1:
            for c in range(WIDTH):
                row[c] += message[c] * first[c] * times
        else:
            for c in range(WIDTH):
                row[c] += message[c] * first[c] * last[c] * times


@_kernel
def gate_and_sum_backward(
    gradient, hidden, norm, normed, weights, weight_indices, count, target, d_hidden, d_norm, d_weights
):
    """Fill `d_hidden`, and add to `d_norm` and `d_weights`, from the gradient of `gate_and_sum`'s output."""
    x = np.empty(WIDTH, dtype=np.float32)
    y = np.empty(WIDTH, dtype=np.float32)
    message = np.empty(WIDTH, dtype=np.float32)
    above = np.empty(WIDTH, dtype=np.float32)
    for e in range(hidden.shape[1]):
        inverses = _gate(hidden[0, e], hidden[1, e], norm, normed, message, x, y)
        row = gradient[target[e]]
        times = count[e]
        first = weights[0][weight_indices[0][e]]
        d_first = d_weights[0][weight_indices[0][e]]
        if len(weights) == 1:
            for c in range(WIDTH):
                d_first[c] += message[c] * row[c] * times
                above[c] = row[c] * first[c] * times
        else:
            last = weights[len(weights) - 1][weight_indices[len(weights) - 1][e]]
            d_last = d_weights[len(weights) - 1][weight_indices[len(weights) - 1][e]]
            for c in range(WIDTH):
                d_first[c] += message[c] * row[c] * last[c] * times
            for c in range(WIDTH):
                d_last[c] += message[c] * row[c] * first[c] * times
            for c in range(WIDTH):
                above[c] = row[c] * first[c] * last[c] * times
        _back_through_gate(above, norm, normed, inverses, x, y, d_hidden[0, e], d_hidden[1, e], d_norm)


@_kernel
def gather_and_gate(parts, indices, norm, normed, out):
    """`out[e] = gate(sum over parts of part[index[e]])`: a gated MLP without a hidden layer."""
    h = np.empty(2 * WIDTH, dtype=np.float32)
    x = np.empty(WIDTH, dtype=np.float32)
    y = np.empty(WIDTH, dtype=np.float32)
    for e in range(len(out)):
        _gather(parts, indices, e, h)
        _gate(h[:WIDTH], h[WIDTH:], norm, normed, out[e], x, y)


@_kernel
def gather_and_gate_backward(gradient, parts, indices, norm, normed, d_parts, d_norm):
    """Add to `d_parts` and `d_norm` what follows from the gradient of `gather_and_gate`'s output."""
    h = np.empty(2 * WIDTH, dtype=np.float32)
    x = np.empty(WIDTH, dtype=np.float32)
    y = np.empty(WIDTH, dtype=np.float32)
    message = np.empty(WIDTH, dtype=np.float32)
    for e in range(len(gradient)):
        _gather(parts, indices, e, h)
        inverses = _gate(h[:WIDTH], h[WIDTH:], norm, normed, message, x, y)
        _back_through_gate(gradient[e], norm, normed, inverses, x, y, h[:WIDTH], h[WIDTH:], d_norm)
        _scatter(d_parts, indices, e, h)

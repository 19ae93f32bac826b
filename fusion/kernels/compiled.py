"""The method's inner loops for the CPU, compiled by numba: one pass over flat elements and packed bit planes.

Masks are compared bit for bit with the reference, so elements are float32 and computed in the order written here:
without `fastmath`, numba neither reorders operations nor contracts them into fused multiply-adds. Sums that become
scales are float64, in an order that is the same on every machine. Every function releases the GIL, so that threads
process chunks in parallel.

**Patterns.** Eight planes are read as 8 x 8 bit matrices and transposed, so that element j has one byte for a group of
eight tasks. Sums and maxima over the tasks of a group then take one look-up in a table of 256 entries, and the sums per
task are computed from a histogram over bytes.

Everything is in one long file because numba discards cached code when the file of the called function changes, but does
not check the files of the functions that it calls in turn.

Suffixes: N elements of a chunk or block, B = ceil(N / 8) bytes of a plane, T tasks, G = ceil(T / 8) groups of tasks,
S segments, K planes, Q levels (or borders between them), P patterns, or bins of a histogram.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK = 4096
"""Number of elements whose intermediate results fit into the first-level cache. A multiple of 8."""

_FLOAT16_MAX = np.float32(65504.0)
_BFLOAT16_MAX = np.float32(3.3895313892515355e38)

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def _transposed(x):  # type: ignore[no-untyped-def]
    """An 8 x 8 bit matrix in a uint64 (row r is byte r), transposed. Source: Warren, Hacker's Delight, 7-3."""
    t = (x ^ (x >> np.uint64(7))) & np.uint64(0x00AA00AA00AA00AA)
    x = x ^ t ^ (t << np.uint64(7))
    t = (x ^ (x >> np.uint64(14))) & np.uint64(0x0000CCCC0000CCCC)
    x = x ^ t ^ (t << np.uint64(14))
    t = (x ^ (x >> np.uint64(28))) & np.uint64(0x00000000F0F0F0F0)
    return x ^ t ^ (t << np.uint64(28))


@_compiled
def patterns(planes_TB, patterns_GB):  # type: ignore[no-untyped-def]
    """Planes, uint8 [T, B], to patterns, uint64 [G, B]: byte e of word b holds element 8 b + e, one bit per task."""
    num_tasks, num_bytes = planes_TB.shape
    for g in range(patterns_GB.shape[0]):
        row = patterns_GB[g]
        row[:] = np.uint64(0)
        for t in range(8 * g, min(8 * g + 8, num_tasks)):
            plane = planes_TB[t]
            shift = np.uint64(8 * (t - 8 * g))
            for b in range(num_bytes):
                row[b] |= np.uint64(plane[b]) << shift
        for b in range(num_bytes):
            row[b] = _transposed(row[b])


@_compiled
def drop_lost_bits(patterns_GN, last_flip_N, valid_GF):  # type: ignore[no-untyped-def]
    """Clear, in place, the bits that were lost after they were written.

    Args:
        patterns_GN: uint8 [G, at least N].
        last_flip_N: session of the last change of tau's sign, unsigned [N].
        valid_GF: uint8 [G, sessions], one bit per task of a group: whether its plane holds where the last flip was in
            session f.
    """
    for g in range(patterns_GN.shape[0]):
        row, valid = patterns_GN[g], valid_GF[g]
        for j in range(last_flip_N.size):
            row[j] &= valid[last_flip_N[j]]


@_compiled
def tables(scales_T, sums_GP, maxima_GP):  # type: ignore[no-untyped-def]
    """For each pattern of a group, the sum of its tasks' scales, added in their order, and the largest of them."""
    num_tasks = scales_T.size
    for g in range(sums_GP.shape[0]):
        sums_GP[g, 0], maxima_GP[g, 0] = np.float32(0), np.float32(0)
        for k in range(min(8, num_tasks - 8 * g)):
            scale, size = scales_T[8 * g + k], 1 << k
            for p in range(size):
                sums_GP[g, size + p] = sums_GP[g, p] + scale
                maxima_GP[g, size + p] = max(maxima_GP[g, p], scale)


@_compiled
def _add_squares(exact_N, rounded_N, squares_2):  # type: ignore[no-untyped-def]
    """Add the squared errors of rounding, and the squares before rounding."""
    for i in range(exact_N.size):
        exact, error = np.float64(exact_N[i]), np.float64(rounded_N[i]) - np.float64(exact_N[i])
        squares_2[0] += error * error
        squares_2[1] += exact * exact


@_compiled
def look_up(patterns_GN, first, sums_GP, maxima_GP, sum_N, max_N):  # type: ignore[no-untyped-def]
    """S and L of a block: the sum, group by group, and the largest of the scales of the tasks whose bit is set."""
    sum_N[:] = np.float32(0)
    max_N[:] = np.float32(0)
    for g in range(patterns_GN.shape[0]):
        row, sums, maxima = patterns_GN[g, first : first + sum_N.size], sums_GP[g], maxima_GP[g]
        for i in range(sum_N.size):
            sum_N[i] += sums[row[i]]
            max_N[i] = max(max_N[i], maxima[row[i]])


@_compiled
def add_to_histogram(pattern_N, sizes_N, histogram_P):  # type: ignore[no-untyped-def]
    for i in range(pattern_N.size):
        histogram_P[pattern_N[i]] += sizes_N[i]


@_compiled
def add_task_sums(histogram_GP, sums_T):  # type: ignore[no-untyped-def]
    """Add to each task its share of a histogram over patterns, and clear the histogram."""
    num_tasks = sums_T.size
    for g in range(histogram_GP.shape[0]):
        row = histogram_GP[g]
        for k in range(7, -1, -1):
            half = 1 << k
            total = 0.0
            for p in range(half):
                total += row[half + p]
                row[p] += row[half + p]
                row[half + p] = 0.0
            if 8 * g + k < num_tasks:
                sums_T[8 * g + k] += total
        row[0] = 0.0


@_compiled
def pack(bits_N, first, plane_B):  # type: ignore[no-untyped-def]
    """OR bits, uint8 0 or 1, into a plane, from bit `first` on."""
    i = 0
    while i < bits_N.size and (first + i) & 7:
        plane_B[(first + i) >> 3] |= bits_N[i] << np.uint8((first + i) & 7)
        i += 1
    offset, whole = (first + i) >> 3, (bits_N.size - i) >> 3
    for b in range(whole):
        byte = np.uint8(0)
        for k in range(8):
            byte |= np.uint8(bits_N[i + 8 * b + k] << np.uint8(k))
        plane_B[offset + b] |= byte
    for j in range(i + 8 * whole, bits_N.size):
        plane_B[(first + j) >> 3] |= bits_N[j] << np.uint8((first + j) & 7)


@_compiled
def sum_abs(values_N):  # type: ignore[no-untyped-def]
    """Sum of |values| in float64, in eight lanes: an order that vectorises, and is the same on every machine."""
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    whole = values_N.size & ~7
    for i in range(0, whole, 8):
        a0 += abs(np.float64(values_N[i]))
        a1 += abs(np.float64(values_N[i + 1]))
        a2 += abs(np.float64(values_N[i + 2]))
        a3 += abs(np.float64(values_N[i + 3]))
        a4 += abs(np.float64(values_N[i + 4]))
        a5 += abs(np.float64(values_N[i + 5]))
        a6 += abs(np.float64(values_N[i + 6]))
        a7 += abs(np.float64(values_N[i + 7]))
    for i in range(whole, values_N.size):
        a0 += abs(np.float64(values_N[i]))
    return ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))


@_compiled
def mask_sizes(values_N, mask_N, sizes_N):  # type: ignore[no-untyped-def]
    """|values| where the mask is 1, else 0."""
    for i in range(values_N.size):
        sizes_N[i] = abs(values_N[i]) if mask_N[i] else np.float32(0)


@_compiled
def round_in_place(values_N, rounding):  # type: ignore[no-untyped-def]
    """float32 to the nearest numbers (ties to even) of float16 (`rounding` 1) or bfloat16 (2), never infinite."""
    bits_N = values_N.view(np.uint32)
    if rounding == 2:
        for i in range(bits_N.size):
            bits = bits_N[i] + np.uint32(0x7FFF) + ((bits_N[i] >> np.uint32(16)) & np.uint32(1))
            bits_N[i] = np.uint32(bits & np.uint32(0xFFFF0000))
            values_N[i] = min(max(values_N[i], -_BFLOAT16_MAX), _BFLOAT16_MAX)
        return
    for i in range(bits_N.size):
        x = values_N[i]
        if abs(x) < np.float32(6.103515625e-05):  # subnormal: steps of 2^-24
            values_N[i] = np.float32(np.rint(np.float64(x) * 16777216.0) / 16777216.0)
        else:
            bits = bits_N[i] + np.uint32(0xFFF) + ((bits_N[i] >> np.uint32(13)) & np.uint32(1))
            bits_N[i] = np.uint32(bits & np.uint32(0xFFFFE000))
            values_N[i] = min(max(values_N[i], -_FLOAT16_MAX), _FLOAT16_MAX)


# Modes with masks. Source: ConDU (arXiv 2503.10705), unify and decouple.


@_compiled
def _unify(tau_N, delta_N, sum_N, max_N, fused_N, kept_N, new_N):  # type: ignore[no-untyped-def]
    """tau' of a block, and whether tau and delta agree with its sign. It has no branches, so that it vectorises."""
    zero = np.float32(0)
    for i in range(tau_N.size):
        t, d = tau_N[i], delta_N[i]
        up = t * sum_N[i] + d > zero
        t_f, d_f = (t if up else -t), (d if up else -d)
        old_size = (t_f if t_f > zero else zero) * max_N[i]
        new_size = d_f if d_f > zero else zero
        size = old_size if old_size > new_size else new_size
        fused_N[i] = size if up else -size
        kept_N[i] = np.uint8(t_f > zero)
        new_N[i] = np.uint8(d_f > zero)


@_compiled
def _mark_flips(tau_N, fused_N, last_flip_N, session):  # type: ignore[no-untyped-def]
    """Record the session where tau's sign changes or tau becomes 0, and replace tau by tau'."""
    zero = np.float32(0)
    for i in range(tau_N.size):
        t, f = tau_N[i], fused_N[i]
        same = ((f > zero) & (t > zero)) | ((f < zero) & (t < zero))
        last_flip_N[i] = last_flip_N[i] if same else session
        tau_N[i] = f


@_compiled
def unify_next(  # type: ignore[no-untyped-def]
    tau_N,
    last_flip_N,
    delta_N,
    patterns_GN,
    scales_ST,
    starts_S,
    session,
    rounding,
    plane_B,
    masked_ST,
    norms_S,
    squares_2,
):
    """A new task vector unified with the old tasks, over a chunk: see `fusion.kernels.Kernels.unify_next`."""
    num_groups, num_tasks = patterns_GN.shape[0], scales_ST.shape[1]
    sums_GP = np.zeros((num_groups, 256), np.float32)
    maxima_GP = np.zeros((num_groups, 256), np.float32)
    histogram_GP = np.zeros((num_groups, 256))
    sum_N, max_N, fused_N = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    kept_N, new_N = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    plane_B[:] = 0
    for s in range(starts_S.size - 1):
        tables(scales_ST[s], sums_GP, maxima_GP)
        norm, new_mass = 0.0, 0.0
        for first in range(starts_S[s], starts_S[s + 1], BLOCK):
            last = min(first + BLOCK, starts_S[s + 1])
            count = last - first
            tau, delta, fused = tau_N[first:last], delta_N[first:last], fused_N[:count]
            kept, new = kept_N[:count], new_N[:count]
            look_up(patterns_GN, first, sums_GP, maxima_GP, sum_N[:count], max_N[:count])
            _unify(tau, delta, sum_N[:count], max_N[:count], fused, kept, new)
            if rounding:
                sum_N[:count] = fused
                round_in_place(fused, rounding)
                _add_squares(sum_N[:count], fused, squares_2)
            _mark_flips(tau, fused, last_flip_N[first:last], session)
            norm += sum_abs(delta)
            mask_sizes(fused, new, sum_N[:count])
            new_mass += sum_abs(sum_N[:count])
            mask_sizes(fused, kept, fused)
            for g in range(num_groups):
                add_to_histogram(patterns_GN[g, first:last], fused, histogram_GP[g])
            pack(new, first, plane_B)
        add_task_sums(histogram_GP, masked_ST[s, :num_tasks])
        masked_ST[s, num_tasks] += new_mass
        norms_S[s] += norm


@_compiled
def masked_sums(tau_N, patterns_GN, starts_S, masked_ST):  # type: ignore[no-untyped-def]
    """Add sum m |tau| over each segment to [S, T], float64."""
    num_groups = patterns_GN.shape[0]
    histogram_GP, sizes_N = np.zeros((num_groups, 256)), np.empty(BLOCK, np.float32)
    for s in range(starts_S.size - 1):
        for first in range(starts_S[s], starts_S[s + 1], BLOCK):
            last = min(first + BLOCK, starts_S[s + 1])
            sizes = sizes_N[: last - first]
            for i in range(sizes.size):
                sizes[i] = abs(tau_N[first + i])
            for g in range(num_groups):
                add_to_histogram(patterns_GN[g, first:last], sizes, histogram_GP[g])
        add_task_sums(histogram_GP, masked_ST[s])


@_compiled
def unify_all(deltas_TN, starts_S, rounding, tau_N, planes_TB, masked_ST, norms_ST, squares_2):  # type: ignore[no-untyped-def]
    """All task vectors over a chunk, unified at once: see `fusion.kernels.Kernels.unify_all`."""
    zero = np.float32(0)
    num_tasks = deltas_TN.shape[0]
    up_N, mask_N, sizes_N = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.float32)
    planes_TB[:] = 0
    for s in range(starts_S.size - 1):
        for first in range(starts_S[s], starts_S[s + 1], BLOCK):
            last = min(first + BLOCK, starts_S[s + 1])
            tau, up, mask, sizes = (
                tau_N[first:last],
                up_N[: last - first],
                mask_N[: last - first],
                sizes_N[: last - first],
            )
            tau[:] = zero
            for t in range(num_tasks):
                delta = deltas_TN[t, first:last]
                for i in range(tau.size):
                    tau[i] += delta[i]
            for i in range(tau.size):
                up[i] = np.uint8(tau[i] > zero)
                tau[i] = zero
            for t in range(num_tasks):
                delta = deltas_TN[t, first:last]
                for i in range(tau.size):
                    agreed = delta[i] if up[i] else -delta[i]
                    tau[i] = agreed if agreed > tau[i] else tau[i]
            for i in range(tau.size):
                tau[i] = tau[i] if up[i] else -tau[i]
            if rounding:
                sizes[:] = tau
                round_in_place(tau, rounding)
                _add_squares(sizes, tau, squares_2)
            for t in range(num_tasks):
                delta = deltas_TN[t, first:last]
                for i in range(tau.size):
                    mask[i] = np.uint8((delta[i] if up[i] else -delta[i]) > zero)
                mask_sizes(tau, mask, sizes)
                norms_ST[s, t] += sum_abs(delta)
                masked_ST[s, t] += sum_abs(sizes)
                pack(mask, first, planes_TB[t])


@_compiled
def decouple(tau_N, last_flip_N, plane_B, session, scales_S, starts_S, delta_N):  # type: ignore[no-untyped-def]
    """delta_hat = lambda m tau over a chunk; m lacks the bits where tau's sign changed after `session`."""
    zero = np.float32(0)
    for s in range(starts_S.size - 1):
        scale = scales_S[s]
        for j in range(starts_S[s], starts_S[s + 1]):
            kept = (plane_B[j >> 3] >> np.uint8(j & 7)) & np.uint8(last_flip_N[j] <= session)
            delta_N[j] = scale * tau_N[j] if kept else zero


# Signs and levels: fitting, encoding and decoding.


@_compiled
def sum_abs_segments(values_N, starts_S, sums_S):  # type: ignore[no-untyped-def]
    """Sum of |values| over each segment, float64."""
    for s in range(starts_S.size - 1):
        sums_S[s] = sum_abs(values_N[starts_S[s] : starts_S[s + 1]])


@_compiled
def level_histogram(delta_N, profile_N, scales_S, starts_S, step, bins_per_unit, histogram_P2):  # type: ignore[no-untyped-def]
    """Add every `step`-th ratio |delta| / (mu g) to a histogram: sums of the weight (mu g)^2 and of weight x ratio."""
    last_bin, one = np.int64(histogram_P2.shape[0] - 1), np.float32(1)
    s = 0
    for j in range(0, delta_N.size, step):
        while j >= starts_S[s + 1]:
            s += 1
        scale = scales_S[s]
        if not scale > np.float32(0):
            continue
        expected = scale * profile_N[j]
        ratio = abs(delta_N[j]) * (one / expected)
        position = ratio * bins_per_unit
        p = np.int64(position) if position < last_bin else last_bin  # also NaN and infinity
        weight = np.float64(expected) * np.float64(expected)
        if not weight > 0.0:
            continue
        histogram_P2[p, 0] += weight
        histogram_P2[p, 1] += weight * ratio


@_compiled
def fit_levels(histogram_P2, num_levels, max_rounds):  # type: ignore[no-untyped-def]
    """Lloyd's levels: weighted means of the ratios in each cell, float64 [num_levels], ascending."""
    used = 0
    total = 0.0
    num_bins = histogram_P2.shape[0]
    value, mass = np.empty(num_bins), np.empty(num_bins)
    for p in range(num_bins):
        weight = histogram_P2[p, 0]
        if weight > 0.0:
            value[used], mass[used] = histogram_P2[p, 1] / weight, weight
            total += weight
            used += 1
    levels = np.ones(num_levels)
    if used == 0:
        return levels
    q, seen = 0, 0.0
    for p in range(used):
        seen += mass[p]
        while q < num_levels and (seen / total >= (q + 0.5) / num_levels or p == used - 1):
            levels[q] = value[p]
            q += 1
    means, masses = np.empty(num_levels), np.empty(num_levels)
    for _ in range(max_rounds):
        means[:] = 0.0
        masses[:] = 0.0
        q = 0
        for p in range(used):  # values ascend, so the cell only moves up
            while q < num_levels - 1 and value[p] > (levels[q] + levels[q + 1]) / 2:
                q += 1
            masses[q] += mass[p]
            means[q] += mass[p] * value[p]
        moved = 0.0
        for q in range(num_levels):
            level = means[q] / masses[q] if masses[q] > 0.0 else levels[q]
            moved = max(moved, abs(level - levels[q]) / max(abs(levels[q]), 1e-300))
            levels[q] = level
        levels.sort()
        if moved <= 1e-7:
            break
    return levels


@_compiled
def encode(delta_N, profile_N, scales_S, starts_S, borders_Q, planes_KB):  # type: ignore[no-untyped-def]
    """Sign plane and level planes of a chunk: see `fusion.kernels.Kernels.encode`."""
    bits_N, level_N = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    planes_KB[:] = 0
    for s in range(starts_S.size - 1):
        scale = scales_S[s]
        for first in range(starts_S[s], starts_S[s + 1], BLOCK):
            last = min(first + BLOCK, starts_S[s + 1])
            delta, bits, level = delta_N[first:last], bits_N[: last - first], level_N[: last - first]
            for i in range(delta.size):
                bits[i] = np.uint8(delta[i] > np.float32(0))
            pack(bits, first, planes_KB[0])
            if planes_KB.shape[0] == 1 or not scale > np.float32(0):
                continue
            level[:] = np.uint8(0)
            profile = profile_N[first:last]
            for q in range(borders_Q.size):
                border = borders_Q[q]
                for i in range(delta.size):
                    level[i] += np.uint8(abs(delta[i]) > border * (scale * profile[i]))
            for k in range(1, planes_KB.shape[0]):
                for i in range(delta.size):
                    bits[i] = (level[i] >> np.uint8(k - 1)) & np.uint8(1)
                pack(bits, first, planes_KB[k])


@_compiled
def decode(planes_KB, profile_N, scales_S, levels_Q, starts_S, delta_N):  # type: ignore[no-untyped-def]
    """delta_hat = +- mu g q over a chunk."""
    num_planes = planes_KB.shape[0]
    for s in range(starts_S.size - 1):
        scale = scales_S[s]
        for j in range(starts_S[s], starts_S[s + 1]):
            b, k = j >> 3, np.uint8(j & 7)
            size = profile_N[j] * scale
            if num_planes > 1:
                level = np.uint8(0)
                for n in range(1, num_planes):
                    level |= ((planes_KB[n, b] >> k) & np.uint8(1)) << np.uint8(n - 1)
                size = size * levels_Q[level]
            delta_N[j] = size if (planes_KB[0, b] >> k) & np.uint8(1) else -size


@_compiled
def add_to_profile(delta_N, means_S, starts_S, sum_N):  # type: ignore[no-untyped-def]
    """Add |d| / nu to a profile's sum; nothing in segments where nu is 0."""
    for s in range(starts_S.size - 1):
        if means_S[s] > np.float32(0):
            inverse = np.float32(1) / means_S[s]
            for j in range(starts_S[s], starts_S[s + 1]):
                sum_N[j] += abs(delta_N[j]) * inverse

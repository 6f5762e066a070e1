// RMSNorm, GELU and the softmax of the head's logits, forward and backward, each in one pass over memory.
//
// Sums over rows are made in parts of PART_ROWS rows, whatever the number of threads, so that their bits do not depend on it.

#pragma once

#include "train_lanes.h"

namespace {

constexpr long PART_ROWS = 256;

// y = x · scale · weight with scale = (mean(x²) + eps)^(−1/2); `size` is a multiple of LANES.
template <class Y>
void rms_norm(const float *x, const float *weight, Y *y, float *scale, long n_rows, long size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long row = 0; row < n_rows; row++) {
        const float *in = x + row * size;
        Lanes even = zero(), odd = zero();
        for (long i = 0; i < size; i += LANES) {
            const Lanes a = load(in + i);
            (i / LANES % 2 ? odd : even) = add_product(a, a, i / LANES % 2 ? odd : even);
        }
        scale[row] = 1 / std::sqrt(sum_of(plus(even, odd)) / static_cast<float>(size) + eps);
        const Lanes factor = repeat(scale[row]);
        for (long i = 0; i < size; i += LANES)
            store_as(y + row * size + i, times(times(load(in + i), factor), load(weight + i)));
    }
}

// dx = s·(g·w) − x · s³ · mean(x·g·w) and, for each part of the rows, Σ s·(g·x) as a row of `dweights`.
template <class G>
void rms_norm_backward(const G *grad, const float *x, const float *weight, const float *scale, float *dx,
                       float *dweights, long n_rows, long size, int threads) {
    const long n_parts = (n_rows + PART_ROWS - 1) / PART_ROWS;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long part = 0; part < n_parts; part++) {
        const long end = (part + 1) * PART_ROWS < n_rows ? (part + 1) * PART_ROWS : n_rows;
        float *dweight = dweights + part * size;
        for (long i = 0; i < size; i++) dweight[i] = 0;
        for (long row = part * PART_ROWS; row < end; row++) {
            const G *g = grad + row * size;
            const float *in = x + row * size, s = scale[row];
            Lanes sum = zero();
            for (long i = 0; i < size; i += LANES) {
                const Lanes product = times(load(g + i), load(in + i));
                sum = add_product(product, load(weight + i), sum);
                store(dweight + i, add_product(product, repeat(s), load(dweight + i)));
            }
            const Lanes factor = repeat(s), correction = repeat(-sum_of(sum) / static_cast<float>(size) * s * s * s);
            for (long i = 0; i < size; i += LANES) {
                const Lanes direct = times(times(load(g + i), load(weight + i)), factor);
                store(dx + row * size + i, add_product(load(in + i), correction, direct));
            }
        }
    }
}

struct Normal { Lanes cdf, density; };  // Φ(x) and φ(x) of the normal distribution

// 1 − Φ(|x|) = φ(x) · √(π/2) · P(u) with u = 1 / (1 + 0.3275911·|x|/√2) and a polynomial P, which is off by at most 0.8e-7
// (Abramowitz and Stegun 7.1.26). Gelu and its slope then need a single exponential.
inline Normal normal(Lanes x) {
    const Lanes power = exp_of(times(times(x, x), repeat(-0.5f)));
    const Lanes size = largest_of(x, times(x, repeat(-1.0f)));
    const Lanes u = reciprocal(add_product(size, repeat(0.3275911f * 0.707106781f), repeat(1.0f)));
    Lanes p = repeat(0.5f * 1.061405429f);
    p = add_product(p, u, repeat(0.5f * -1.453152027f));
    p = add_product(p, u, repeat(0.5f * 1.421413741f));
    p = add_product(p, u, repeat(0.5f * -0.284496736f));
    p = add_product(p, u, repeat(0.5f * 0.254829592f));
    return {complement_if_positive(times(times(p, u), power), x), times(power, repeat(0.398942280f))};
}

inline Lanes gelu(Lanes x) { return times(x, normal(x).cdf); }

inline Lanes gelu_slope(Lanes x) {  // Φ(x) + x·φ(x)
    const Normal at = normal(x);
    return add_product(x, at.density, at.cdf);
}

constexpr long CHUNK = 4096;  // numbers that a thread takes at a time

// dx = grad · gelu'(x), or y = gelu(x) without a gradient; n is a multiple of LANES.
template <class T> void gelu(const T *grad, const T *x, T *y, long n, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long first = 0; first < n; first += CHUNK) {
        const long end = first + CHUNK < n ? first + CHUNK : n;
        for (long i = first; i < end; i += LANES) {
            const Lanes in = load(x + i);
            store_as(y + i, grad ? times(load(grad + i), gelu_slope(in)) : gelu(in));
        }
    }
}

// Softmax of every row of logits minus the one-hot of its target, in place, and the loss: −log softmax[target]. Columns
// n_vocab … width−1 are padding, whose results are 0.
template <class T>
void softmax_loss(T *logits, const int64_t *targets, float *losses, long n_rows, long n_vocab, long width, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> powers(n_vocab + LANES);  // of a row: each exponential is computed once
#pragma omp for schedule(static)
        for (long row = 0; row < n_rows; row++) {
            T *in = logits + row * width;
            const float target = to_float(in[targets[row]]);
            const long whole = n_vocab / LANES * LANES;
            Lanes most_lanes = repeat(-INFINITY);
            for (long i = 0; i < whole; i += LANES) most_lanes = largest_of(load(in + i), most_lanes);
            float most = largest_in(most_lanes);
            for (long i = whole; i < n_vocab; i++) most = to_float(in[i]) > most ? to_float(in[i]) : most;
            const Lanes shift = repeat(-most);
            Lanes sums[2] = {zero(), zero()};
            for (long i = 0; i < whole; i += LANES) {
                const Lanes power = exp_of(plus(load(in + i), shift));
                store(powers.data() + i, power);
                sums[i / LANES % 2] = plus(power, sums[i / LANES % 2]);
            }
            float sum = sum_of(plus(sums[0], sums[1]));
            for (long i = whole; i < n_vocab; i++) sum += powers[i] = std::exp(to_float(in[i]) - most);
            losses[row] = std::log(sum) + most - target;
            const Lanes share = repeat(1 / sum);
            for (long i = 0; i < whole; i += LANES) store_as(in + i, times(load(powers.data() + i), share));
            for (long i = whole; i < n_vocab; i++) put(in + i, powers[i] / sum);
            for (long i = n_vocab; i < width; i++) put(in + i, 0.0f);
            put(in + targets[row], powers[targets[row]] / sum - 1);
        }
    }
}

}  // namespace

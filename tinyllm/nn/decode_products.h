// Products of a matrix with few rows of input.
//
// Decoding reads every weight once per token and computes little with it, so a kernel must read weights at the speed of
// the memory. Each thread reads its share of the matrix row by row, and multiplies a row with all inputs while it is in
// the thread's cache. int8 weights become fp32 in registers; sums are fp32.
//
// An output is summed in the same order whatever the number of inputs and threads: its bits do not depend on them.

#pragma once

#include <omp.h>

#include "decode_lanes.h"

namespace {

// How a chunk of weights of type T is multiplied with inputs of type X and added to the sums.
template <class T, class X> struct Chunk {
    static constexpr long SIZE = LANES;
    static inline Lanes weights(const T *w) { return load(w); }
    static inline Lanes add(Lanes weights, const X *x, Lanes sums) { return add_product(weights, load(x), sums); }
};
#if defined(__AVX512BF16__)
// The processor multiplies pairs of bf16 numbers and sums in fp32.
template <> struct Chunk<uint16_t, uint16_t> {
    static constexpr long SIZE = 2 * LANES;
    static inline __m512i weights(const uint16_t *w) { return _mm512_loadu_si512(w); }
    static inline Lanes add(__m512i weights, const uint16_t *x, Lanes sums) {
        return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)_mm512_loadu_si512(x));
    }
};
#endif

constexpr long PREFETCH_BYTES = 2048;

// The dot products of OUTS rows of the matrix with ROWS rows of the input, each in two sums: a single one would wait for
// itself. The order of summation is the same for all OUTS and ROWS.
template <int ROWS, int OUTS, class T, class X>
inline void dots(const T *w, const X *x, long n_in, float results[ROWS][OUTS]) {
    constexpr long STEP = Chunk<T, X>::SIZE;
    typedef decltype(Chunk<T, X>::weights(w)) Weights;
    Lanes sums[ROWS][OUTS][2];
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTS; o++) sums[r][o][0] = sums[r][o][1] = zero();
    long i = 0;
    for (; i + 2 * STEP <= n_in; i += 2 * STEP) {
        // int8 rows are so short that the processor's own prefetcher falls behind.
        if (sizeof(T) == 1) __builtin_prefetch(w + i + PREFETCH_BYTES);
        for (int j = 0; j < 2; j++) {
            Weights weights[OUTS];
            for (int o = 0; o < OUTS; o++) weights[o] = Chunk<T, X>::weights(w + o * n_in + i + j * STEP);
            for (int r = 0; r < ROWS; r++)
                for (int o = 0; o < OUTS; o++)
                    sums[r][o][j] = Chunk<T, X>::add(weights[o], x + r * n_in + i + j * STEP, sums[r][o][j]);
        }
    }
    for (; i < n_in; i += STEP) {  // the rest; the last chunk is filled up with zeros
        long n = n_in - i < STEP ? n_in - i : STEP;
        for (int o = 0; o < OUTS; o++) {
            T last[STEP] = {};
            std::memcpy(last, w + o * n_in + i, n * sizeof(T));
            Weights weights = Chunk<T, X>::weights(last);
            for (int r = 0; r < ROWS; r++) {
                X values[STEP] = {};
                std::memcpy(values, x + r * n_in + i, n * sizeof(X));
                sums[r][o][0] = Chunk<T, X>::add(weights, values, sums[r][o][0]);
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTS; o++) results[r][o] = sum_of(add_product(sums[r][o][0], repeat(1.0f), sums[r][o][1]));
}

// Below both of these, one thread computes the product. Others would gain a few microseconds while the machine is idle,
// and cost more than the product itself while it is not: they wait for each other at every one of them.
constexpr long SERIAL_BYTES = 1 << 19, SERIAL_PRODUCTS = 1 << 21;

inline int threads_for(long bytes, long products, int threads) {
    return bytes < SERIAL_BYTES && products < SERIAL_PRODUCTS ? 1 : threads;
}
// As many rows of the input and of the matrix at a time as there are registers for their sums.
constexpr int MOST_ROWS = LANES == 16 ? 4 : 2, MOST_OUTS = 2;
// Rows of the matrix that a thread multiplies with all inputs while they are in its cache.
constexpr long BLOCK_BYTES = 1 << 17;

template <int ROWS, int OUTS, class T, class X, class Y>
inline void put_dots(const T *w, const float *scale, const float *bias, const X *x, Y *y, long n_out, long n_in) {
    float results[ROWS][OUTS];
    dots<ROWS, OUTS>(w, x, n_in, results);
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTS; o++) {
            float value = scale ? results[r][o] * scale[o] : results[r][o];
            put(y + r * n_out + o, bias ? value + bias[o] : value);
        }
}

template <int ROWS, int OUTS, class T, class X, class Y>
inline void put_block(const T *w, const float *scale, const float *bias, const X *x, Y *y, long first, long end,
                      long n_out, long n_in) {
    const float *s = scale ? scale + first : nullptr, *b = bias ? bias + first : nullptr;
    long o = first;
    for (; o + OUTS <= end; o += OUTS, s += s ? OUTS : 0, b += b ? OUTS : 0)
        put_dots<ROWS, OUTS>(w + o * n_in, s, b, x, y + o, n_out, n_in);
    for (; o < end; o++, s += s ? 1 : 0, b += b ? 1 : 0) put_dots<ROWS, 1>(w + o * n_in, s, b, x, y + o, n_out, n_in);
}

// Outputs first … end−1 of every row are added to the stream, if there is one.
template <class Y> inline void add_outputs(const Y *y, float *stream, long n_rows, long first, long end, long n_out) {
    if (!stream) return;
    for (long r = 0; r < n_rows; r++)
        for (long o = first; o < end; o++) stream[r * n_out + o] += to_float(y[r * n_out + o]);
}

// y = (x · wᵀ) · scale + bias, computed by all threads of a team, each of which calls this.
template <class T, class X, class Y>
void linear(const T *w, const float *scale, const float *bias, const X *x, Y *y, float *stream, long n_rows,
            long n_out, long n_in) {
    const long row_bytes = n_in * static_cast<long>(sizeof(T));
    long block = BLOCK_BYTES / row_bytes, share = n_out / (4 * omp_get_num_threads());  // several blocks for each
    block = block > share ? share : block;
    block = block < MOST_OUTS ? MOST_OUTS : block / MOST_OUTS * MOST_OUTS;
    const long n_blocks = (n_out + block - 1) / block;
#pragma omp for schedule(static)
    for (long i = 0; i < n_blocks; i++) {
        const long first = i * block, end = first + block < n_out ? first + block : n_out;
        // The first inputs bring the block from the memory, whose prefetcher expects a single stream.
        long r = n_rows < MOST_ROWS ? 0 : MOST_ROWS;
        if (r) put_block<MOST_ROWS, 1>(w, scale, bias, x, y, first, end, n_out, n_in);
        for (; r + MOST_ROWS <= n_rows; r += MOST_ROWS)
            put_block<MOST_ROWS, MOST_OUTS>(w, scale, bias, x + r * n_in, y + r * n_out, first, end, n_out, n_in);
        const X *inputs = x + r * n_in;
        const long left = n_rows - r;
        if (left == 1) put_block<1, 1>(w, scale, bias, inputs, y + r * n_out, first, end, n_out, n_in);
        if (left == 2) put_block<2, 1>(w, scale, bias, inputs, y + r * n_out, first, end, n_out, n_in);
        if (left == 3) put_block<3, 1>(w, scale, bias, inputs, y + r * n_out, first, end, n_out, n_in);
        add_outputs(y, stream, n_rows, first, end, n_out);
    }
}

#if defined(__AVX512VNNI__)
// A row of bf16 inputs as 16-bit fixed-point numbers relative to its largest, shifted to be positive: high bytes, low
// bytes. Returns what one step is worth; NaN if an input is not finite.
inline float fixed_point(const uint16_t *x, long n_in, uint8_t *high, uint8_t *low) {
    uint16_t largest = 0;
    for (long i = 0; i < n_in; i++) {
        uint16_t size = x[i] & 0x7fff;  // bit patterns of positive floats are in the order of the numbers
        largest = size > largest ? size : largest;
    }
    const bool finite = largest < 0x7f80;
    const float per_step = finite && largest ? 32767 / to_float(largest) : 0;
    for (long i = 0; i < n_in; i++) {
        int value = static_cast<int>(std::nearbyintf(finite ? to_float(x[i]) * per_step : 0)) + 32768;
        high[i] = static_cast<uint8_t>(value >> 8);
        low[i] = static_cast<uint8_t>(value & 255);
    }
    return finite ? to_float(largest) / 32767 : NAN;
}

// int8 weights and bf16 inputs: the processor multiplies the two bytes of fixed-point inputs in integers. An input is
// off by at most 2⁻¹⁶ of the largest; sums are exact.
void linear(const int8_t *w, const float *scale, const float *bias, const uint16_t *x, uint16_t *y, float *stream,
            long n_rows, long n_out, long n_in) {
    const long padded = (n_in + 63) / 64 * 64, whole = n_in / 64 * 64;
    // Each thread converts all inputs for itself: that is cheaper than waiting for another one.
    std::vector<uint8_t> bytes(2 * n_rows * padded);
    std::vector<float> steps(n_rows);
    for (long r = 0; r < n_rows; r++)
        steps[r] = fixed_point(x + r * n_in, n_in, &bytes[2 * r * padded], &bytes[(2 * r + 1) * padded]);
#pragma omp for schedule(static)
    for (long o = 0; o < n_out; o++) {
        const int8_t *row = w + o * n_in;
        int8_t last[64] = {};
        std::memcpy(last, row + whole, n_in - whole);
        const __m512i ones = _mm512_set1_epi8(1);
        long long shift = 0;  // that of the inputs, times the weights
        for (long r = 0; r < n_rows; r++) {
            const uint8_t *high = &bytes[2 * r * padded], *low = high + padded;
            __m512i highs = _mm512_setzero_si512(), lows = highs, weights_sum = highs;
            for (long i = 0; i < padded; i += 64) {
                __m512i weights = _mm512_loadu_si512(i < whole ? row + i : last);
                __builtin_prefetch(row + i + PREFETCH_BYTES);
                highs = _mm512_dpbusd_epi32(highs, _mm512_loadu_si512(high + i), weights);
                lows = _mm512_dpbusd_epi32(lows, _mm512_loadu_si512(low + i), weights);
                if (r == 0) weights_sum = _mm512_dpbusd_epi32(weights_sum, ones, weights);
            }
            if (r == 0) shift = 32768LL * _mm512_reduce_add_epi32(weights_sum);
            long long sum = 256LL * _mm512_reduce_add_epi32(highs) + _mm512_reduce_add_epi32(lows) - shift;
            float value = static_cast<float>(sum) * steps[r] * (scale ? scale[o] : 1.0f);
            put(y + r * n_out + o, bias ? value + bias[o] : value);
        }
        add_outputs(y, stream, n_rows, o, o + 1, n_out);
    }
}
#else
// int8 weights become fp32, so bf16 inputs do as well, once for all rows of the matrix.
void linear(const int8_t *w, const float *scale, const float *bias, const uint16_t *x, uint16_t *y, float *stream,
            long n_rows, long n_out, long n_in) {
    std::vector<float> widened(n_rows * n_in);
    for (long i = 0; i < n_rows * n_in; i++) widened[i] = to_float(x[i]);
    linear(w, scale, bias, widened.data(), y, stream, n_rows, n_out, n_in);
}
#endif

}  // namespace

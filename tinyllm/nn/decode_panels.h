// Products of a packed matrix with any number of rows of input.
//
// Where many rows are decoded together, arithmetic is the limit and not the memory: each weight that is loaded must be
// multiplied with as many rows as there are registers for their sums. So a packed matrix is a list of panels, each the
// weights of PANEL outputs, input after input and side by side; the last panel is filled up with zeros.
//
// Every output is added up from the first input to the last: its bits depend neither on the number of rows nor of threads.

#pragma once

#include "decode_products.h"

namespace {

constexpr long PANEL = 2 * LANES;
constexpr int MOST_PANEL_ROWS = LANES == 16 ? 12 : 5;

// STEP inputs at a time: how the weights of an output for them are stored, and multiplied with those of a row.
template <class T> struct Packed {
    static constexpr long STEP = 1;
    static inline Lanes weights(const T *w) { return load(w); }
    static inline Lanes inputs(const T *x) { return repeat(to_float(*x)); }
    static inline Lanes add(Lanes inputs, Lanes weights, Lanes sums) { return add_product(inputs, weights, sums); }
};
#if defined(__AVX512BF16__)
template <> struct Packed<uint16_t> {
    static constexpr long STEP = 2;
    static inline __m512i weights(const uint16_t *w) { return _mm512_loadu_si512(w); }
    static inline __m512i inputs(const uint16_t *x) {
        int32_t both;
        std::memcpy(&both, x, sizeof both);
        return _mm512_set1_epi32(both);
    }
    static inline Lanes add(__m512i inputs, __m512i weights, Lanes sums) {
        return _mm512_dpbf16_ps(sums, (__m512bh)inputs, (__m512bh)weights);
    }
};
#endif

template <int ROWS, class T>
inline void panel_product(const T *panel, const float *bias, const T *x, T *y, long n_out, long n_in, long width) {
    constexpr long STEP = Packed<T>::STEP;
    Lanes sums[ROWS][2];
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = zero();
    for (long i = 0; i < n_in; i += STEP) {
        const auto left = Packed<T>::weights(panel + i * PANEL);
        const auto right = Packed<T>::weights(panel + i * PANEL + STEP * LANES);
        for (int r = 0; r < ROWS; r++) {
            const auto inputs = Packed<T>::inputs(x + r * n_in + i);
            sums[r][0] = Packed<T>::add(inputs, left, sums[r][0]);
            sums[r][1] = Packed<T>::add(inputs, right, sums[r][1]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        float results[PANEL];
        store(results, sums[r][0]);
        store(results + LANES, sums[r][1]);
        for (long o = 0; o < width; o++) put(y + r * n_out + o, bias ? results[o] + bias[o] : results[o]);
    }
}

// The same for any number of rows: ROWS at a time, and the rest in few parts, since one row alone waits for its sums.
template <int ROWS, class T>
inline void panel_products(long n_rows, const T *panel, const float *bias, const T *x, T *y, long n_out, long n_in,
                           long width) {
    constexpr int FEWER = ROWS > 8 ? 8 : ROWS > 4 ? 4 : ROWS - 1;
    long r = 0;
    for (; r + ROWS <= n_rows; r += ROWS)
        panel_product<ROWS>(panel, bias, x + r * n_in, y + r * n_out, n_out, n_in, width);
    if constexpr (FEWER > 0)
        panel_products<FEWER>(n_rows - r, panel, bias, x + r * n_in, y + r * n_out, n_out, n_in, width);
}

// y = x · wᵀ + bias, computed by all threads of a team, each of which calls this.
template <class T>
void linear_packed(const T *panels, const float *bias, const T *x, T *y, float *stream, long n_rows, long n_out,
                   long n_in) {
    const long n_panels = (n_out + PANEL - 1) / PANEL;
    const long n_blocks = (n_rows + MOST_PANEL_ROWS - 1) / MOST_PANEL_ROWS;
#pragma omp for schedule(static)
    for (long i = 0; i < n_panels * n_blocks; i++) {
        const long first = i / n_blocks * PANEL, width = first + PANEL < n_out ? PANEL : n_out - first;
        const long row = i % n_blocks * MOST_PANEL_ROWS;
        const long end = row + MOST_PANEL_ROWS < n_rows ? row + MOST_PANEL_ROWS : n_rows;
        panel_products<MOST_PANEL_ROWS>(end - row, panels + first * n_in, bias ? bias + first : nullptr,
                                        x + row * n_in, y + row * n_out + first, n_out, n_in, width);
        if (stream) add_outputs(y + row * n_out, stream + row * n_out, end - row, first, first + width, n_out);
    }
}

}  // namespace

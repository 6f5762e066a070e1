// Logits in bf16: the product of few inputs and a matrix of many outputs, with AVX512_BF16.
//
// The matrix is a list of panels of TILE_COLUMNS outputs, each the pairs of their weights, pair after pair.

#pragma once

#include "train_products.h"

#if defined(__AVX512BF16__)

namespace {

// Panels of a matrix of n_rows rows, of which those from n_rows up to a multiple of TILE_COLUMNS are zeros; `size`, the
// length of a row, is a multiple of 32.
void pack_head(const float *matrix, uint32_t *panels, long n_rows, long size, int threads) {
    const long n_panels = (n_rows + TILE_COLUMNS - 1) / TILE_COLUMNS;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long panel = 0; panel < n_panels; panel++)
        for (long half = 0; half < TILE_COLUMNS; half += 16)
            for (long pair = 0; pair < size / 2; pair += 16) {
                uint16_t rows[16][32];
                for (long r = 0; r < 16; r++) {
                    const long row = panel * TILE_COLUMNS + half + r;
                    const float *from = matrix + row * size + 2 * pair;
                    store_as(rows[r], row < n_rows ? load(from) : zero());
                    store_as(rows[r] + 16, row < n_rows ? load(from + 16) : zero());
                }
                transpose(reinterpret_cast<const uint32_t *>(rows), 16, panels + (panel * size / 2 + pair) * TILE_COLUMNS + half,
                          TILE_COLUMNS);
            }
}

template <int ROWS>
inline long logits_of_rows(const uint16_t *x, const uint32_t *panel, uint16_t *y, long row, long n_rows, long n_out, long size) {
    for (; row + ROWS <= n_rows; row += ROWS) {
        __m512 sums[ROWS][2];
        for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = zero();
        tile<ROWS, false>({reinterpret_cast<const uint32_t *>(x + row * size), size / 2}, panel, TILE_COLUMNS, size / 2, sums);
        for (int r = 0; r < ROWS; r++) {
            store_as(y + (row + r) * n_out, sums[r][0]);
            store_as(y + (row + r) * n_out + 16, sums[r][1]);
        }
    }
    return row;
}

// y = x · matrixᵀ; n_out is a multiple of TILE_COLUMNS.
void logits(const uint16_t *x, const uint32_t *panels, uint16_t *y, long n_rows, long n_out, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long panel = 0; panel < n_out / TILE_COLUMNS; panel++) {
        const uint32_t *weights = panels + panel * size / 2 * TILE_COLUMNS;
        uint16_t *to = y + panel * TILE_COLUMNS;
        long row = logits_of_rows<TILE_ROWS>(x, weights, to, 0, n_rows, n_out, size);
        row = logits_of_rows<4>(x, weights, to, row, n_rows, n_out, size);
        logits_of_rows<1>(x, weights, to, row, n_rows, n_out, size);
    }
}

}  // namespace

#endif

// Products of bf16 matrices that are in the cache, with AVX512_BF16: the core of attention and of linear layers.
//
// Every number of a matrix stands beside its neighbor along the summed dimension: such a pair is one 32-bit word, and the
// processor multiplies and adds two pairs at once, in fp32.

#pragma once

#include "train_lanes.h"

#if defined(__AVX512BF16__)

namespace {

constexpr long TILE_ROWS = 12, TILE_COLUMNS = 32;

// Pairs of a matrix with the given steps, in pairs, from row to row and along the sum.
template <bool BY_COLUMN> struct Pairs {
    const uint32_t *first;
    long step;
    inline __m512bh at(long row, long pair) const {
        return (__m512bh)_mm512_set1_epi32(static_cast<int>(BY_COLUMN ? first[pair * step + row] : first[row * step + pair]));
    }
};

// sums[r][0, 1] += Σ a(r, p) · b[p · b_step … + 31] over n pairs.
template <int ROWS, bool BY_COLUMN>
inline __attribute__((always_inline)) void tile(Pairs<BY_COLUMN> a, const uint32_t *b, long b_step, long n, __m512 sums[ROWS][2]) {
    for (long p = 0; p < n; p++, b += b_step) {
        const __m512bh left = (__m512bh)_mm512_loadu_si512(b), right = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const __m512bh pair = a.at(r, p);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], pair, left);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], pair, right);
        }
    }
}

// Two fp32 vectors as pairs of bf16: the first in the lower halves.
inline __m512i pairs_of(__m512 lower, __m512 upper) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(lower));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(upper));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Two rows of bf16 numbers as one of pairs.
inline void interleave(const uint16_t *lower, const uint16_t *upper, uint32_t *pairs, long n) {
    for (long i = 0; i < n; i += 16) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(lower + i)));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(upper + i)));
        _mm512_storeu_si512(pairs + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

// 16 rows of 16 words, transposed.
inline void transpose(const uint32_t *from, long from_step, uint32_t *to, long to_step) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * from_step);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + i * to_step, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * to_step, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_si512(to + (i + 4) * to_step, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_si512(to + (i + 12) * to_step, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
}

}  // namespace

#endif

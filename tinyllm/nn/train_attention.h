// Causal attention in bf16 with rotary positions, forward and backward, with AVX512_BF16.
//
// A thread takes one key head of one sequence, with its query heads. The scores of a block of queries stay in the cache
// and are computed again in the backward pass, up to the diagonal and no further (FlashAttention, Dao 2023). Sums are in
// fp32; probabilities and gradients of scores are rounded to bf16 before they are multiplied.

#pragma once

#include "train_products.h"

#if defined(__AVX512BF16__)

namespace {

struct AttentionShape {
    long batch, length, heads, key_heads, size;  // size of a head: a multiple of 32
    long queries_step, keys_step, values_step;  // from token to token, in numbers
    float scale;
};

constexpr long BLOCK = 64;  // queries of a block
constexpr long ROWS = 8;  // queries of a tile, of which a block has a whole number

inline long up_to_multiple(long n, long of) { return (n + of - 1) / of * of; }

// Rows first … first+n−1 of a head, rotated if there are tables; rows from `length` on are zeros.
inline void read_rows(const uint16_t *x, long step, const float *cos, const float *sin, long first, long n, long length,
                      long size, uint16_t *rows) {
    const long half = size / 2;
    for (long r = 0; r < n; r++, rows += size) {
        const long t = first + r;
        if (t >= length) {
            std::memset(rows, 0, size * sizeof(uint16_t));
        } else if (!cos) {
            std::memcpy(rows, x + t * step, size * sizeof(uint16_t));
        } else {
            for (long d = 0; d < half; d += LANES) {
                const Lanes low = load(x + t * step + d), high = load(x + t * step + half + d);
                const float *c = cos + t * size + d, *s = sin + t * size + d;
                store_as(rows + d, add_product(high, load(s), times(low, load(c))));
                store_as(rows + half + d, add_product(low, load(s + half), times(high, load(c + half))));
            }
        }
    }
}

// Rows of fp32 gradients, rotated back if there are tables, as bf16.
inline void write_rows(const float *rows, const float *cos, const float *sin, long first, long n, long length, long size,
                       uint16_t *x, long step) {
    const long half = size / 2;
    for (long r = 0; r < n && first + r < length; r++, rows += size) {
        const long t = first + r;
        for (long d = 0; d < half; d += LANES) {
            Lanes low = load(rows + d), high = load(rows + half + d);
            if (cos) {
                const float *c = cos + t * size + d, *s = sin + t * size + d;
                const Lanes turned = _mm512_fnmadd_ps(high, load(s), times(low, load(c)));
                high = _mm512_fnmadd_ps(low, load(s + half), times(high, load(c + half)));
                low = turned;
            }
            store_as(x + t * step + d, low);
            store_as(x + t * step + half + d, high);
        }
    }
}

// n rows as pairs along the head: (size/2, n); n is a multiple of 16.
inline void pairs_along_head(const uint16_t *rows, long n, long size, uint32_t *pairs, long pairs_step) {
    for (long r = 0; r < n; r += 16)
        for (long d = 0; d < size / 2; d += 16)
            transpose(reinterpret_cast<const uint32_t *>(rows + r * size) + d, size / 2, pairs + d * pairs_step + r,
                      pairs_step);
}

// n rows as pairs of two rows: (n/2, size).
inline void pairs_along_rows(const uint16_t *rows, long n, long size, uint32_t *pairs) {
    for (long r = 0; r < n; r += 2) interleave(rows + r * size, rows + (r + 1) * size, pairs + r / 2 * size, size);
}

inline __mmask16 seen_keys(long query, long first_key) {  // keys first_key … first_key+15 up to the query
    const long n = query - first_key + 1;
    return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

// scale · q·kᵀ of a tile of queries and 32 keys.
inline void scores(const uint16_t *queries, const uint32_t *keys, long keys_step, long size, __m512 sums[ROWS][2]) {
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = zero();
    tile<ROWS, false>({reinterpret_cast<const uint32_t *>(queries), size / 2}, keys, keys_step, size / 2, sums);
}

void attention_forward(const AttentionShape &n, const uint16_t *q, const uint16_t *k, const uint16_t *v,
                       const float *cos, const float *sin, uint16_t *out, float *logsumexp, int threads) {
    const long padded = up_to_multiple(n.length, BLOCK), D = n.size, shared = n.heads / n.key_heads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<uint16_t> rows(padded * D), queries(BLOCK * D), shares(ROWS * padded);
        std::vector<uint32_t> keys(D / 2 * padded), values(padded / 2 * D);
        std::vector<float> powers(ROWS * padded);
#pragma omp for schedule(dynamic)
        for (long item = 0; item < n.batch * n.key_heads; item++) {
            const long b = item / n.key_heads, g = item % n.key_heads;
            read_rows(k + b * n.length * n.keys_step + g * D, n.keys_step, cos, sin, 0, padded, n.length, D, rows.data());
            pairs_along_head(rows.data(), padded, D, keys.data(), padded);
            read_rows(v + b * n.length * n.values_step + g * D, n.values_step, nullptr, nullptr, 0, padded, n.length, D,
                      rows.data());
            pairs_along_rows(rows.data(), padded, D, values.data());
            for (long h = g * shared; h < (g + 1) * shared; h++)
                for (long first = 0; first < n.length; first += ROWS) {
                    const long block = first % BLOCK;
                    if (!block)
                        read_rows(q + b * n.length * n.queries_step + h * D, n.queries_step, cos, sin, first, BLOCK,
                                  n.length, D, queries.data());
                    const long n_keys = up_to_multiple(first + ROWS, TILE_COLUMNS);
                    __m512 most[ROWS];
                    for (int r = 0; r < ROWS; r++) most[r] = repeat(-INFINITY);
                    for (long s = 0; s < n_keys; s += TILE_COLUMNS) {
                        __m512 sums[ROWS][2];
                        scores(queries.data() + block * D, keys.data() + s, padded, D, sums);
                        for (int r = 0; r < ROWS; r++)
                            for (int half = 0; half < 2; half++) {
                                const __mmask16 seen = seen_keys(first + r, s + 16 * half);
                                const __m512 score = _mm512_mask_mul_ps(repeat(-INFINITY), seen, sums[r][half], repeat(n.scale));
                                most[r] = largest_of(score, most[r]);
                                store(powers.data() + r * padded + s + 16 * half, score);
                            }
                    }
                    float totals[ROWS];
                    for (int r = 0; r < ROWS; r++) {
                        const float largest = largest_in(most[r]);
                        const __m512 shift = repeat(-largest);
                        __m512 total = zero();
                        for (long s = 0; s < n_keys; s += 16) {
                            const __m512 power = exp_of(plus(load(powers.data() + r * padded + s), shift));
                            const __m512 seen = _mm512_maskz_mov_ps(seen_keys(first + r, s), power);
                            total = plus(seen, total);
                            store_as(shares.data() + r * padded + s, seen);
                        }
                        totals[r] = sum_of(total);
                        if (first + r < n.length) logsumexp[(b * n.heads + h) * n.length + first + r] = largest + std::log(totals[r]);
                    }
                    for (long d = 0; d < D; d += TILE_COLUMNS) {
                        __m512 sums[ROWS][2];
                        for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = zero();
                        tile<ROWS, false>({reinterpret_cast<const uint32_t *>(shares.data()), padded / 2}, values.data() + d, D, n_keys / 2, sums);
                        for (int r = 0; r < ROWS && first + r < n.length; r++) {
                            uint16_t *to = out + ((b * n.length + first + r) * n.heads + h) * D + d;
                            store_as(to, times(sums[r][0], repeat(1 / totals[r])));
                            store_as(to + 16, times(sums[r][1], repeat(1 / totals[r])));
                        }
                    }
                }
        }
    }
}

// Adds Σ weights(q, s) · rows(q) over the queries of a block to the sums of keys 0 … n_keys−1.
inline void add_to_keys(const uint32_t *weights, long weights_step, const uint32_t *rows, long D, long n_keys, float *sums_of_keys) {
    for (long s = 0; s < n_keys; s += ROWS)
        for (long d = 0; d < D; d += TILE_COLUMNS) {
            __m512 sums[ROWS][2];
            for (int r = 0; r < ROWS; r++)
                for (int half = 0; half < 2; half++) sums[r][half] = load(sums_of_keys + (s + r) * D + d + 16 * half);
            tile<ROWS, true>({weights + s, weights_step}, rows + d, D, BLOCK / 2, sums);
            for (int r = 0; r < ROWS; r++)
                for (int half = 0; half < 2; half++) store(sums_of_keys + (s + r) * D + d + 16 * half, sums[r][half]);
        }
}

void attention_backward(const AttentionShape &n, const uint16_t *q, const uint16_t *k, const uint16_t *v,
                        const float *cos, const float *sin, const uint16_t *out, const float *logsumexp,
                        const uint16_t *grad, uint16_t *dq, uint16_t *dk, uint16_t *dv, int threads) {
    const long padded = up_to_multiple(n.length, BLOCK), D = n.size, shared = n.heads / n.key_heads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<uint16_t> rows(padded * D), queries(BLOCK * D), grads(BLOCK * D), dscores(BLOCK * padded);
        std::vector<uint32_t> keys(D / 2 * padded), key_pairs(padded / 2 * D), values(D / 2 * padded);
        std::vector<uint32_t> query_pairs(BLOCK / 2 * D), grad_pairs(BLOCK / 2 * D);
        std::vector<uint32_t> weight_pairs(BLOCK / 2 * padded), dscore_pairs(BLOCK / 2 * padded);
        std::vector<float> dkeys(padded * D), dvalues(padded * D), dqueries(BLOCK * D);
#pragma omp for schedule(dynamic)
        for (long item = 0; item < n.batch * n.key_heads; item++) {
            const long b = item / n.key_heads, g = item % n.key_heads;
            const long keys_at = b * n.length * n.keys_step + g * D, values_at = b * n.length * n.values_step + g * D;
            read_rows(v + values_at, n.values_step, nullptr, nullptr, 0, padded, n.length, D, rows.data());
            pairs_along_head(rows.data(), padded, D, values.data(), padded);
            read_rows(k + keys_at, n.keys_step, cos, sin, 0, padded, n.length, D, rows.data());
            pairs_along_head(rows.data(), padded, D, keys.data(), padded);
            pairs_along_rows(rows.data(), padded, D, key_pairs.data());
            std::fill(dkeys.begin(), dkeys.end(), 0.0f);
            std::fill(dvalues.begin(), dvalues.end(), 0.0f);
            for (long h = g * shared; h < (g + 1) * shared; h++)
                for (long block = 0; block < n.length; block += BLOCK) {
                    const long queries_at = b * n.length * n.queries_step + h * D, n_keys = block + BLOCK;
                    read_rows(q + queries_at, n.queries_step, cos, sin, block, BLOCK, n.length, D, queries.data());
                    pairs_along_rows(queries.data(), BLOCK, D, query_pairs.data());
                    const long outputs_at = (b * n.length * n.heads + h) * D, outputs_step = n.heads * D;
                    read_rows(grad + outputs_at, outputs_step, nullptr, nullptr, block, BLOCK, n.length, D, grads.data());
                    pairs_along_rows(grads.data(), BLOCK, D, grad_pairs.data());
                    for (long first = 0; first < BLOCK; first += ROWS) {
                        float lse[ROWS], delta[ROWS];  // of each query; delta = Σ output · gradient
                        for (int r = 0; r < ROWS; r++) {
                            const long t = block + first + r;
                            lse[r] = delta[r] = 0;
                            if (t >= n.length) continue;
                            lse[r] = logsumexp[(b * n.heads + h) * n.length + t];
                            __m512 sum = zero();
                            for (long d = 0; d < D; d += 16)
                                sum = add_product(load(out + outputs_at + t * outputs_step + d), load(grads.data() + (first + r) * D + d), sum);
                            delta[r] = sum_of(sum);
                        }
                        for (long s = 0; s < n_keys; s += TILE_COLUMNS) {
                            uint32_t *weights_to = weight_pairs.data() + first / 2 * padded + s;
                            uint32_t *dscores_to = dscore_pairs.data() + first / 2 * padded + s;
                            if (s > block + first + ROWS - 1) {  // all of these keys are in the future
                                for (int r = 0; r < ROWS / 2; r++) {
                                    std::memset(weights_to + r * padded, 0, 4 * TILE_COLUMNS);
                                    std::memset(dscores_to + r * padded, 0, 4 * TILE_COLUMNS);
                                }
                                continue;
                            }
                            __m512 weights[ROWS][2], dweights[ROWS][2];
                            scores(queries.data() + first * D, keys.data() + s, padded, D, weights);
                            for (int r = 0; r < ROWS; r++)
                                for (int half = 0; half < 2; half++) {
                                    const long t = block + first + r;
                                    const __mmask16 seen = t < n.length ? seen_keys(t, s + 16 * half) : 0;
                                    const __m512 log_share = _mm512_fmadd_ps(weights[r][half], repeat(n.scale), repeat(-lse[r]));
                                    weights[r][half] = _mm512_maskz_mov_ps(seen, exp_of(log_share));
                                }
                            scores(grads.data() + first * D, values.data() + s, padded, D, dweights);
                            for (int r = 0; r < ROWS; r++)
                                for (int half = 0; half < 2; half++) {
                                    const __m512 centered = _mm512_sub_ps(dweights[r][half], repeat(delta[r]));
                                    dweights[r][half] = times(times(weights[r][half], centered), repeat(n.scale));
                                    store_as(dscores.data() + (first + r) * padded + s + 16 * half, dweights[r][half]);
                                }
                            for (int r = 0; r < ROWS; r += 2)
                                for (int half = 0; half < 2; half++) {
                                    const long at = r / 2 * padded + 16 * half;
                                    _mm512_storeu_si512(weights_to + at, pairs_of(weights[r][half], weights[r + 1][half]));
                                    _mm512_storeu_si512(dscores_to + at, pairs_of(dweights[r][half], dweights[r + 1][half]));
                                }
                        }
                        const long seen = up_to_multiple(block + first + ROWS, TILE_COLUMNS);
                        for (long d = 0; d < D; d += TILE_COLUMNS) {
                            __m512 sums[ROWS][2];
                            for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = zero();
                            tile<ROWS, false>({reinterpret_cast<const uint32_t *>(dscores.data() + first * padded), padded / 2},
                                              key_pairs.data() + d, D, seen / 2, sums);
                            for (int r = 0; r < ROWS; r++)
                                for (int half = 0; half < 2; half++) store(dqueries.data() + (first + r) * D + d + 16 * half, sums[r][half]);
                        }
                    }
                    write_rows(dqueries.data(), cos, sin, block, BLOCK, n.length, D, dq + queries_at, n.queries_step);
                    add_to_keys(weight_pairs.data(), padded, grad_pairs.data(), D, n_keys, dvalues.data());
                    add_to_keys(dscore_pairs.data(), padded, query_pairs.data(), D, n_keys, dkeys.data());
                }
            write_rows(dkeys.data(), cos, sin, 0, padded, n.length, D, dk + keys_at, n.keys_step);
            write_rows(dvalues.data(), nullptr, nullptr, 0, padded, n.length, D, dv + values_at, n.values_step);
        }
    }
}

}  // namespace

#endif

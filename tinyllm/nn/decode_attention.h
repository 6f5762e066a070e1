// The attention of one query per row to a cache.

#pragma once

#include "decode_products.h"

namespace {

struct Sizes { long batch, heads, key_heads, keys, key_size, value_size; };
struct Strides { long batch, head, key; };

// Multiplications, and bytes read, of the attention of all rows.
inline long products(const Sizes &n) { return n.batch * n.heads * n.keys * (n.key_size + n.value_size); }
template <class T> inline long read_bytes(const Sizes &n) {
    return n.batch * n.key_heads * n.keys * (n.key_size + n.value_size) * static_cast<long>(sizeof(T));
}

// What the query of a row and head sees of one buffer: its first `n` keys and values.
template <class T> struct Seen {
    const T *keys, *values;
    long key_step, value_step, n;
};

// The sum over the lanes of each of LANES vectors. All together take a third of the time of one after the other.
inline Lanes sums_of(Lanes a[LANES]) {
#if defined(__AVX512F__)
    for (int i = 0; i < 16; i += 2)  // lanes of two vectors take turns in every quarter
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[i], a[i + 1]), _mm512_unpackhi_ps(a[i], a[i + 1]));
    for (int i = 0; i < 16; i += 4) {  // a lane of each of four vectors in every quarter
        const __m512d two = _mm512_castps_pd(a[i]), next = _mm512_castps_pd(a[i + 2]);
        a[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(two, next)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(two, next)));
    }
    for (int i = 0; i < 16; i += 8)  // two quarters of four vectors, two of the next four
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[8], 0x88), _mm512_shuffle_f32x4(a[0], a[8], 0xdd));
#else
    float sums[LANES];
    for (long i = 0; i < LANES; i++) sums[i] = sum_of(a[i]);
    return load(sums);
#endif
}

// scores[s] = query · key s.
template <class T> inline void scores_of(const float *query, const Seen<T> &seen, long D, float *scores) {
    if (D % LANES == 0 && seen.n >= LANES) {
        for (long s = 0; s < seen.n; s += LANES) {
            const long first = s + LANES <= seen.n ? s : seen.n - LANES;  // the last ones, some of them once more
            Lanes products[LANES];
            for (long i = 0; i < LANES; i++) {
                const T *key = seen.keys + (first + i) * seen.key_step;
                products[i] = zero();
                for (long d = 0; d < D; d += LANES)
                    products[i] = add_product(load(key + d), load(query + d), products[i]);
            }
            store(scores + first, sums_of(products));
        }
        return;
    }
    for (long s = 0; s < seen.n; s++) {
        const T *key = seen.keys + s * seen.key_step;
        Lanes sums = zero();
        long d = 0;
        for (; d + LANES <= D; d += LANES) sums = add_product(load(key + d), load(query + d), sums);
        scores[s] = sum_of(sums);
        for (; d < D; d++) scores[s] += to_float(key[d]) * query[d];
    }
}

// e^x for x ≤ 0, within 2 units in the last place: 2^n · e^r with |r| ≤ ln(2)/2 and a polynomial for e^r (Cephes, expf).
// Free of branches, so that the compiler computes many at a time; std::exp would be a call for each.
inline float exp_of_negative(float x) {
    x = x < -87.0f ? -87.0f : x;  // NaN stays NaN
    float n = std::nearbyintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

// Softmax of n scores, in place; the array has room for a multiple of LANES. A NaN makes all of them so.
inline void softmax(float *scores, long n) {
    const long padded = (n + LANES - 1) / LANES * LANES;
    for (long s = n; s < padded; s++) scores[s] = -INFINITY;
    float largest[LANES], totals[LANES] = {};
    for (long l = 0; l < LANES; l++) largest[l] = -INFINITY;
    for (long s = 0; s < padded; s += LANES)
        for (long l = 0; l < LANES; l++) largest[l] = scores[s + l] > largest[l] ? scores[s + l] : largest[l];
    float most = -INFINITY;
    for (long l = 0; l < LANES; l++) most = largest[l] > most ? largest[l] : most;
    for (long s = 0; s < padded; s++) scores[s] = exp_of_negative(scores[s] - most);
    for (long s = n; s < padded; s++) scores[s] = 0;
    for (long s = 0; s < padded; s += LANES)
        for (long l = 0; l < LANES; l++) totals[l] += scores[s + l];
    const float share = 1 / sum_of(load(totals));
    for (long s = 0; s < padded; s++) scores[s] *= share;
}

// Adds Σ weights[s] · values[s] to the sums, even and odd s apart: a single sum would wait for itself.
template <long CHUNKS, class T>
inline void add_weighted(const T *values, long step, const float *weights, long n, Lanes sums[2][CHUNKS]) {
    long s = 0;
    for (; s + 2 <= n; s += 2)
        for (long odd = 0; odd < 2; odd++) {
            const Lanes weight = repeat(weights[s + odd]);
            for (long c = 0; c < CHUNKS; c++)
                sums[odd][c] = add_product(load(values + (s + odd) * step + c * LANES), weight, sums[odd][c]);
        }
    for (; s < n; s++)
        for (long c = 0; c < CHUNKS; c++)
            sums[0][c] = add_product(load(values + s * step + c * LANES), repeat(weights[s]), sums[0][c]);
}

template <long CHUNKS, class T>
inline void put_weighted(const Seen<T> *seen, int n_buffers, long first, const float *weights, T *out) {
    Lanes sums[2][CHUNKS];
    for (long c = 0; c < CHUNKS; c++) sums[0][c] = sums[1][c] = zero();
    for (int i = 0; i < n_buffers; weights += seen[i++].n)
        add_weighted<CHUNKS>(seen[i].values + first, seen[i].value_step, weights, seen[i].n, sums);
    for (long c = 0; c < CHUNKS; c++) {
        float sum[LANES];
        store(sum, add_product(sums[0][c], repeat(1.0f), sums[1][c]));
        for (long l = 0; l < LANES; l++) put(out + first + c * LANES + l, sum[l]);
    }
}

// softmax(query · keysᵀ) · values over all buffers together; `weights` has room for them and 2 · LANES more.
template <class T>
void attend_to(const Seen<T> *seen, int n_buffers, const float *query, long D, long E, float *weights, T *out) {
    long n = 0;
    for (int i = 0; i < n_buffers; n += seen[i++].n) scores_of(query, seen[i], D, weights + n);
    softmax(weights, n);
    long e = 0;  // in chunks whose sums stay in registers
    for (; e + 4 * LANES <= E; e += 4 * LANES) put_weighted<4>(seen, n_buffers, e, weights, out);
    for (; e + 2 * LANES <= E; e += 2 * LANES) put_weighted<2>(seen, n_buffers, e, weights, out);
    for (; e + LANES <= E; e += LANES) put_weighted<1>(seen, n_buffers, e, weights, out);
    for (; e < E; e++) {
        float sum = 0;
        const float *weight = weights;
        for (int i = 0; i < n_buffers; i++)
            for (long s = 0; s < seen[i].n; s++) sum += *weight++ * to_float(seen[i].values[s * seen[i].value_step + e]);
        put(out + e, sum);
    }
}

// softmax(scale · q·kᵀ)·v of every row and head, computed by all threads of a team, each of which calls this.
template <class T>
void attend(const T *q, const T *k, const T *v, T *out, const int64_t *first_keys, const Sizes &n,
            const Strides &k_strides, const Strides &v_strides, float scale) {
    const long D = n.key_size, E = n.value_size;
    std::vector<float> query(D), weights(n.keys + 2 * LANES);
// dynamic: rows may see different numbers of keys
#pragma omp for schedule(dynamic)
    for (long bh = 0; bh < n.batch * n.heads; bh++) {
        const long b = bh / n.heads, g = bh % n.heads / (n.heads / n.key_heads);
        const Seen<T> seen = {k + b * k_strides.batch + g * k_strides.head, v + b * v_strides.batch + g * v_strides.head,
                              k_strides.key, v_strides.key, first_keys ? first_keys[b] : n.keys};
        for (long d = 0; d < D; d++) query[d] = to_float(q[bh * D + d]) * scale;
        attend_to(&seen, 1, query.data(), D, E, weights.data(), out + bh * E);
    }
}

}  // namespace

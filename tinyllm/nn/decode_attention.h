// The attention of one query per row to the keys and values of a cache.

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

// Σ weights[s] · values[s] of E numbers. A template for the usual sizes, whose sums then stay in registers.
template <long CHUNKS, class T>
inline void weighted_sum(const T *values, long stride, const float *weights, long S, float *sum) {
    Lanes sums[CHUNKS];
    for (long c = 0; c < CHUNKS; c++) sums[c] = zero();
    for (long s = 0; s < S; s++) {
        Lanes weight = repeat(weights[s]);
        for (long c = 0; c < CHUNKS; c++) sums[c] = add_product(load(values + s * stride + c * LANES), weight, sums[c]);
    }
    for (long c = 0; c < CHUNKS; c++) store(sum + c * LANES, sums[c]);
}

template <class T>
inline void weighted_sum(const T *values, long stride, const float *weights, long S, long E, float *sum) {
    switch (E % LANES ? 0 : E / LANES) {
        case 1: return weighted_sum<1>(values, stride, weights, S, sum);
        case 2: return weighted_sum<2>(values, stride, weights, S, sum);
        case 4: return weighted_sum<4>(values, stride, weights, S, sum);
        case 8: return weighted_sum<8>(values, stride, weights, S, sum);
    }
    for (long e = 0; e < E; e++) sum[e] = 0;
    for (long s = 0; s < S; s++) {
        const T *value = values + s * stride;
        Lanes weight = repeat(weights[s]);
        long e = 0;
        for (; e + LANES <= E; e += LANES) store(&sum[e], add_product(load(value + e), weight, load(&sum[e])));
        for (; e < E; e++) sum[e] += to_float(value[e]) * weights[s];
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

// softmax(scale · q·kᵀ)·v of every row and head, computed by all threads of a team, each of which calls this.
template <class T>
void attend(const T *q, const T *k, const T *v, T *out, const int64_t *first_keys, const Sizes &n,
            const Strides &k_strides, const Strides &v_strides, float scale) {
    const long D = n.key_size, E = n.value_size;
    std::vector<float> query(D), weights(n.keys), sum(E);
// dynamic: rows may see different numbers of keys
#pragma omp for schedule(dynamic)
    for (long bh = 0; bh < n.batch * n.heads; bh++) {
        long b = bh / n.heads, g = bh % n.heads / (n.heads / n.key_heads);
        const long S = first_keys ? first_keys[b] : n.keys;
        const T *keys = k + b * k_strides.batch + g * k_strides.head;
        const T *values = v + b * v_strides.batch + g * v_strides.head;
        for (long d = 0; d < D; d++) query[d] = to_float(q[bh * D + d]) * scale;
        float largest = -INFINITY;
        for (long s = 0; s < S; s++) {
            const T *key = keys + s * k_strides.key;
            Lanes sums = zero();
            long d = 0;
            for (; d + LANES <= D; d += LANES) sums = add_product(load(key + d), load(&query[d]), sums);
            weights[s] = sum_of(sums);
            for (; d < D; d++) weights[s] += to_float(key[d]) * query[d];
            largest = weights[s] > largest || weights[s] != weights[s] ? weights[s] : largest;
        }
        float *w = weights.data();
        for (long s = 0; s < S; s++) w[s] = exp_of_negative(w[s] - largest);
        float total = 0;
        for (long s = 0; s < S; s++) total += w[s];
        const float share = 1 / total;
        for (long s = 0; s < S; s++) w[s] *= share;
        weighted_sum(values, v_strides.key, w, S, E, sum.data());
        for (long e = 0; e < E; e++) put(out + bh * E + e, sum[e]);
    }
}

}  // namespace

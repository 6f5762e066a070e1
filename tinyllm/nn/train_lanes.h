// Vectors of fp32 numbers for training: exponentials, and bf16 on the way in and out.

#pragma once

#include <omp.h>

#include "decode_lanes.h"

namespace {

inline Lanes plus(Lanes a, Lanes b) { return add_product(a, repeat(1.0f), b); }
inline Lanes times(Lanes a, Lanes b) { return add_product(a, b, zero()); }

#if defined(__AVX512F__)
inline Lanes largest_of(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
inline float largest_in(Lanes a) { return _mm512_reduce_max_ps(a); }
inline Lanes reciprocal(Lanes a) {  // an estimate of 14 bits, and a step of Newton's method
    const Lanes r = _mm512_rcp14_ps(a);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(2.0f)));
}
inline Lanes complement_if_positive(Lanes a, Lanes sign) {  // a where sign < 0, else 1 − a
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(sign, zero(), _CMP_LT_OQ), _mm512_sub_ps(repeat(1.0f), a), a);
}

// e^x within 2 units in the last place, 0 below −104: 2^n · e^r with |r| ≤ ln(2)/2 and a polynomial (Cephes, expf).
inline Lanes exp_of(Lanes x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // in this order NaN stays NaN
    const Lanes n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    Lanes r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    Lanes p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}
#else
template <class F> inline Lanes each(Lanes a, F function) {
    float x[LANES];
    store(x, a);
    for (long l = 0; l < LANES; l++) x[l] = function(x[l]);
    return load(x);
}
inline Lanes exp_of(Lanes x) { return each(x, [](float v) { return std::exp(v); }); }
inline Lanes reciprocal(Lanes a) { return each(a, [](float v) { return 1 / v; }); }
inline Lanes complement_if_positive(Lanes a, Lanes sign) {
    float x[LANES], s[LANES];
    store(x, a);
    store(s, sign);
    for (long l = 0; l < LANES; l++) x[l] = s[l] < 0 ? x[l] : 1 - x[l];
    return load(x);
}
inline Lanes largest_of(Lanes a, Lanes b) {
    float x[LANES], y[LANES];
    store(x, a);
    store(y, b);
    for (long l = 0; l < LANES; l++) x[l] = x[l] > y[l] ? x[l] : y[l];
    return load(x);
}
inline float largest_in(Lanes a) {
    float x[LANES], most = -INFINITY;
    store(x, a);
    for (long l = 0; l < LANES; l++) most = x[l] > most ? x[l] : most;
    return most;
}
#endif

inline void store_as(float *p, Lanes a) { store(p, a); }
inline void store_as(uint16_t *p, Lanes a) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), (__m256i)_mm512_cvtneps_pbh(a));
#else
    float x[LANES];
    store(x, a);
    for (long l = 0; l < LANES; l++) put(p + l, x[l]);
#endif
}

}  // namespace

// Vectors of fp32 numbers, as wide as the processor has them, and conversions.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr long LANES = 16;
typedef __m512 Lanes;
inline Lanes zero() { return _mm512_setzero_ps(); }
inline Lanes load(const float *p) { return _mm512_loadu_ps(p); }
inline Lanes load(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Lanes load(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}
inline Lanes add_product(Lanes a, Lanes b, Lanes sum) { return _mm512_fmadd_ps(a, b, sum); }
inline Lanes repeat(float value) { return _mm512_set1_ps(value); }
inline void store(float *p, Lanes a) { _mm512_storeu_ps(p, a); }
#elif defined(__AVX2__) && defined(__FMA__)
constexpr long LANES = 8;
typedef __m256 Lanes;
inline Lanes zero() { return _mm256_setzero_ps(); }
inline Lanes load(const float *p) { return _mm256_loadu_ps(p); }
inline Lanes load(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Lanes load(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
inline Lanes add_product(Lanes a, Lanes b, Lanes sum) { return _mm256_fmadd_ps(a, b, sum); }
inline Lanes repeat(float value) { return _mm256_set1_ps(value); }
inline void store(float *p, Lanes a) { _mm256_storeu_ps(p, a); }
#else
constexpr long LANES = 8;
struct Lanes { float of[LANES]; };
inline float widened(float value) { return value; }
inline float widened(int8_t value) { return value; }
inline float widened(uint16_t value) {
    uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}
inline Lanes repeat(float value) {
    Lanes a;
    for (long i = 0; i < LANES; i++) a.of[i] = value;
    return a;
}
inline Lanes zero() { return repeat(0); }
template <class T> inline Lanes load(const T *p) {
    Lanes a;
    for (long i = 0; i < LANES; i++) a.of[i] = widened(p[i]);
    return a;
}
inline Lanes add_product(Lanes a, Lanes b, Lanes sum) {
    for (long i = 0; i < LANES; i++) sum.of[i] += a.of[i] * b.of[i];
    return sum;
}
inline void store(float *p, Lanes a) { std::memcpy(p, a.of, sizeof a.of); }
#endif

inline float sum_of(Lanes a) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(a);
#else
    float parts[LANES];
    store(parts, a);
    for (long half = LANES / 2; half; half /= 2)
        for (long i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
#endif
}

inline float to_float(float value) { return value; }
inline float to_float(uint16_t value) {
    uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}
inline void put(float *p, float value) { *p = value; }
inline void put(uint16_t *p, float value) {  // to the nearest bf16, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    *p = value != value ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

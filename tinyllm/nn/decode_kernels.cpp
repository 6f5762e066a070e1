// Kernels for decoding on a CPU: products of few rows, and the attention of one query to a cache.
// Built and called by decode_kernels.py, which documents them.
//
// Decoding reads every weight once per token and computes little with it, so a kernel must read weights at the speed of
// the memory. Each thread reads its share of the matrix row by row, and multiplies a row with all inputs while it is in
// the thread's cache. int8 weights become fp32 in registers; sums are fp32.
//
// An output is summed in the same order whatever the number of inputs and threads: its bits do not depend on them.

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

template <class T, class X, class Y>
void linear(const T *w, const float *scale, const float *bias, const X *x, Y *y, long n_rows, long n_out, long n_in,
            int threads) {
    const long row_bytes = n_in * static_cast<long>(sizeof(T));
    threads = threads_for(n_out * row_bytes, n_rows * n_out * n_in, threads);
    long block = BLOCK_BYTES / row_bytes, share = n_out / (4 * threads);  // several blocks for each thread
    block = block > share ? share : block;
    block = block < MOST_OUTS ? MOST_OUTS : block / MOST_OUTS * MOST_OUTS;
    const long n_blocks = (n_out + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
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
    }
}

struct Sizes { long batch, heads, key_heads, keys, key_size, value_size; };
struct Strides { long batch, head, key; };

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

template <class T>
void attend(const T *q, const T *k, const T *v, T *out, const int64_t *first_keys, const Sizes &n,
            const Strides &k_strides, const Strides &v_strides, float scale, int threads) {
    const long D = n.key_size, E = n.value_size;
    const long read = n.batch * n.key_heads * n.keys * (D + E) * static_cast<long>(sizeof(T));
    threads = threads_for(read, n.batch * n.heads * n.keys * (D + E), threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
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
}

#if defined(__AVX512VNNI__)
// int8 weights and bf16 inputs: inputs become 16-bit fixed-point numbers relative to the largest of their row, which the
// processor multiplies as two bytes in integers. An input is off by at most 2⁻¹⁶ of the largest; sums are exact.
void linear(const int8_t *w, const float *scale, const float *bias, const uint16_t *x, uint16_t *y, long n_rows,
            long n_out, long n_in, int threads) {
    const long padded = (n_in + 63) / 64 * 64, whole = n_in / 64 * 64;
    std::vector<uint8_t> bytes(2 * n_rows * padded);  // of each row the high bytes, then the low ones
    std::vector<float> steps(n_rows);
    for (long r = 0; r < n_rows; r++) {
        float largest = 0;
        bool finite = true;
        for (long i = 0; i < n_in; i++) {
            float size = std::fabs(to_float(x[r * n_in + i]));
            largest = size > largest ? size : largest;
            finite &= size < INFINITY;  // false for NaN
        }
        steps[r] = finite ? largest / 32767 : NAN;
        float per_step = finite && largest > 0 ? 32767 / largest : 0;
        uint8_t *high = &bytes[2 * r * padded], *low = high + padded;
        for (long i = 0; i < n_in; i++) {
            int value = (finite ? static_cast<int>(std::lrint(to_float(x[r * n_in + i]) * per_step)) : 0) + 32768;
            high[i] = static_cast<uint8_t>(value >> 8);
            low[i] = static_cast<uint8_t>(value & 255);
        }
    }
    threads = threads_for(n_out * n_in, n_rows * n_out * n_in, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long o = 0; o < n_out; o++) {
        const int8_t *row = w + o * n_in;
        int8_t last[64] = {};
        std::memcpy(last, row + whole, n_in - whole);
        const __m512i ones = _mm512_set1_epi8(1);
        for (long r = 0; r < n_rows; r++) {
            const uint8_t *high = &bytes[2 * r * padded], *low = high + padded;
            __m512i highs = _mm512_setzero_si512(), lows = highs, weights_sum = highs;
            for (long i = 0; i < padded; i += 64) {
                __m512i weights = _mm512_loadu_si512(i < whole ? row + i : last);
                highs = _mm512_dpbusd_epi32(highs, _mm512_loadu_si512(high + i), weights);
                lows = _mm512_dpbusd_epi32(lows, _mm512_loadu_si512(low + i), weights);
                weights_sum = _mm512_dpbusd_epi32(weights_sum, ones, weights);
            }
            long long sum = 256LL * _mm512_reduce_add_epi32(highs) + _mm512_reduce_add_epi32(lows) -
                            32768LL * _mm512_reduce_add_epi32(weights_sum);
            float value = static_cast<float>(sum) * steps[r] * (scale ? scale[o] : 1.0f);
            put(y + r * n_out + o, bias ? value + bias[o] : value);
        }
    }
}
#else
// int8 weights become fp32, so bf16 inputs do as well, once for all rows of the matrix.
void linear(const int8_t *w, const float *scale, const float *bias, const uint16_t *x, uint16_t *y, long n_rows,
            long n_out, long n_in, int threads) {
    std::vector<float> widened(n_rows * n_in);
    for (long i = 0; i < n_rows * n_in; i++) widened[i] = to_float(x[i]);
    linear(w, scale, bias, widened.data(), y, n_rows, n_out, n_in, threads);
}
#endif

}  // namespace

#define LINEAR(NAME, T, X)                                                                                           \
    extern "C" void NAME(const T *w, const float *scale, const float *bias, const X *x, X *y, long n_rows,           \
                         long n_out, long n_in, int threads) {                                                       \
        linear(w, scale, bias, x, y, n_rows, n_out, n_in, threads);                                                  \
    }

LINEAR(linear_float32_float32, float, float)
LINEAR(linear_bfloat16_bfloat16, uint16_t, uint16_t)
LINEAR(linear_int8_float32, int8_t, float)
LINEAR(linear_int8_bfloat16, int8_t, uint16_t)

#define ATTEND(NAME, T)                                                                                              \
    extern "C" void NAME(const T *q, const T *k, const T *v, T *out, const int64_t *first_keys, long batch,          \
                         long heads, long key_heads, long keys, long key_size, long value_size, long k_batch,        \
                         long k_head, long k_key, long v_batch, long v_head, long v_key, float scale, int threads) { \
        attend(q, k, v, out, first_keys, {batch, heads, key_heads, keys, key_size, value_size},                      \
               {k_batch, k_head, k_key}, {v_batch, v_head, v_key}, scale, threads);                                  \
    }

ATTEND(attend_float32, float)
ATTEND(attend_bfloat16, uint16_t)

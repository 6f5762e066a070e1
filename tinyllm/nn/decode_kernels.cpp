// Kernels for decoding on a CPU: products of few rows, the attention of one query to a cache, and whole steps of a model.
// Built and called by decode_kernels.py, decode_step.py and step_recorder.py, which document them.

#include "decode_step.h"

#define LINEAR(NAME, T, X)                                                                                           \
    extern "C" void NAME(const T *w, const float *scale, const float *bias, const X *x, X *y, long n_rows,           \
                         long n_out, long n_in, int threads) {                                                       \
        threads = threads_for(n_out * n_in * static_cast<long>(sizeof(T)), n_rows * n_out * n_in, threads);          \
        _Pragma("omp parallel num_threads(threads) if (threads > 1)")                                                \
        linear(w, scale, bias, x, y, nullptr, n_rows, n_out, n_in);                                                  \
    }

LINEAR(linear_float32_float32, float, float)
LINEAR(linear_bfloat16_bfloat16, uint16_t, uint16_t)
LINEAR(linear_int8_float32, int8_t, float)
LINEAR(linear_int8_bfloat16, int8_t, uint16_t)

#define LINEAR_PACKED(NAME, T)                                                                                       \
    extern "C" void NAME(const T *panels, const float *bias, const T *x, T *y, long n_rows, long n_out, long n_in,   \
                         int threads) {                                                                              \
        threads = threads_for(n_out * n_in * static_cast<long>(sizeof(T)), n_rows * n_out * n_in, threads);          \
        _Pragma("omp parallel num_threads(threads) if (threads > 1)")                                                \
        linear_packed(panels, bias, x, y, nullptr, n_rows, n_out, n_in);                                             \
    }

LINEAR_PACKED(linear_packed_float32, float)
LINEAR_PACKED(linear_packed_bfloat16, uint16_t)

// Outputs of a panel, and inputs that are stored together.
extern "C" int panel_size() { return PANEL; }
extern "C" int packed_inputs_float32() { return Packed<float>::STEP; }
extern "C" int packed_inputs_bfloat16() { return Packed<uint16_t>::STEP; }

#define ATTEND(NAME, T)                                                                                              \
    extern "C" void NAME(const T *q, const T *k, const T *v, T *out, const int64_t *first_keys, long batch,          \
                         long heads, long key_heads, long keys, long key_size, long value_size, long k_batch,        \
                         long k_head, long k_key, long v_batch, long v_head, long v_key, float scale, int threads) { \
        const Sizes sizes = {batch, heads, key_heads, keys, key_size, value_size};                                   \
        threads = threads_for(read_bytes<T>(sizes), products(sizes), threads);                                       \
        _Pragma("omp parallel num_threads(threads) if (threads > 1)")                                                \
        attend(q, k, v, out, first_keys, sizes, {k_batch, k_head, k_key}, {v_batch, v_head, v_key}, scale);          \
    }

ATTEND(attend_float32, float)
ATTEND(attend_bfloat16, uint16_t)

#define STEP(NAME, T)                                                                                                \
    extern "C" long NAME(const Op *ops, long n_ops, const LayerCache *caches, long first_row, const int64_t *rows,   \
                         const int64_t *shared_rows, const int64_t *shared_lengths, const int64_t *ids,              \
                         const int64_t *lengths, long tokens, long n_vectors, char *workspace, int threads) {        \
        const Inputs inputs = {caches,  first_row, rows,      shared_rows, shared_lengths, ids,                      \
                               lengths, tokens,    n_vectors, workspace};                                            \
        return step<T>(ops, n_ops, inputs, threads);                                                                 \
    }

STEP(step_float32, float)
STEP(step_bfloat16, uint16_t)

extern "C" int size_of_op() { return sizeof(Op); }
extern "C" int size_of_layer_cache() { return sizeof(LayerCache); }

// Kernels for training on a CPU: norms, GELU, the loss and attention, each in one pass over memory.
// Built and called by train_kernels.py, which documents them.

#include "train_attention.h"
#include "train_elementwise.h"
#include "train_head.h"

extern "C" {

void rms_norm_bfloat16(const float *x, const float *weight, uint16_t *y, float *scale, long n_rows, long size, float eps,
                       int threads) {
    rms_norm(x, weight, y, scale, n_rows, size, eps, threads);
}

void rms_norm_backward_bfloat16(const uint16_t *grad, const float *x, const float *weight, const float *scale, float *dx,
                                float *dweights, long n_rows, long size, int threads) {
    rms_norm_backward(grad, x, weight, scale, dx, dweights, n_rows, size, threads);
}

long part_rows() { return PART_ROWS; }
long lanes() { return LANES; }

void gelu_bfloat16(const uint16_t *grad, const uint16_t *x, uint16_t *y, long n, int threads) { gelu(grad, x, y, n, threads); }

void softmax_loss_bfloat16(uint16_t *logits, const int64_t *targets, float *losses, long n_rows, long n_vocab, long width,
                           int threads) {
    softmax_loss(logits, targets, losses, n_rows, n_vocab, width, threads);
}

#if defined(__AVX512BF16__)
int has_products() { return 1; }

void pack_head_float32(const float *matrix, uint32_t *panels, long n_rows, long size, int threads) {
    pack_head(matrix, panels, n_rows, size, threads);
}

void logits_bfloat16(const uint16_t *x, const uint32_t *panels, uint16_t *y, long n_rows, long n_out, long size, int threads) {
    logits(x, panels, y, n_rows, n_out, size, threads);
}

void attention_forward_bfloat16(const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *cos, const float *sin,
                                uint16_t *out, float *logsumexp, long batch, long length, long heads, long key_heads,
                                long size, long queries_step, long keys_step, long values_step, float scale, int threads) {
    attention_forward({batch, length, heads, key_heads, size, queries_step, keys_step, values_step, scale}, q, k, v, cos,
                      sin, out, logsumexp, threads);
}

void attention_backward_bfloat16(const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *cos,
                                 const float *sin, const uint16_t *out, const float *logsumexp, const uint16_t *grad,
                                 uint16_t *dq, uint16_t *dk, uint16_t *dv, long batch, long length, long heads,
                                 long key_heads, long size, long queries_step, long keys_step, long values_step,
                                 float scale, int threads) {
    attention_backward({batch, length, heads, key_heads, size, queries_step, keys_step, values_step, scale}, q, k, v, cos,
                       sin, out, logsumexp, grad, dq, dk, dv, threads);
}
#else
int has_products() { return 0; }
#endif
}

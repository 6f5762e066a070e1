// The next tokens of every row through all layers of a model, in one call: step_recorder.py records the operations.
// A row may get several: the piece of a prompt. Each is a vector like the tokens of other rows, and the order of all sums
// is the same, so its bits depend neither on them nor on how a prompt is cut.
//
// One team of threads runs all operations. Every operation is divided among them and ends with a barrier, which costs
// less than a microsecond; as separate calls from Python they cost many times that.
//
// The residual stream is fp32. What products read and write has type T, rounded where the model's own layers round.

#pragma once

#include "decode_attention.h"
#include "decode_panels.h"

namespace {

enum Kind : long { EMBED, NORM, LINEAR, HEADS, ATTEND, ACTIVATE, GATE };
enum MatrixForm : long { PLAIN, INT8, PACKED };

struct Op {
    long kind;
    const void *weight;  // EMBED: token table. NORM, HEADS: weights of the norm, of queries. LINEAR: matrix
    const float *scale;  // LINEAR: of int8 rows. HEADS: norm weights of keys
    const float *bias;   // EMBED: position table
    const float *cos, *sin;  // HEADS: (positions, size)
    long source, target;     // offset of a buffer for one row, in bytes
    long stream;             // LINEAR: offset of the residual stream that outputs are added to; −1: none
    long n_in, n_out;
    long heads, key_heads, layer;
    long variant;  // NORM: 1 subtracts the mean. LINEAR: the form of the matrix. ACTIVATE, GATE: the activation
    long is_fp32;  // NORM: the output is fp32
    double eps;    // NORM, HEADS. ATTEND: factor on the scores
};

// The cache of a layer: slot of position p is p, or in the ring behind the sinks once the slots are filled.
struct LayerCache {
    char *keys, *values;
    Strides key_strides, value_strides;  // in numbers
    long slots, window, sinks;
    char *shared_keys, *shared_values;  // of other rows, that these rows begin with; null: none
    Strides shared_strides;             // of both
};

struct Inputs {
    const LayerCache *caches;
    long first_row;  // of the caches
    // Where rows begin with the same positions: the row of each in the caches, the other row that it begins with, and how
    // many positions that has. Null: row r is row first_row + r.
    const int64_t *rows, *shared_rows, *shared_lengths;
    const int64_t *ids, *lengths;  // of every vector; positions filled in every row
    long tokens;                   // of each row: vector v is token v % tokens of row v / tokens
    long n_vectors;
    char *workspace;
    template <class T> T *buffer(long offset) const { return reinterpret_cast<T *>(workspace + offset * n_vectors); }
    long row(long v) const { return rows ? rows[v / tokens] : first_row + v / tokens; }
    long shared(long v) const { return rows ? shared_lengths[v / tokens] : 0; }
    long position(long v) const { return lengths[v / tokens] + v % tokens; }
};

inline long slot_of(const LayerCache &cache, long position) {
    return position < cache.slots ? position : cache.sinks + (position - cache.sinks) % cache.window;
}

inline float sigmoid(float x) {
    float e = exp_of_negative(-std::fabs(x));
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}
inline float tanh_of(float x) {
    float e = exp_of_negative(-2.0f * std::fabs(x));
    return std::copysign((1.0f - e) / (1.0f + e), x);
}
// Within 1.4e-7: 1 − e^(−Q(|x|)), where the polynomial Q is fitted to −ln(erfc) on [0, 4]; beyond, erf rounds to ±1.
inline float erf_of(float x) {
    float t = std::fabs(x);
    t = t < 4.0f ? t : 4.0f;
    float q = -8.043842172e-06f;
    q = q * t + 1.060268260e-04f;
    q = q * t - 5.879513337e-04f;
    q = q * t + 1.576761366e-03f;
    q = q * t - 5.878277079e-05f;
    q = q * t - 1.921714284e-02f;
    q = q * t + 1.027992070e-01f;
    q = q * t + 6.366161108e-01f;
    q = q * t + 1.128379345e+00f;
    return std::copysign(1.0f - exp_of_negative(-q * t), x);
}

inline float gelu(float x) { return 0.5f * x * (1.0f + erf_of(x * 0.707106781f)); }
inline float gelu_tanh(float x) { return 0.5f * x * (1.0f + tanh_of(0.797884561f * (x + 0.044715f * x * x * x))); }

void activate(float *x, long n, long activation) {
    switch (activation) {  // a loop for each, so that it is computed many at a time
        case 0: for (long i = 0; i < n; i++) x[i] = gelu(x[i]); break;
        case 1: for (long i = 0; i < n; i++) x[i] = gelu_tanh(x[i]); break;
        case 2: for (long i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i]; break;  // NaN stays NaN
        case 3: for (long i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i] * x[i]; break;
        case 4: for (long i = 0; i < n; i++) x[i] = x[i] * sigmoid(x[i]); break;
        case 5: for (long i = 0; i < n; i++) x[i] = sigmoid(x[i]); break;
    }
}

constexpr long CHUNK = 512;  // numbers of a row that a thread takes at a time

// The activation of n_out numbers of each row, times the numbers n_out further on if they are gates.
template <class T> void activate(const Op &op, const Inputs &inputs) {
    const T *x = inputs.buffer<T>(op.source);
    T *y = inputs.buffer<T>(op.target);
    const long chunks = (op.n_out + CHUNK - 1) / CHUNK;
#pragma omp for schedule(static)
    for (long i = 0; i < inputs.n_vectors * chunks; i++) {
        const long r = i / chunks, first = i % chunks * CHUNK;
        const long n = op.n_out - first < CHUNK ? op.n_out - first : CHUNK;
        const T *in = x + r * op.n_in + first;
        T *out = y + r * op.n_out + first;
        float values[CHUNK];
        for (long j = 0; j < n; j++) values[j] = to_float(in[j]);
        activate(values, n, op.variant);
        for (long j = 0; j < n; j++) put(out + j, values[j]);
        if (op.kind == GATE)
            for (long j = 0; j < n; j++) put(out + j, to_float(out[j]) * to_float(in[op.n_out + j]));
    }
}

// Σ f(x), in the order of the lanes.
template <class F> inline float sum_over(const float *x, long n, F square_of) {
    Lanes sums = zero();
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        float values[LANES];
        for (long j = 0; j < LANES; j++) values[j] = square_of(x[i + j]);
        sums = add_product(load(values), repeat(1.0f), sums);
    }
    float sum = sum_of(sums);
    for (; i < n; i++) sum += square_of(x[i]);
    return sum;
}

template <class Y> inline void rms_norm(const float *x, const float *weight, Y *y, long n, float eps) {
    float squares = sum_over(x, n, [](float value) { return value * value; });
    float factor = 1.0f / std::sqrt(squares / n + eps);
    for (long i = 0; i < n; i++) put(y + i, x[i] * factor * weight[i]);
}

template <class Y>
inline void layer_norm(const float *x, const float *weight, const float *bias, Y *y, long n, float eps) {
    float mean = sum_over(x, n, [](float value) { return value; }) / n;
    float variance = sum_over(x, n, [mean](float value) { return (value - mean) * (value - mean); }) / n;
    float factor = 1.0f / std::sqrt(variance + eps);
    for (long i = 0; i < n; i++) put(y + i, (x[i] - mean) * factor * weight[i] + (bias ? bias[i] : 0.0f));
}

template <class Y> void norm(const Op &op, const Inputs &inputs) {
    const float *weight = static_cast<const float *>(op.weight), *x = inputs.buffer<float>(op.source);
    const float eps = static_cast<float>(op.eps);
    Y *y = inputs.buffer<Y>(op.target);
#pragma omp for schedule(static)
    for (long r = 0; r < inputs.n_vectors; r++)
        if (op.variant)
            layer_norm(x + r * op.n_out, weight, op.bias, y + r * op.n_out, op.n_out, eps);
        else
            rms_norm(x + r * op.n_out, weight, y + r * op.n_out, op.n_out, eps);
}

// Queries, keys and values of every row: queries and keys are normed and rotated; queries go to the target, keys and
// values to the cache.
template <class T> void heads(const Op &op, const Inputs &inputs) {
    const LayerCache &cache = inputs.caches[op.layer];
    const long D = op.n_out, H = op.heads, G = op.key_heads, n_heads = H + 2 * G;
    const T *x = inputs.buffer<T>(op.source);
    T *queries = inputs.buffer<T>(op.target), *keys = reinterpret_cast<T *>(cache.keys);
    T *values = reinterpret_cast<T *>(cache.values);
    std::vector<float> head(D), turned(D);
    std::vector<T> normed(D);
#pragma omp for schedule(static)
    for (long i = 0; i < inputs.n_vectors * n_heads; i++) {
        const long r = i / n_heads, h = i % n_heads, row = inputs.row(r);
        const long position = inputs.position(r), slot = slot_of(cache, position - inputs.shared(r));
        const T *in = x + i * D;
        if (h >= H + G) {
            const Strides &n = cache.value_strides;
            std::memcpy(values + row * n.batch + (h - H - G) * n.head + slot * n.key, in, D * sizeof(T));
            continue;
        }
        const Strides &n = cache.key_strides;
        T *out = h < H ? queries + (r * H + h) * D : keys + row * n.batch + (h - H) * n.head + slot * n.key;
        const float *weight = h < H ? static_cast<const float *>(op.weight) : op.scale;
        if (weight) {
            for (long d = 0; d < D; d++) head[d] = to_float(in[d]);
            rms_norm(head.data(), weight, normed.data(), D, static_cast<float>(op.eps));
            in = normed.data();
        }
        if (!op.cos) {
            std::memcpy(out, in, D * sizeof(T));
            continue;
        }
        const float *cos = op.cos + position * D, *sin = op.sin + position * D;
        for (long d = 0; d < D / 2; d++) {
            float a = to_float(in[d]), b = to_float(in[d + D / 2]);
            put(out + d, a * cos[d] + b * sin[d]);
            put(out + d + D / 2, b * cos[d + D / 2] + a * sin[d + D / 2]);
        }
    }
}

template <class T> void attend(const Op &op, const Inputs &inputs) {
    const LayerCache &cache = inputs.caches[op.layer];
    const long D = op.n_out, H = op.heads;
    long longest = 0;
    for (long r = 0; r < inputs.n_vectors; r++) longest = inputs.position(r) > longest ? inputs.position(r) : longest;
    std::vector<float> query(D), weights(longest + 1 + 2 * LANES);
// dynamic: rows see different numbers of keys. Head by head, since all tokens of a row read the same keys.
#pragma omp for schedule(dynamic)
    for (long i = 0; i < inputs.n_vectors * H; i++) {
        const long n = inputs.tokens, h = i / n % H, r = i / (n * H) * n + i % n, rh = r * H + h;
        const long g = h / (H / op.key_heads), row = inputs.row(r), shared = inputs.shared(r);
        const long place = inputs.position(r) - shared;
        const auto at = [](char *buffer, const Strides &n, long row, long g) {
            return reinterpret_cast<const T *>(buffer) + row * n.batch + g * n.head;
        };
        // Slots that hold a position are the first ones, in a ring too, and the query sees all of them.
        Seen<T> seen[2] = {{nullptr, nullptr, 0, 0, shared},
                           {at(cache.keys, cache.key_strides, row, g), at(cache.values, cache.value_strides, row, g),
                            cache.key_strides.key, cache.value_strides.key, place < cache.slots ? place + 1 : cache.slots}};
        const T *q = inputs.buffer<T>(op.source) + rh * D;
        for (long d = 0; d < D; d++) query[d] = to_float(q[d]) * static_cast<float>(op.eps);
        T *out = inputs.buffer<T>(op.target) + rh * D;
        if (!shared) {
            attend_to(seen + 1, 1, query.data(), D, D, weights.data(), out);
            continue;
        }
        const Strides &strides = cache.shared_strides;
        const long beginning = inputs.shared_rows[r / n];
        seen[0].keys = at(cache.shared_keys, strides, beginning, g);
        seen[0].values = at(cache.shared_values, strides, beginning, g);
        seen[0].key_step = seen[0].value_step = strides.key;
        attend_to(seen, 2, query.data(), D, D, weights.data(), out);
    }
}

void embed(const Op &op, const Inputs &inputs) {
    const float *table = static_cast<const float *>(op.weight);
    float *x = inputs.buffer<float>(op.target);
#pragma omp for schedule(static)
    for (long r = 0; r < inputs.n_vectors; r++) {
        const float *token = table + inputs.ids[r] * op.n_out;
        const float *position = op.bias ? op.bias + inputs.position(r) * op.n_out : nullptr;
        for (long i = 0; i < op.n_out; i++) x[r * op.n_out + i] = token[i] + (position ? position[i] : 0.0f);
    }
}

template <class T> void linear(const Op &op, const Inputs &inputs) {
    float *stream = op.stream < 0 ? nullptr : inputs.buffer<float>(op.stream);
    const T *x = inputs.buffer<T>(op.source);
    T *y = inputs.buffer<T>(op.target);
    if (op.variant == PACKED)
        linear_packed(static_cast<const T *>(op.weight), op.bias, x, y, stream, inputs.n_vectors, op.n_out, op.n_in);
    else if (op.variant == INT8)
        linear(static_cast<const int8_t *>(op.weight), op.scale, op.bias, x, y, stream, inputs.n_vectors, op.n_out, op.n_in);
    else
        linear(static_cast<const T *>(op.weight), op.scale, op.bias, x, y, stream, inputs.n_vectors, op.n_out, op.n_in);
}

template <class T> void run(const Op &op, const Inputs &inputs) {
    switch (op.kind) {
        case EMBED: return embed(op, inputs);
        case NORM: return op.is_fp32 ? norm<float>(op, inputs) : norm<T>(op, inputs);
        case LINEAR: return linear<T>(op, inputs);
        case HEADS: return heads<T>(op, inputs);
        case ATTEND: return attend<T>(op, inputs);
        case ACTIVATE:
        case GATE: return activate<T>(op, inputs);
    }
}

// Run all operations. Returns −1, or the first vector whose token is not in the table; then nothing is written.
template <class T> long step(const Op *ops, long n_ops, const Inputs &inputs, int threads) {
    long most_bytes = 0, most_products = 0;
    for (long i = 0; i < n_ops; i++) {
        const Op &op = ops[i];
        const long numbers = op.kind == LINEAR ? op.n_in * op.n_out : 0;
        const long bytes = numbers * static_cast<long>(op.variant == INT8 ? 1 : sizeof(T));
        most_bytes = bytes > most_bytes ? bytes : most_bytes;
        most_products = numbers * inputs.n_vectors > most_products ? numbers * inputs.n_vectors : most_products;
        for (long r = 0; op.kind == EMBED && r < inputs.n_vectors; r++)
            if (inputs.ids[r] < 0 || inputs.ids[r] >= op.n_in) return r;
    }
    threads = threads_for(most_bytes, most_products, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (long i = 0; i < n_ops; i++) run<T>(ops[i], inputs);
    return -1;
}

}  // namespace

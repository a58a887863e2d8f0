/* A model of the Llama shape and one call of it; athanor/engine/native/library.py mirrors these structures. */
#ifndef ATHANOR_STEP_H
#define ATHANOR_STEP_H

#include "kernels.h"

/* Gains, and biases within a Matrix, are fp32 and followed by zeros up to the next multiple of 32. */
typedef struct {
    Matrix query, key, value, output, gate, up, down;
    const float *attention_norm, *mlp_norm, *query_norm, *key_norm; /* the last two may be null */
    float epsilon;
    int32_t window, turned, unused; /* turned: numbers of each head that rotary positions turn, halves against each other */
} Layer;

typedef struct {
    Matrix embedding, head;
    const Layer *layers;
    const float *norm;
    float epsilon, score_scale;
    int32_t d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, cached, max_seq_len; /* cached: CACHE_… */
    int32_t wide; /* activations of 16 bits instead of 8 */
} Model;

typedef struct { int32_t first, count, start, blocks; } Segment; /* blocks: where its list begins in Job.blocks */

typedef struct {
    const int32_t *tokens, *blocks, *wanted; /* wanted: rows that need logits, in order */
    const Segment *segments;
    const float *cosine, *sine; /* [position][angles] */
    uint8_t *cache;
    float *logits;
    int64_t block_bytes;
    int32_t rows, n_segments, n_wanted, angles;
} Job;

typedef struct Context Context;

#if defined(__GNUC__)
#define PUBLIC __attribute__((visibility("default")))
#else
#define PUBLIC
#endif

/* Of an instruction set, as `athanor_best` numbers them. */
const Kernels *athanor_kernels(int32_t level);
/* 0 scalar, 1 AVX2, 2 AVX-512 with VNNI: the best that processor and system support. */
PUBLIC int32_t athanor_best(void);
/* sizeof of Matrix, Layer, Model, Segment, Job. */
PUBLIC void athanor_sizes(int32_t *sizes);
/* max_rows: of any job. Null when there is no memory. The model must outlive the context. */
PUBLIC Context *athanor_open(const Model *model, int32_t threads, int32_t level, int32_t max_rows);
PUBLIC void athanor_close(Context *context);
/* Writes keys and values of the job's rows into the cache, and the logits of those wanted. One caller at a time. */
PUBLIC void athanor_forward(Context *context, const Job *job);
/* out (rows × matrix->rows) = x (rows × columns) · matrixᵀ, by one instruction set. wide: activations of 16 bits instead of 8.
   0, or 1 without memory. */
PUBLIC int32_t athanor_product(int32_t level, const Matrix *matrix, int32_t wide, const float *x, int32_t rows, float *out);

#endif

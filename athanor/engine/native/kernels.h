/* What the translation units share: the packed matrix, rows of activations, and the table of functions that each
   instruction set fills in.

   Every function has one numerical definition, written with IEEE operations in a fixed order (fused multiply-adds are
   explicit, contraction is off), so all instruction sets give the same bits. Sums over columns run from the first to the
   last in each output's own lane; nothing is ever summed across lanes except where `v_sum` says in which order. */
#ifndef ATHANOR_KERNELS_H
#define ATHANOR_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define PRAGMA(text) _Pragma(#text)
#if defined(SMALL) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* would take minutes to compile */
#define INLINE static inline
#define UNROLL(n)
#elif defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL(n) PRAGMA(unroll n)
#else
#define INLINE static inline __attribute__((always_inline))
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif

enum { PANEL = 4, LANES = 16, GROUP = 32, PLACES = 16, MOST_QUERIES = 16, MOST_ROWS = 24, DRAWN_TOGETHER = 128 };

enum { F32, BF16, INT8, Q8_0, Q4_0, Q4_1, FORMATS };
enum { CACHE_F32, CACHE_F16, CACHE_INT8 };

/* rows × columns, in tiles of 16 rows. columns is a multiple of 32; rows of the last tile that do not exist are zero.

   F32   data float    [tile][column][16]
   BF16  data uint16_t [tile][column / 2][16][2]
   INT8  data uint8_t  [tile][column / 4][16][4], value + 128; scales float [tile][16], one a row
   Q8_0  data as INT8; scales fp16 [tile][group][16]
   Q4_0  data uint8_t  [tile][group][4][16][4]: byte j = 4 z + b of a group holds column j in its low half and column
         j + 16 in its high half, value + 8; scales fp16 [tile][group][16]
   Q4_1  as Q4_0, value without an offset; minima fp16 [tile][group][16] */
typedef struct {
    const void *data, *scales, *minima;
    const float *bias; /* [rows], or null */
    int32_t format, rows, columns, unused;
} Matrix;

/* Rows of activations: as fp32, and quantised in groups of 32 columns to value = q · scale. Strides in elements a row.
   Where they are wide, that is of 16 bits, value = (256 · q + low) · scale.

   What is quantised lies in panels of four rows, of which four columns each lie side by side: q [panel][column / 4][4][4],
   the others [panel][group][4]. So many rows are read from few streams. */
typedef struct {
    float *x;
    int8_t *q, *low; /* low: null unless wide */
    float *scale, *offset; /* offset: scale · the sum of the whole numbers */
    int32_t *minus8, *minus128; /* −8 and −128 times that sum */
    int32_t stride, q_stride, group_stride, wide;
} Rows;

/* Some consecutive rows of one sequence, attended by `heads` query heads of one key-value head. */
typedef struct {
    const float *queries; /* of the first row's first head */
    float *out;
    const uint8_t *cache;  /* of block 0, this layer */
    const int32_t *blocks;
    float *scratch; /* MOST_QUERIES × scratch_stride */
    int64_t block_bytes;
    int32_t query_stride, out_stride; /* floats from row to row */
    int32_t rows, position, heads, kv_head, n_kv_heads, head_dim, window, cached, scratch_stride; /* cached: CACHE_… */
} Attention;

/* Attention of packed documents in training, and with `out_gradient` its gradients: a query attends from the place `first`
   to the place `last`. Tensors (batch, time, heads or kv_heads, head_dim), fp32 or, where narrow, bf16; head_dim is a
   multiple of 16. first, last (batch, time); logsumexp (batch, heads, time), of the scores. in_tiles: where AMX computes
   it, of bf16 and heads of 32, 64, 96 or 128. */
typedef struct {
    const void *queries, *keys, *values;
    const int32_t *first, *last;
    void *out;
    float *logsumexp;
    const void *out_gradient;
    void *query_gradient, *key_gradient, *value_gradient;
    float scale;
    int32_t narrow, batch, time, heads, kv_heads, head_dim, in_tiles;
} PackedAttention;

enum { ROWS_TOGETHER = 64, TOGETHER = 1 << 14 }; /* of a task: rows, or single numbers */

/* x / √(mean of squares + epsilon) · gain for each row, and with `gradient` the gradients, to which `past` is added unless
   null: what x has from elsewhere. x and its gradients are fp32 or, where narrow, bf16; out and its gradient likewise by
   narrow_out. scale: of each row; gain_gradients: [task][size]. */
typedef struct {
    const void *x;
    const float *gain;
    void *out;
    float *scale;
    const void *gradient, *past;
    void *x_gradient;
    float *gain_gradients;
    int64_t rows;
    float epsilon;
    int32_t size, narrow, narrow_out;
} NormedRows;

/* out = x + part, of which part is fp32 or, where narrow, bf16; size is a multiple of 16. */
typedef struct {
    const float *x;
    const void *part;
    float *out;
    int64_t size;
    int32_t narrow, unused;
} Added;

/* silu(gate) · up, unless `out` is NULL, and with `gradient` the gradients; size is a multiple of 16. */
typedef struct {
    const void *gate, *up;
    void *out;
    const void *gradient;
    void *gate_gradient, *up_gradient;
    int64_t size;
    int32_t narrow, unused;
} Gated;

/* Each of `rows` × `heads` heads, of which the halves of the first 2 · half numbers are turned against each other by the
   row's angles; half is a multiple of 16. back: by the opposite angles. */
typedef struct {
    const void *x;
    const float *cosine, *sine; /* [rows][half] */
    void *out;
    int64_t rows;
    int32_t heads, head_dim, half, narrow, back, unused;
} TurnedRows;

/* momentum += (1 − kept) · (gradient − momentum), then update = gradient + kept · (momentum − gradient); size is a multiple
   of 16. */
typedef struct {
    const float *gradient;
    float *momentum, *update;
    int64_t size;
    float kept;
    int32_t unused;
} Blended;

/* weights −= rate · (step + decay · weights), the step being the row's direction times its scale; where cautious, weights
   that the step would let grow do not decay. directions: fp32 or, where narrow, bf16; size is a multiple of 16. */
typedef struct {
    const void *directions;
    const float *scales;
    float *weights;
    int64_t rows;
    float rate, decay;
    int32_t size, narrow, cautious, unused;
} MovedRows;

/* sums: of the squares of every TOGETHER numbers; size is a multiple of 16. */
typedef struct {
    const float *x;
    double *sums;
    int64_t size;
} Squared;

/* out[column][row] = x[row][column], both bf16, or where added, added to fp32; rows of `out` are `stride` apart. */
typedef struct {
    const uint16_t *x;
    void *out;
    int64_t rows, stride;
    int32_t size, added;
} Transposed;

/* The cross-entropy of each row of logits with its labels, of which each has its share (all of it where shares are null),
   and in the logits' place the gradient. */
typedef struct {
    void *logits;
    const int64_t *labels; /* [rows][width] */
    const float *shares;
    float *losses;
    int64_t rows, stride;
    int32_t size, width, narrow, unused;
} LabelledRows;

typedef struct {
    /* [wide]: out[i][16 · tiles], for rows first … first + count of `rows` and the matrix's rows of one or two tiles; no
       bias. */
    void (*multiply[2][FORMATS])(const Matrix *matrix, const Rows *rows, int first, int count, int tile, int tiles, float *out);
    /* Adds the bias, which may be null, to rows of `found`, 16 · tiles wide, and puts `valid` numbers of each into `out`, or
       adds them to what is there. */
    void (*place)(const float *found, const float *bias, int count, int tiles, int valid, int added, float *out, int64_t stride);
    void (*quantise)(const Rows *rows, int row, int first, int columns);
    void (*norm)(const float *x, const float *gain, float epsilon, int size, float *out);
    void (*turn)(float *head, const float *cosine, const float *sine, int half);
    void (*gate)(const float *gate, const float *up, float *out, int size);
    void (*attend)(const Attention *attention);
    /* weights = exp((logits − the largest) / temperature), zeros behind them, and the sums of each 128; returns the sum of
       all. Pointers may be null. */
    double (*weigh)(const float *logits, int size, float temperature, float *weights, double *sums, float *largest);
    /* One key-value head of one row of the batch; scratch: `attention_scratch` floats. */
    void (*attend_row)(const PackedAttention *attention, int task, float *scratch);
    void (*attend_row_in_tiles)(const PackedAttention *attention, int task, float *scratch); /* or null */
    void (*norm_rows)(const NormedRows *rows, int task);
    void (*add_some)(const Added *added, int task);
    void (*gate_some)(const Gated *gated, int task);
    void (*turn_rows)(const TurnedRows *rows, int task);
    void (*blend_some)(const Blended *blended, int task);
    void (*move_rows)(const MovedRows *rows, int task);
    void (*square_some)(const Squared *squared, int task);
    void (*transpose_rows)(const Transposed *transposed, int task);
    void (*differentiate)(const LabelledRows *rows, int64_t row, float *scratch); /* scratch: size floats */
} Kernels;

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
#endif

/* A layer of a block of the cache: keys [kv_head][dimension][16 places], values [kv_head][16][dimensions up to 16]; those
   of 8 bits have fp32 scales behind them, [kv_head][16 of keys, 16 of values]. */
INLINE int64_t cached_bytes(int32_t kind) { return kind == CACHE_INT8 ? 1 : kind == CACHE_F16 ? 2 : 4; }
INLINE int64_t scales_at(int32_t kind, int32_t kv_heads, int32_t head_dim)
{
    return (int64_t)kv_heads * PLACES * (head_dim + (head_dim + LANES - 1) / LANES * LANES) * cached_bytes(kind);
}
INLINE int64_t layer_bytes(int32_t kind, int32_t kv_heads, int32_t head_dim)
{
    return scales_at(kind, kv_heads, head_dim) + (kind == CACHE_INT8 ? (int64_t)kv_heads * 2 * PLACES * 4 : 0);
}

/* Where a row's quantised column 0, or its first group, is found. */
INLINE size_t panel_at(int row, int stride) { return (size_t)(row / PANEL) * PANEL * (size_t)stride; }
INLINE size_t q_at(int row, int stride) { return panel_at(row, stride) + (size_t)(row % PANEL) * 4; }
INLINE size_t group_at(int row, int stride) { return panel_at(row, stride) + (size_t)(row % PANEL); }

/* fp16 as everywhere: rounded to nearest, ties to even. */
INLINE float from_half(uint16_t half)
{
    union { uint32_t bits; float value; } wide, magic = {113u << 23};
    wide.bits = (half & 0x7fffu) << 13;
    uint32_t exponent = wide.bits & (0x7c00u << 13);
    wide.bits += (127u - 15u) << 23;
    if (exponent == 0x7c00u << 13)
        wide.bits += (128u - 16u) << 23;
    else if (exponent == 0) {
        wide.bits += 1u << 23;
        wide.value -= magic.value;
    }
    wide.bits |= (half & 0x8000u) << 16;
    return wide.value;
}

INLINE uint16_t to_half(float value)
{
    union { float value; uint32_t bits; } wide = {value}, small;
    uint32_t sign = wide.bits & 0x80000000u;
    wide.bits ^= sign;
    uint32_t half;
    if (wide.bits >= (127u + 16u) << 23)
        half = wide.bits > 255u << 23 ? 0x7e00u : 0x7c00u;
    else if (wide.bits < 113u << 23) {
        small.bits = 126u << 23;
        small.value += wide.value;
        half = small.bits - (126u << 23);
    } else {
        uint32_t odd = (wide.bits >> 13) & 1u;
        half = (wide.bits + ((uint32_t)(15 - 127) << 23) + 0xfffu + odd) >> 13;
    }
    return (uint16_t)(half | sign >> 16);
}

#endif

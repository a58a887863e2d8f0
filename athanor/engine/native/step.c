/* Whole steps of a model of the Llama shape: rows of several sequences pass through all layers in one call. */
#include "step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "pool.h"

enum { NORM, PROJECT, TURN, ATTEND, PACK, OUTPUT, NORM_2, GATE, DOWN, KINDS }; /* phases of a layer */
enum { FEW_ROWS = 4, CHUNKS = 6, LEAST_BYTES = 8192, LEAST_SCORES = 512 };

typedef struct { int32_t row, count, segment; } Run; /* rows of a segment that attend together */

struct Context {
    const Model *model;
    const Kernels *kernels;
    Pool *pool;
    int32_t threads, max_rows, runs, parts, attended_together; /* parts: into which a run's heads are split */
    int32_t hidden_stride, projected_stride, key_at, value_at;
    float *hidden, *projected;
    Rows normed, attended, inner;
    Run *run;
    int32_t *position, *segment; /* of each row */
    float **scratch;             /* of each thread */
    int32_t scratch_stride;
    const Job *job;
    void *blocks[64]; /* what is to be freed */
    int32_t n_blocks;
};

static int32_t up_to(int32_t n, int32_t unit) { return (n + unit - 1) / unit * unit; }
static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }
static int is_whole(const Matrix *matrix) { return matrix->format >= INT8; }
static int tiles_of(const Matrix *matrix) { return (matrix->rows + LANES - 1) / LANES; }

/* ---- processor ---- */

int32_t athanor_best(void)
{
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    const unsigned needed = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29; /* FMA, OSXSAVE, AVX, F16C */
    if ((c & needed) != needed)
        return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 5))
        return 0;
    const unsigned wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* AVX512 F, DQ, BW, VL */
    return (low & 0xe6) == 0xe6 && (b & wide) == wide && (c & 1u << 11) ? 2 : 1;
#else
    return 0;
#endif
}

const Kernels *athanor_kernels(int32_t level)
{
#if defined(__x86_64__)
    if (level == 2)
        return &avx512_kernels;
    if (level == 1)
        return &avx2_kernels;
#endif
    (void)level;
    return &scalar_kernels;
}

/* Subnormal numbers count and rounding is to nearest, whatever else runs in the process. */
static unsigned usual_arithmetic(void)
{
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
#else
    return 0;
#endif
}

static void restore_arithmetic(unsigned before)
{
#if defined(__x86_64__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

/* ---- memory ---- */

static void *take(Context *context, size_t bytes)
{
    void *block = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!block || context->n_blocks == 64) {
        free(block);
        return NULL;
    }
    context->blocks[context->n_blocks++] = block;
    return memset(block, 0, bytes);
}

/* The stride of q is no power of two, so that the same columns of several panels do not share one set of the cache. */
static int take_rows(Context *context, Rows *rows, int32_t count, int32_t columns, int32_t wide)
{
    size_t n = (size_t)up_to(count, PANEL);
    rows->stride = up_to(columns, GROUP) + LANES;
    rows->q_stride = up_to(columns, 64) + 64;
    rows->group_stride = up_to(columns, GROUP) / GROUP;
    rows->x = take(context, n * (size_t)rows->stride * 4);
    rows->wide = wide;
    rows->q = take(context, n * (size_t)rows->q_stride);
    rows->low = wide ? take(context, n * (size_t)rows->q_stride) : NULL;
    rows->scale = take(context, n * (size_t)rows->group_stride * 4);
    rows->offset = take(context, n * (size_t)rows->group_stride * 4);
    rows->minus8 = take(context, n * (size_t)rows->group_stride * 4);
    rows->minus128 = take(context, n * (size_t)rows->group_stride * 4);
    return rows->x && rows->q && (rows->low || !wide) && rows->scale && rows->offset && rows->minus8 && rows->minus128;
}

static int take_all(Context *context)
{
    const Model *model = context->model;
    int32_t queries = up_to(model->n_heads * model->head_dim, LANES), keys = up_to(model->n_kv_heads * model->head_dim, LANES);
    size_t rows = (size_t)context->max_rows;
    context->hidden_stride = up_to(model->d_model, GROUP) + LANES;
    context->key_at = queries;
    context->value_at = queries + keys;
    context->projected_stride = queries + 2 * keys + LANES;
    context->scratch_stride = up_to(model->max_seq_len, LANES) + LANES;
    context->hidden = take(context, rows * (size_t)context->hidden_stride * 4);
    context->projected = take(context, rows * (size_t)context->projected_stride * 4);
    context->run = take(context, rows * sizeof(Run));
    context->position = take(context, rows * 4);
    context->segment = take(context, rows * 4);
    context->scratch = take(context, (size_t)context->threads * sizeof(float *));
    if (!context->hidden || !context->projected || !context->run || !context->position || !context->segment || !context->scratch)
        return 0;
    for (int i = 0; i < context->threads; i++) {
        context->scratch[i] = malloc((size_t)MOST_QUERIES * (size_t)context->scratch_stride * 4);
        if (!context->scratch[i])
            return 0;
    }
    return take_rows(context, &context->normed, context->max_rows, model->d_model, model->wide) &&
           take_rows(context, &context->attended, context->max_rows, model->n_heads * model->head_dim, model->wide) &&
           take_rows(context, &context->inner, context->max_rows, model->d_ff, model->wide);
}

Context *athanor_open(const Model *model, int32_t threads, int32_t level, int32_t max_rows)
{
    Context *context = calloc(1, sizeof(Context));
    if (!context)
        return NULL;
    context->model = model;
    context->kernels = athanor_kernels(level);
    context->threads = threads;
    context->max_rows = max_rows;
    unsigned before = usual_arithmetic(); /* new threads inherit it */
    if (take_all(context))
        context->pool = pool_open(threads);
    restore_arithmetic(before);
    if (!context->pool) {
        athanor_close(context);
        return NULL;
    }
    return context;
}

void athanor_close(Context *context)
{
    if (context->pool)
        pool_close(context->pool);
    for (int i = 0; context->scratch && i < context->threads; i++)
        free(context->scratch[i]);
    for (int i = 0; i < context->n_blocks; i++)
        free(context->blocks[i]);
    free(context);
}

void athanor_sizes(int32_t *sizes)
{
    sizes[0] = sizeof(Matrix);
    sizes[1] = sizeof(Layer);
    sizes[2] = sizeof(Model);
    sizes[3] = sizeof(Segment);
    sizes[4] = sizeof(Job);
}

/* ---- matrix products ---- */

/* One or two tiles of outputs for `count` rows: stored in `out` or added to it, with the bias. out: of the first tile's
   first column. */
static void product(const Kernels *kernels, const Matrix *m, const Rows *rows, int count, int tile, int tiles, int added, float *out, int64_t stride)
{
    float found[MOST_ROWS * 2 * LANES];
    int valid = least(tiles * LANES, m->rows - tile * LANES);
    for (int first = 0; first < count; first += MOST_ROWS) {
        int together = least(MOST_ROWS, count - first);
        kernels->multiply[rows->wide][m->format](m, rows, first, together, tile, tiles, found);
        kernels->place(found, m->bias ? m->bias + tile * LANES : NULL, together, tiles, valid, added, out + first * stride, stride);
    }
}

/* Tiles first … last − 1, two by two. out: of the matrix's first column. */
static void products(const Kernels *kernels, const Matrix *m, const Rows *rows, int count, int first, int last, int added, float *out, int64_t stride)
{
    for (int tile = first; tile < last; tile += 2)
        product(kernels, m, rows, count, tile, least(2, last - tile), added, out + tile * LANES, stride);
}

static int64_t tile_bytes(const Matrix *m)
{
    static const int bits[FORMATS] = {32, 16, 8, 8, 4, 4};
    return (int64_t)m->columns * LANES * bits[m->format] / 8;
}

/* Tiles that make a chunk: a few chunks a thread, but none too small to be worth taking. */
static int tiles_together(const Context *context, int tiles, int64_t bytes)
{
    int shared = (tiles + context->threads * CHUNKS - 1) / (context->threads * CHUNKS);
    int worth = context->job->rows <= FEW_ROWS ? (int)((LEAST_BYTES + bytes - 1) / bytes) : 1;
    return most(1, most(shared, worth));
}

static int parts(int count, int together) { return (count + together - 1) / together; }

static int project_together(const Context *context, const Layer *layer)
{
    int tiles = tiles_of(&layer->query) + tiles_of(&layer->key) + tiles_of(&layer->value);
    return tiles_together(context, tiles, tile_bytes(&layer->query));
}

static void project(const Context *context, const Layer *layer, int chunk)
{
    const Matrix *matrices[3] = {&layer->query, &layer->key, &layer->value};
    const int32_t at[3] = {0, context->key_at, context->value_at};
    int together = project_together(context, layer), first = chunk * together, last = first + together;
    for (int i = 0; i < 3; i++) {
        int tiles = tiles_of(matrices[i]);
        products(context->kernels, matrices[i], &context->normed, context->job->rows, most(first, 0), least(last, tiles), 0,
                 context->projected + at[i], context->projected_stride);
        first -= tiles;
        last -= tiles;
    }
}

/* Adds rows · matrixᵀ to the hidden states. */
static void add_product(const Context *context, const Matrix *m, const Rows *rows, int chunk)
{
    int tiles = tiles_of(m), together = tiles_together(context, tiles, tile_bytes(m));
    products(context->kernels, m, rows, context->job->rows, chunk * together, least(tiles, (chunk + 1) * together), 1,
             context->hidden, context->hidden_stride);
}

static int pairs_together(const Context *context, const Layer *layer)
{
    return tiles_together(context, (tiles_of(&layer->gate) + 1) / 2, 4 * tile_bytes(&layer->gate));
}

/* Two tiles at a time, which make a group of the activations for the next product. */
static void gate(const Context *context, const Layer *layer, int chunk)
{
    const Kernels *kernels = context->kernels;
    const Rows *inner = &context->inner;
    int tiles = tiles_of(&layer->gate), together = pairs_together(context, layer), rows = context->job->rows;
    for (int pair = chunk * together; pair < least((tiles + 1) / 2, (chunk + 1) * together); pair++)
        for (int first = 0; first < rows; first += MOST_ROWS) {
            int count = least(MOST_ROWS, rows - first);
            Rows part = context->normed;
            part.x += (int64_t)first * part.stride;
            part.q += (int64_t)first * part.q_stride;
            if (part.wide)
                part.low += (int64_t)first * part.q_stride;
            part.scale += (int64_t)first * part.group_stride;
            part.offset += (int64_t)first * part.group_stride;
            part.minus8 += (int64_t)first * part.group_stride;
            part.minus128 += (int64_t)first * part.group_stride;
            float gates[MOST_ROWS * GROUP], ups[MOST_ROWS * GROUP];
            if (layer->gate.rows % GROUP) { /* what is not there counts as zero */
                memset(gates, 0, sizeof gates);
                memset(ups, 0, sizeof ups);
            }
            int wide = least(2, tiles - 2 * pair) * LANES;
            product(kernels, &layer->gate, &part, count, 2 * pair, wide / LANES, 0, gates, GROUP);
            product(kernels, &layer->up, &part, count, 2 * pair, wide / LANES, 0, ups, GROUP);
            for (int i = 0; i < count; i++)
                kernels->gate(gates + i * GROUP, ups + i * GROUP, inner->x + (int64_t)(first + i) * inner->stride + pair * GROUP, wide);
            for (int i = first; is_whole(&layer->down) && i < first + count; i++)
                kernels->quantise(inner, i, pair * GROUP, GROUP);
        }
}

static void head(const Context *context, int chunk)
{
    const Matrix *m = &context->model->head;
    int tiles = tiles_of(m), together = tiles_together(context, tiles, tile_bytes(m));
    products(context->kernels, m, &context->normed, context->job->n_wanted, chunk * together, least(tiles, (chunk + 1) * together),
             0, context->job->logits, context->model->vocab_size);
}

/* ---- what is done row by row ---- */

static void embed(const Context *context, int row)
{
    const Matrix *m = &context->model->embedding;
    int32_t token = context->job->tokens[row], tile = token / LANES, lane = token % LANES, groups = m->columns / GROUP;
    float *out = context->hidden + (int64_t)row * context->hidden_stride;
    for (int32_t c = 0; c < context->model->d_model; c++) {
        int64_t plain = ((int64_t)tile * m->columns + c) * LANES, block = ((int64_t)tile * groups + c / GROUP) * LANES + lane;
        int64_t byte = ((int64_t)tile * m->columns + c / 4 * 4) * LANES + lane * 4 + c % 4;
        int64_t nibble = ((int64_t)tile * groups + c / GROUP) * (GROUP * LANES / 2) + (c % 16 / 4 * LANES + lane) * 4 + c % 4;
        const uint8_t *bytes = m->data;
        const uint16_t *halves = m->data, *scales = m->scales, *minima = m->minima;
        uint32_t wide;
        int value = c % GROUP < 16 ? 15 : 4;
        switch (m->format) {
        case F32: out[c] = ((const float *)m->data)[plain + lane]; break;
        case BF16:
            wide = (uint32_t)halves[plain - (int64_t)(c & 1) * LANES + 2 * lane + (c & 1)] << 16;
            memcpy(&out[c], &wide, 4);
            break;
        case INT8: out[c] = (float)(bytes[byte] - 128) * ((const float *)m->scales)[token]; break;
        case Q8_0: out[c] = (float)(bytes[byte] - 128) * from_half(scales[block]); break;
        default:
            value = value == 15 ? bytes[nibble] & 15 : bytes[nibble] >> 4;
            out[c] = m->format == Q4_0 ? (float)(value - 8) * from_half(scales[block])
                                       : (float)value * from_half(scales[block]) + from_half(minima[block]);
        }
    }
}

/* The norm of hidden state `from` becomes row `to` of the activations. */
static void norm_row(const Context *context, const float *gain, float epsilon, int quantised, int from, int to)
{
    const Rows *rows = &context->normed;
    context->kernels->norm(context->hidden + (int64_t)from * context->hidden_stride, gain, epsilon, context->model->d_model,
                           rows->x + (int64_t)to * rows->stride);
    if (quantised)
        context->kernels->quantise(rows, to, 0, up_to(context->model->d_model, GROUP));
}

/* Normed (where the model does that) and turned heads of queries or keys. */
static void place_heads(const Context *context, const Layer *layer, int row, float *heads, int count, const float *gain, float scale)
{
    const Model *model = context->model;
    int64_t angle = (int64_t)context->position[row] * context->job->angles;
    for (int h = 0; h < count; h++) {
        float *one = heads + h * model->head_dim, normed[1024];
        if (gain) {
            int padded = up_to(model->head_dim, LANES);
            memset(normed + model->head_dim, 0, (size_t)(padded - model->head_dim) * 4);
            memcpy(normed, one, (size_t)model->head_dim * 4);
            context->kernels->norm(normed, gain, layer->epsilon, model->head_dim, normed);
            memcpy(one, normed, (size_t)model->head_dim * 4);
        }
        if (layer->turned)
            context->kernels->turn(one, context->job->cosine + angle, context->job->sine + angle, layer->turned / 2);
        if (scale != 1.0f)
            for (int i = 0; i < model->head_dim; i++)
                one[i] *= scale;
    }
}

/* Writes a head's numbers, `apart` elements from one another; of 8 bits they are multiples of the scale. */
static void keep(uint8_t *place, int64_t apart, const float *numbers, int count, int kind, float *scale)
{
    float largest = 0.0f;
    if (kind == CACHE_INT8) {
        for (int i = 0; i < count; i++)
            largest = fmaxf(largest, fabsf(numbers[i]));
        *scale = largest / 127.0f;
    }
    float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    for (int i = 0; i < count; i++)
        if (kind == CACHE_INT8)
            ((int8_t *)place)[i * apart] = (int8_t)lrintf(numbers[i] * inverse);
        else if (kind == CACHE_F16)
            ((uint16_t *)(void *)place)[i * apart] = to_half(numbers[i]);
        else
            ((float *)(void *)place)[i * apart] = numbers[i];
}

/* Turns queries and keys of a row, and writes its keys, dimension by dimension, and values into its block. */
static void turn_row(const Context *context, const Layer *layer, int row)
{
    const Model *model = context->model;
    const Job *job = context->job;
    const Segment *segment = &job->segments[context->segment[row]];
    float *projected = context->projected + (int64_t)row * context->projected_stride;
    float *keys = projected + context->key_at, *values = projected + context->value_at;
    place_heads(context, layer, row, projected, model->n_heads, layer->query_norm, model->score_scale);
    place_heads(context, layer, row, keys, model->n_kv_heads, layer->key_norm, 1.0f);
    int position = context->position[row], place = position % PLACES, dim = model->head_dim, padded = up_to(dim, LANES);
    int kind = model->cached, key_heads = model->n_kv_heads;
    int64_t block = job->blocks[segment->blocks + position / PLACES], size = cached_bytes(kind);
    uint8_t *base = job->cache + block * job->block_bytes + (layer - model->layers) * layer_bytes(kind, key_heads, dim);
    float unused[2 * PLACES], *scales = unused;
    for (int h = 0; h < key_heads; h++) {
        uint8_t *key = base + (int64_t)h * dim * PLACES * size;
        uint8_t *value = base + (((int64_t)key_heads * dim + (int64_t)h * padded) * PLACES + (int64_t)place * padded) * size;
        if (kind == CACHE_INT8)
            scales = (float *)(void *)(base + scales_at(kind, key_heads, dim)) + h * 2 * PLACES;
        keep(key + place * size, PLACES, keys + h * dim, dim, kind, scales + place);
        keep(value, 1, values + h * dim, dim, kind, scales + PLACES + place);
        memset(value + dim * size, 0, (size_t)((padded - dim) * size));
    }
}

/* One run's rows, with a part of its heads. */
static void attend_part(const Context *context, const Layer *layer, int number, int thread)
{
    const Model *model = context->model;
    const Job *job = context->job;
    const Run *run = &context->run[number / context->parts];
    int part = number % context->parts, heads = model->n_heads / context->parts, first = part * heads;
    Attention a = {
        .queries = context->projected + (int64_t)run->row * context->projected_stride + (int64_t)first * model->head_dim,
        .out = context->attended.x + (int64_t)run->row * context->attended.stride + (int64_t)first * model->head_dim,
        .cache = job->cache + (layer - model->layers) * layer_bytes(model->cached, model->n_kv_heads, model->head_dim),
        .blocks = job->blocks + job->segments[run->segment].blocks,
        .scratch = context->scratch[thread],
        .block_bytes = job->block_bytes,
        .query_stride = context->projected_stride,
        .out_stride = context->attended.stride,
        .rows = run->count,
        .position = context->position[run->row],
        .heads = heads,
        .kv_head = first / (model->n_heads / model->n_kv_heads),
        .n_kv_heads = model->n_kv_heads,
        .head_dim = model->head_dim,
        .window = layer->window,
        .cached = model->cached,
        .scratch_stride = context->scratch_stride,
    };
    context->kernels->attend(&a);
}

static void attend(const Context *context, const Layer *layer, int chunk, int thread)
{
    int together = context->attended_together, all = context->runs * context->parts;
    for (int number = chunk * together; number < least(all, (chunk + 1) * together); number++)
        attend_part(context, layer, number, thread);
}

/* ---- the program ---- */

static int rows_together(const Context *context, int rows)
{
    return rows <= FEW_ROWS ? FEW_ROWS : (rows + context->threads * 4 - 1) / (context->threads * 4);
}

static const Layer *layer_of(const Context *context, int phase) { return &context->model->layers[(phase - 1) / KINDS]; }

static int chunks(void *state, int phase)
{
    const Context *context = state;
    const Model *model = context->model;
    int rows = context->job->rows, wanted = context->job->n_wanted, left = phase - 1 - KINDS * model->n_layers;
    if (phase == 0)
        return parts(rows, rows_together(context, rows));
    if (left == 0)
        return wanted ? parts(wanted, rows_together(context, wanted)) : 0;
    if (left == 1)
        return wanted ? parts(tiles_of(&model->head), tiles_together(context, tiles_of(&model->head), tile_bytes(&model->head))) : 0;
    const Layer *layer = layer_of(context, phase);
    switch ((phase - 1) % KINDS) {
    case PROJECT:
        return parts(tiles_of(&layer->query) + tiles_of(&layer->key) + tiles_of(&layer->value), project_together(context, layer));
    case ATTEND: return parts(context->runs * context->parts, context->attended_together);
    case PACK: return is_whole(&layer->output) ? parts(rows, rows_together(context, rows)) : 0;
    case OUTPUT:
        return parts(tiles_of(&layer->output), tiles_together(context, tiles_of(&layer->output), tile_bytes(&layer->output)));
    case GATE: return parts((tiles_of(&layer->gate) + 1) / 2, pairs_together(context, layer));
    case DOWN:
        return parts(tiles_of(&layer->down), tiles_together(context, tiles_of(&layer->down), tile_bytes(&layer->down)));
    default: return parts(rows, rows_together(context, rows));
    }
}

static void run_rows(const Context *context, int phase, int chunk)
{
    const Model *model = context->model;
    int last = phase == 1 + KINDS * model->n_layers, rows = last ? context->job->n_wanted : context->job->rows;
    int together = rows_together(context, rows);
    const Layer *layer = phase == 0 || last ? NULL : layer_of(context, phase);
    for (int row = chunk * together; row < least(rows, (chunk + 1) * together); row++) {
        if (phase == 0)
            embed(context, row);
        else if (last)
            norm_row(context, model->norm, model->epsilon, is_whole(&model->head), context->job->wanted[row], row);
        else if ((phase - 1) % KINDS == NORM)
            norm_row(context, layer->attention_norm, layer->epsilon,
                     is_whole(&layer->query) || is_whole(&layer->key) || is_whole(&layer->value), row, row);
        else if ((phase - 1) % KINDS == NORM_2)
            norm_row(context, layer->mlp_norm, layer->epsilon, is_whole(&layer->gate) || is_whole(&layer->up), row, row);
        else if ((phase - 1) % KINDS == TURN)
            turn_row(context, layer, row);
        else
            context->kernels->quantise(&context->attended, row, 0, up_to(model->n_heads * model->head_dim, GROUP));
    }
}

static void run(void *state, int phase, int chunk, int thread)
{
    Context *context = state;
    const Model *model = context->model;
    if (phase == 2 + KINDS * model->n_layers) {
        head(context, chunk);
        return;
    }
    if (phase == 0 || phase == 1 + KINDS * model->n_layers) {
        run_rows(context, phase, chunk);
        return;
    }
    const Layer *layer = layer_of(context, phase);
    switch ((phase - 1) % KINDS) {
    case PROJECT: project(context, layer, chunk); break;
    case ATTEND: attend(context, layer, chunk, thread); break;
    case OUTPUT: add_product(context, &layer->output, &context->attended, chunk); break;
    case GATE: gate(context, layer, chunk); break;
    case DOWN: add_product(context, &layer->down, &context->inner, chunk); break;
    default: run_rows(context, phase, chunk);
    }
}

/* Where each row stands, and which rows attend together: as many of a segment as have MOST_QUERIES queries a key head. */
static void arrange(Context *context, const Job *job)
{
    const Model *model = context->model;
    int shared = model->n_heads / model->n_kv_heads, together = most(1, MOST_QUERIES / shared);
    int64_t scores = 0;
    context->runs = 0;
    for (int s = 0; s < job->n_segments; s++) {
        const Segment *segment = &job->segments[s];
        for (int i = 0; i < segment->count; i++) {
            context->position[segment->first + i] = segment->start + i;
            context->segment[segment->first + i] = s;
            scores += (int64_t)(segment->start + i + 1) * model->n_heads;
        }
        for (int i = 0; i < segment->count; i += together)
            context->run[context->runs++] = (Run){segment->first + i, least(together, segment->count - i), s};
    }
    context->parts = model->n_kv_heads;
    if (shared > MOST_QUERIES || context->runs * model->n_kv_heads < 4 * context->threads)
        context->parts = model->n_heads;
    context->attended_together = scores < LEAST_SCORES ? context->runs * context->parts : 1;
}

void athanor_forward(Context *context, const Job *job)
{
    context->job = job;
    arrange(context, job);
    unsigned before = usual_arithmetic();
    Work work = {.chunks = chunks, .run = run, .phases = 3 + KINDS * context->model->n_layers, .state = context};
    pool_run(context->pool, &work);
    restore_arithmetic(before);
}

int32_t athanor_product(int32_t level, const Matrix *matrix, int32_t wide, const float *x, int32_t rows, float *out)
{
    Context *context = calloc(1, sizeof(Context));
    int found = context && take_rows(context, &context->normed, rows, matrix->columns, wide);
    if (found) {
        const Kernels *kernels = athanor_kernels(level);
        unsigned before = usual_arithmetic();
        for (int row = 0; row < rows; row++) {
            memcpy(context->normed.x + (int64_t)row * context->normed.stride, x + (int64_t)row * matrix->columns, (size_t)matrix->columns * 4);
            kernels->quantise(&context->normed, row, 0, matrix->columns);
        }
        products(kernels, matrix, &context->normed, rows, 0, tiles_of(matrix), 0, out, matrix->rows);
        restore_arithmetic(before);
    }
    if (context)
        athanor_close(context);
    return !found;
}

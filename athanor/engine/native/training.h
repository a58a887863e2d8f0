/* Steps of training that are no large products, written once over a vector of 16 floats, like floats.h: attention over
   packed documents, norms, gates, and the softmax of a cross-entropy. All is computed in fp32 and rounded once, where a
   result is stored as bf16. Tasks write what is theirs alone, and sums have one order whatever the number of threads. */

#include <float.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum { TILE = 8 }; /* queries of a head that are attended together */

INLINE TARGET V v_given(const void *x, int64_t at, const int narrow)
{
    return narrow ? v_bf16((const uint16_t *)x + at) : v_load((const float *)x + at);
}
INLINE TARGET void v_give(void *x, int64_t at, V a, const int narrow)
{
    if (narrow)
        v_store_bf16((uint16_t *)x + at, a);
    else
        v_store((float *)x + at, a);
}

/* `count` rows of `size` numbers, `stride` apart, as fp32 one after the other; missing rows up to `padded` are zero. */
INLINE TARGET void unpack(const void *x, int64_t at, int64_t stride, int count, int padded, int size, const int narrow, float *out)
{
    for (int row = 0; row < padded; row++, out += size)
        for (int d = 0; d < size; d += LANES)
            v_store(out + d, row < count ? v_given(x, at + row * stride + d, narrow) : v_set(0.0f));
}

/* Asks early for rows that lie too far apart for the processor to see them coming. */
INLINE TARGET void ask_for(const void *x, int64_t at, int64_t stride, int count, int size, const int narrow)
{
    const int bytes = narrow ? 2 : 4;
    for (int row = 0; row < count; row++)
        for (int d = 0; d < size * bytes; d += 64)
            __builtin_prefetch((const char *)x + (at + row * stride) * bytes + d);
}

/* Rows (multiple of 16) × size → [row / 16][size][16]. */
INLINE TARGET void turn_around(const float *rows, int count, int size, float *out)
{
    for (int block = 0; block < count; block += LANES, rows += LANES * size, out += LANES * size)
        for (int d = 0; d < size; d++)
            for (int lane = 0; lane < LANES; lane++)
                out[d * LANES + lane] = rows[lane * size + d];
}

/* The products of TILE rows with those of the blocks from … to of what `turn_around` made: out [TILE][stride]. */
INLINE TARGET void products(const float *rows, const float *blocks, int size, int from, int to, float *out, int stride)
{
    const float *queries[TILE];
    for (int i = 0; i < TILE; i++)
        queries[i] = rows + i * size;
    for (int block = from; block < to; block++)
        for (int i = 0; i < TILE; i += SCORES)
            score(SCORES, CACHE_F32, (const uint8_t *)(blocks + (size_t)block * LANES * (size_t)size), NULL, queries + i, size,
                  out + (size_t)i * (size_t)stride + (size_t)(block * LANES), stride);
}

/* out[i] = Σ over places from … to of weights[i][place] · rows[place], `d` vectors of each. */
INLINE TARGET void gather(const int d, const float *weights, int stride, const float *rows, int size, int from, int to, float *out)
{
    for (int i = 0; i < TILE; i += MIXED) {
        V sums[MIXED][4];
        UNROLL(4) for (int k = 0; k < MIXED; k++)
            UNROLL(4) for (int j = 0; j < d; j++) sums[k][j] = v_set(0.0f);
        for (int place = from; place < to; place++) {
            V row[4];
            UNROLL(4) for (int j = 0; j < d; j++) row[j] = v_load(rows + (size_t)place * (size_t)size + j * LANES);
            UNROLL(4) for (int k = 0; k < MIXED; k++) {
                V weight = v_set(weights[(size_t)(i + k) * (size_t)stride + (size_t)place]);
                UNROLL(4) for (int j = 0; j < d; j++) sums[k][j] = v_fma(row[j], weight, sums[k][j]);
            }
        }
        UNROLL(4) for (int k = 0; k < MIXED; k++)
            UNROLL(4) for (int j = 0; j < d; j++) v_store(out + (i + k) * size + j * LANES, sums[k][j]);
    }
}

/* rows[place] += Σ over i of weights[i][place] · x[i], for places from … to, `d` vectors of each. */
INLINE TARGET void scatter(const int d, const float *weights, int stride, const float *x, int size, int from, int to, float *rows)
{
    for (int i = 0; i < TILE; i += MIXED) {
        V kept[MIXED][4];
        UNROLL(4) for (int k = 0; k < MIXED; k++)
            UNROLL(4) for (int j = 0; j < d; j++) kept[k][j] = v_load(x + (i + k) * size + j * LANES);
        for (int place = from; place < to; place++) {
            float *row = rows + (size_t)place * (size_t)size;
            V sums[4];
            UNROLL(4) for (int j = 0; j < d; j++) sums[j] = v_load(row + j * LANES);
            UNROLL(4) for (int k = 0; k < MIXED; k++) {
                V weight = v_set(weights[(size_t)(i + k) * (size_t)stride + (size_t)place]);
                UNROLL(4) for (int j = 0; j < d; j++) sums[j] = v_fma(kept[k][j], weight, sums[j]);
            }
            UNROLL(4) for (int j = 0; j < d; j++) v_store(row + j * LANES, sums[j]);
        }
    }
}

/* DO(vectors) with `dim` going through a head's dimensions, by 64, 32 or 16. */
#define BY_VECTORS(DO)                                                                                                 \
    for (int dim = 0; dim < size;) {                                                                                   \
        if (size - dim >= 4 * LANES) { DO(4); dim += 4 * LANES; }                                                      \
        else if (size - dim >= 2 * LANES) { DO(2); dim += 2 * LANES; }                                                 \
        else { DO(1); dim += LANES; }                                                                                  \
    }

/* exp(score · scale − shift[i]) where a query attends, 0 where not, in place. */
INLINE TARGET void probabilities(float *scores, int stride, const int *first, const int *last, int from, int to, float scale, const float *shift)
{
    for (int i = 0; i < TILE; i++) {
        float *row = scores + (size_t)i * (size_t)stride;
        for (int at = from; at < to; at += LANES) {
            V weights = v_exp(v_sub(v_mul(v_load(row + at), v_set(scale)), v_set(shift[i])));
            v_store(row + at, weights);
            if (at < first[i] || at + LANES - 1 > last[i])
                for (int lane = 0; lane < LANES; lane++)
                    if (at + lane < first[i] || at + lane > last[i])
                        row[at + lane] = 0.0f;
        }
    }
}

INLINE TARGET float highest(const float *scores, int first, int last)
{
    V lanes = v_set(-INFINITY);
    float top = -INFINITY;
    for (int place = first; place <= last;)
        if (place % LANES == 0 && place + LANES - 1 <= last) {
            lanes = v_max(lanes, v_load(scores + place));
            place += LANES;
        } else {
            top = scores[place] > top ? scores[place] : top;
            place++;
        }
    const float rest = v_top(lanes);
    return rest > top ? rest : top;
}

/* One head of keys and values of one row of the batch, and the query heads that share it. */
INLINE TARGET void attend_row_as(const PackedAttention *a, int task, float *scratch, const int narrow)
{
    const int size = a->head_dim, time = a->time, padded = (time + LANES - 1) / LANES * LANES, shared = a->heads / a->kv_heads;
    const int64_t batch = task / a->kv_heads, kv_head = task % a->kv_heads;
    const int64_t stride = (int64_t)a->heads * size, kv_stride = (int64_t)a->kv_heads * size;
    const int64_t kv_at = batch * time * kv_stride + kv_head * size, whole = (int64_t)padded * size;
    const int back = a->out_gradient != NULL;
    float *keys = scratch, *keys_turned = keys + whole, *values = keys_turned + whole, *values_turned = values + whole;
    float *key_gradient = values_turned + whole, *value_gradient = key_gradient + whole;
    float *queries = value_gradient + whole, *given = queries + TILE * size, *found = given + TILE * size;
    float *scores = found + TILE * size, *slopes = scores + TILE * padded;
    unpack(a->keys, kv_at, kv_stride, time, padded, size, narrow, keys);
    unpack(a->values, kv_at, kv_stride, time, padded, size, narrow, values);
    turn_around(keys, padded, size, keys_turned);
    if (back) {
        turn_around(values, padded, size, values_turned);
        for (int64_t i = 0; i < whole; i += LANES) {
            v_store(key_gradient + i, v_set(0.0f));
            v_store(value_gradient + i, v_set(0.0f));
        }
    }
    for (int head = (int)kv_head * shared; head < (int)(kv_head + 1) * shared; head++)
        for (int start = 0; start < time; start += TILE) {
            const int count = time - start < TILE ? time - start : TILE;
            const int64_t at = (batch * time + start) * stride + (int64_t)head * size;
            float *logsumexp = a->logsumexp + (batch * a->heads + head) * time + start, shift[TILE], sum[TILE];
            int first[TILE], last[TILE], lowest = start, end = start + 1;
            for (int i = 0; i < TILE; i++) {
                first[i] = i < count ? a->first[batch * time + start + i] : padded;
                last[i] = i < count ? a->last[batch * time + start + i] : -1;
                lowest = first[i] < lowest ? first[i] : lowest;
                end = last[i] + 1 > end ? last[i] + 1 : end;
            }
            const int from = lowest / LANES * LANES, to = (end + LANES - 1) / LANES * LANES;
            const int next = time - start - TILE < TILE ? time - start - TILE : TILE;
            ask_for(a->queries, at + TILE * stride, stride, next, size, narrow);
            if (back) {
                ask_for(a->out_gradient, at + TILE * stride, stride, next, size, narrow);
                ask_for(a->out, at + TILE * stride, stride, next, size, narrow);
            }
            unpack(a->queries, at, stride, count, TILE, size, narrow, queries);
            products(queries, keys_turned, size, from / LANES, to / LANES, scores, padded);
            if (!back) {
                for (int i = 0; i < TILE; i++) {
                    shift[i] = i < count ? highest(scores + i * padded, first[i], last[i]) * a->scale : 0.0f;
                }
                probabilities(scores, padded, first, last, from, to, a->scale, shift);
                for (int i = 0; i < count; i++) {
                    V lanes = v_set(0.0f);
                    for (int place = from; place < to; place += LANES)
                        lanes = v_add(lanes, v_load(scores + i * padded + place));
                    sum[i] = v_sum(lanes);
                    logsumexp[i] = shift[i] + logf(sum[i]);
                }
#define MIX_VALUES(D) gather(D, scores, padded, values + dim, size, from, end, found + dim)
                BY_VECTORS(MIX_VALUES)
#undef MIX_VALUES
                for (int i = 0; i < count; i++)
                    for (int d = 0; d < size; d += LANES)
                        v_give(a->out, at + i * stride + d, v_mul(v_load(found + i * size + d), v_set(1.0f / sum[i])), narrow);
                continue;
            }
            for (int i = 0; i < TILE; i++)
                shift[i] = i < count ? logsumexp[i] : 0.0f;
            probabilities(scores, padded, first, last, from, to, a->scale, shift);
            unpack(a->out_gradient, at, stride, count, TILE, size, narrow, given);
            products(given, values_turned, size, from / LANES, to / LANES, slopes, padded);
            for (int i = 0; i < TILE; i++) {
                V lanes = v_set(0.0f);
                for (int d = 0; i < count && d < size; d += LANES)
                    lanes = v_fma(v_load(given + i * size + d), v_given(a->out, at + i * stride + d, narrow), lanes);
                V own = v_set(v_sum(lanes)), scale = v_set(a->scale);
                for (int place = from; place < to; place += LANES) {
                    float *slope = slopes + i * padded + place;
                    V weight = v_mul(v_load(scores + i * padded + place), scale);
                    v_store(slope, v_mul(weight, v_sub(v_load(slope), own)));
                }
            }
#define OF_QUERIES(D) gather(D, slopes, padded, keys + dim, size, from, end, found + dim)
#define OF_KEYS(D) scatter(D, slopes, padded, queries + dim, size, from, end, key_gradient + dim)
#define OF_VALUES(D) scatter(D, scores, padded, given + dim, size, from, end, value_gradient + dim)
            BY_VECTORS(OF_QUERIES)
            BY_VECTORS(OF_KEYS)
            BY_VECTORS(OF_VALUES)
#undef OF_QUERIES
#undef OF_KEYS
#undef OF_VALUES
            for (int i = 0; i < count; i++)
                for (int d = 0; d < size; d += LANES)
                    v_give(a->query_gradient, at + i * stride + d, v_load(found + i * size + d), narrow);
        }
    for (int place = 0; back && place < time; place++)
        for (int d = 0; d < size; d += LANES) {
            v_give(a->key_gradient, kv_at + place * kv_stride + d, v_load(key_gradient + place * size + d), narrow);
            v_give(a->value_gradient, kv_at + place * kv_stride + d, v_load(value_gradient + place * size + d), narrow);
        }
}

static TARGET void attend_row(const PackedAttention *a, int task, float *scratch)
{
    if (a->narrow)
        attend_row_as(a, task, scratch, 1);
    else
        attend_row_as(a, task, scratch, 0);
}

INLINE TARGET void norm_rows_as(const NormedRows *n, int task, const int narrow, const int narrow_out)
{
    const int64_t end = n->rows < (task + 1) * (int64_t)ROWS_TOGETHER ? n->rows : (task + 1) * (int64_t)ROWS_TOGETHER;
    float *gains = n->gradient ? n->gain_gradients + (int64_t)task * n->size : NULL;
    for (int i = 0; gains && i < n->size; i += LANES)
        v_store(gains + i, v_set(0.0f));
    for (int64_t row = task * (int64_t)ROWS_TOGETHER, at = row * n->size; row < end; row++, at += n->size) {
        V sum = v_set(0.0f);
        if (!gains) {
            for (int i = 0; i < n->size; i += LANES)
                sum = v_fma(v_given(n->x, at + i, narrow), v_given(n->x, at + i, narrow), sum);
            n->scale[row] = 1.0f / root(v_sum(sum) / (float)n->size + n->epsilon);
            V scale = v_set(n->scale[row]);
            for (int i = 0; i < n->size; i += LANES)
                v_give(n->out, at + i, v_mul(v_mul(v_given(n->x, at + i, narrow), scale), v_load(n->gain + i)), narrow_out);
            continue;
        }
        V scale = v_set(n->scale[row]);
        for (int i = 0; i < n->size; i += LANES) {
            V product = v_mul(v_given(n->gradient, at + i, narrow_out), v_mul(v_given(n->x, at + i, narrow), scale));
            sum = v_fma(product, v_load(n->gain + i), sum);
            v_store(gains + i, v_add(v_load(gains + i), product));
        }
        V along = v_set(-v_sum(sum) / (float)n->size);
        for (int i = 0; i < n->size; i += LANES) {
            V normed = v_mul(v_given(n->x, at + i, narrow), scale);
            V slope = v_mul(v_given(n->gradient, at + i, narrow_out), v_load(n->gain + i));
            V found = v_mul(v_fma(normed, along, slope), scale);
            v_give(n->x_gradient, at + i, n->past ? v_add(v_given(n->past, at + i, narrow), found) : found, narrow);
        }
    }
}

static TARGET void norm_rows(const NormedRows *n, int task)
{
    if (n->narrow)
        norm_rows_as(n, task, 1, 1);
    else if (n->narrow_out)
        norm_rows_as(n, task, 0, 1);
    else
        norm_rows_as(n, task, 0, 0);
}

static TARGET void add_some(const Added *a, int task)
{
    const int64_t end = a->size < (task + 1) * (int64_t)TOGETHER ? a->size : (task + 1) * (int64_t)TOGETHER;
    for (int64_t i = task * (int64_t)TOGETHER; i < end; i += LANES)
        v_store(a->out + i, v_add(v_load(a->x + i), v_given(a->part, i, a->narrow)));
}

INLINE TARGET void gate_some_as(const Gated *g, int task, const int narrow)
{
    const int64_t end = g->size < (task + 1) * (int64_t)TOGETHER ? g->size : (task + 1) * (int64_t)TOGETHER;
    const V one = v_set(1.0f);
    for (int64_t i = task * (int64_t)TOGETHER; i < end; i += LANES) {
        V gate = v_given(g->gate, i, narrow), up = v_given(g->up, i, narrow);
        V share = v_div(one, v_add(one, v_exp(v_sub(v_set(0.0f), gate)))), open = v_mul(gate, share);
        if (g->out)
            v_give(g->out, i, v_mul(open, up), narrow);
        if (!g->gradient)
            continue;
        V gradient = v_given(g->gradient, i, narrow);
        V slope = v_fma(open, v_sub(one, share), share); /* of silu */
        v_give(g->gate_gradient, i, v_mul(v_mul(gradient, up), slope), narrow);
        v_give(g->up_gradient, i, v_mul(gradient, open), narrow);
    }
}

static TARGET void gate_some(const Gated *g, int task)
{
    if (g->narrow)
        gate_some_as(g, task, 1);
    else
        gate_some_as(g, task, 0);
}

INLINE TARGET void turn_rows_as(const TurnedRows *t, int task, const int narrow)
{
    const int64_t end = t->rows < (task + 1) * (int64_t)ROWS_TOGETHER ? t->rows : (task + 1) * (int64_t)ROWS_TOGETHER;
    for (int64_t row = task * (int64_t)ROWS_TOGETHER; row < end; row++)
        for (int head = 0; head < t->heads; head++) {
            const int64_t at = (row * t->heads + head) * t->head_dim;
            for (int i = 0; i < t->half; i += LANES) {
                V a = v_given(t->x, at + i, narrow), b = v_given(t->x, at + t->half + i, narrow);
                V c = v_load(t->cosine + row * t->half + i), s = v_load(t->sine + row * t->half + i);
                s = t->back ? v_sub(v_set(0.0f), s) : s;
                v_give(t->out, at + i, v_fma(v_sub(v_set(0.0f), b), s, v_mul(a, c)), narrow);
                v_give(t->out, at + t->half + i, v_fma(a, s, v_mul(b, c)), narrow);
            }
            for (int i = 2 * t->half; i < t->head_dim; i += LANES)
                v_give(t->out, at + i, v_given(t->x, at + i, narrow), narrow);
        }
}

static TARGET void turn_rows(const TurnedRows *t, int task)
{
    if (t->narrow)
        turn_rows_as(t, task, 1);
    else
        turn_rows_as(t, task, 0);
}

static TARGET void blend_some(const Blended *b, int task)
{
    const int64_t end = b->size < (task + 1) * (int64_t)TOGETHER ? b->size : (task + 1) * (int64_t)TOGETHER;
    const V new = v_set(1.0f - b->kept);
    for (int64_t i = task * (int64_t)TOGETHER; i < end; i += LANES) {
        V gradient = v_load(b->gradient + i), momentum = v_load(b->momentum + i);
        momentum = v_fma(v_sub(gradient, momentum), new, momentum);
        v_store(b->momentum + i, momentum);
        v_store(b->update + i, v_fma(v_sub(gradient, momentum), new, momentum));
    }
}

INLINE TARGET void move_rows_as(const MovedRows *m, int task, const int narrow)
{
    const int64_t end = m->rows < (task + 1) * (int64_t)ROWS_TOGETHER ? m->rows : (task + 1) * (int64_t)ROWS_TOGETHER;
    const V rate = v_set(-m->rate), decay = v_set(m->decay);
    for (int64_t row = task * (int64_t)ROWS_TOGETHER, at = row * m->size; row < end; row++, at += m->size) {
        const V scale = v_set(m->scales[row]);
        for (int i = 0; i < m->size; i += LANES) {
            V weight = v_load(m->weights + at + i), step = v_mul(v_given(m->directions, at + i, narrow), scale);
            V decayed = m->cautious ? v_keep(v_mul(step, weight), FLT_MIN, weight) : weight;
            v_store(m->weights + at + i, v_fma(v_fma(decayed, decay, step), rate, weight));
        }
    }
}

static TARGET void move_rows(const MovedRows *m, int task)
{
    if (m->narrow)
        move_rows_as(m, task, 1);
    else
        move_rows_as(m, task, 0);
}

static TARGET void square_some(const Squared *s, int task)
{
    const int64_t end = s->size < (task + 1) * (int64_t)TOGETHER ? s->size : (task + 1) * (int64_t)TOGETHER;
    double sum = 0;
    for (int64_t start = task * (int64_t)TOGETHER; start < end; start += DRAWN_TOGETHER) {
        V lanes = v_set(0.0f);
        for (int64_t i = start; i < start + DRAWN_TOGETHER && i < end; i += LANES)
            lanes = v_fma(v_load(s->x + i), v_load(s->x + i), lanes);
        sum += (double)v_sum(lanes);
    }
    s->sums[task] = sum;
}

enum { BLOCK = 32 };

/* Eight rows of 8 · eights numbers → as many rows of eight. */
INLINE TARGET void transpose_eight(const uint16_t *x, int64_t stride, int eights, uint16_t *out, int64_t out_stride)
{
    for (int eight = 0; eight < eights; eight++, x += 8, out += 8 * out_stride) {
#if defined(__x86_64__)
        __m128i rows[8], found[8];
        UNROLL(8) for (int i = 0; i < 8; i++)
            rows[i] = _mm_loadu_si128((const __m128i *)(const void *)(x + i * stride));
        UNROLL(4) for (int stage = 0; stage < 3; stage++) {
            UNROLL(4) for (int i = 0; i < 4; i++) {
                found[2 * i] = _mm_unpacklo_epi16(rows[i], rows[i + 4]);
                found[2 * i + 1] = _mm_unpackhi_epi16(rows[i], rows[i + 4]);
            }
            UNROLL(8) for (int i = 0; i < 8; i++)
                rows[i] = found[i];
        }
        UNROLL(8) for (int i = 0; i < 8; i++)
            _mm_storeu_si128((__m128i *)(void *)(out + i * out_stride), rows[i]);
#else
        for (int i = 0; i < 8; i++)
            for (int column = 0; column < 8; column++)
                out[column * out_stride + i] = x[i * stride + column];
#endif
    }
}

/* Past the caches, which would first read the lines that are written. */
INLINE TARGET void write_past(uint16_t *out, const uint16_t *x, int count)
{
#if defined(__x86_64__)
    if ((uintptr_t)out % 16 == 0 && count % 8 == 0) {
        for (int i = 0; i < count; i += 8)
            _mm_stream_si128((__m128i *)(void *)(out + i), _mm_loadu_si128((const __m128i *)(const void *)(x + i)));
        return;
    }
#endif
    memcpy(out, x, (size_t)count * sizeof(uint16_t));
}

/* By blocks: of a block's columns `out` has whole cache lines. */
static TARGET void transpose_rows(const Transposed *t, int task)
{
    const int64_t first = task * (int64_t)ROWS_TOGETHER;
    const int rows = (int)(t->rows - first < ROWS_TOGETHER ? t->rows - first : ROWS_TOGETHER);
    uint16_t block[BLOCK][ROWS_TOGETHER];
    for (int start = 0; start < t->size; start += BLOCK) {
        const int columns = t->size - start < BLOCK ? t->size - start : BLOCK;
        const uint16_t *x = t->x + first * t->size + start;
        for (int row = 0; row < rows; row++) {
            const int together = row + 8 <= rows ? columns / 8 : 0;
            __builtin_prefetch(x + row * (int64_t)t->size + 2 * BLOCK);
            if (together && row % 8 == 0)
                transpose_eight(x + row * (int64_t)t->size, t->size, together, &block[0][row], ROWS_TOGETHER);
            for (int column = row / 8 * 8 + 8 <= rows ? columns / 8 * 8 : 0; column < columns; column++)
                block[column][row] = x[row * (int64_t)t->size + column];
        }
        for (int column = 0; column < columns; column++) {
            const int64_t at = (start + column) * t->stride + first;
            if (!t->added) {
                write_past((uint16_t *)t->out + at, block[column], rows);
                continue;
            }
            float *out = (float *)t->out + at;
            int row = 0;
            for (; row + LANES <= rows; row += LANES)
                v_store(out + row, v_add(v_load(out + row), v_bf16(block[column] + row)));
            for (; row < rows; row++) {
                const uint32_t bits = (uint32_t)block[column][row] << 16;
                float number;
                memcpy(&number, &bits, sizeof number);
                out[row] += number;
            }
        }
    }
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

INLINE TARGET void differentiate_as(const LabelledRows *l, int64_t row, float *scratch, const int narrow)
{
    const int64_t at = row * l->stride, labels = row * l->width;
    V most = v_set(-INFINITY), strange = v_set(0.0f);
    for (int i = 0; i < l->size; i += LANES) {
        V x = v_given(l->logits, at + i, narrow);
        most = v_max(most, x);
        strange = v_add(strange, v_sub(x, x));
    }
    const float top = v_top(most);
    double total = v_sum(strange); /* 0, or what is no number, which the largest would hide */
    for (int start = 0; start < l->size; start += DRAWN_TOGETHER) {
        const int end = l->size - start < DRAWN_TOGETHER ? l->size : start + DRAWN_TOGETHER;
        V sum = v_set(0.0f);
        for (int i = start; i < end; i += LANES) {
            V weight = v_exp(v_sub(v_given(l->logits, at + i, narrow), v_set(top)));
            sum = v_add(sum, weight);
            v_store(scratch + i, weight);
        }
        total += (double)v_sum(sum);
    }
    const float shift = top + (float)log(total);
    V inverse = v_set((float)(1.0 / total));
    for (int i = 0; i < l->size; i += LANES)
        v_store(scratch + i, v_mul(v_load(scratch + i), inverse));
    float loss = 0;
    for (int k = 0; k < l->width; k++) {
        const int64_t label = l->labels[labels + k];
        const float share = l->shares ? l->shares[labels + k] : 1.0f;
        float lanes[LANES];
        v_store(lanes, v_given(l->logits, at + label / LANES * LANES, narrow));
        loss += share * (shift - lanes[label % LANES]);
        scratch[label] -= share;
    }
    l->losses[row] = loss;
    for (int i = 0; i < l->size; i += LANES)
        v_give(l->logits, at + i, v_load(scratch + i), narrow);
}

static TARGET void differentiate(const LabelledRows *l, int64_t row, float *scratch)
{
    if (l->narrow)
        differentiate_as(l, row, scratch, 1);
    else
        differentiate_as(l, row, scratch, 0);
}

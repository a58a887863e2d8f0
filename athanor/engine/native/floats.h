/* Everything but matrix products, written once over a vector of 16 floats. The file that includes this defines the type V,
   TARGET, and the functions v_*; see scalar.c for what each of them means. */
#include <math.h>
#include <stddef.h>

/* Cephes' expf, to about one unit in the last place; 0 below −87, where it would become subnormal. */
INLINE TARGET V v_exp(V x)
{
    const float shift = 12582912.0f; /* 1.5 · 2^23: adding it rounds to a whole number */
    V bounded = v_min(v_max(x, v_set(-87.0f)), v_set(88.0f));
    V shifted = v_fma(bounded, v_set(1.44269504088896341f), v_set(shift));
    V power = v_sub(shifted, v_set(shift));
    V rest = v_fma(power, v_set(-0.693359375f), bounded);
    rest = v_fma(power, v_set(2.12194440e-4f), rest);
    V sum = v_set(1.9875691500e-4f);
    sum = v_fma(sum, rest, v_set(1.3981999507e-3f));
    sum = v_fma(sum, rest, v_set(8.3334519073e-3f));
    sum = v_fma(sum, rest, v_set(4.1665795894e-2f));
    sum = v_fma(sum, rest, v_set(1.6666665459e-1f));
    sum = v_fma(sum, rest, v_set(5.0000001201e-1f));
    sum = v_fma(v_mul(rest, rest), sum, v_add(rest, v_set(1.0f)));
    return v_keep(x, -87.0f, v_mul(sum, v_power_of_two(shifted)));
}

/* x / √(mean of squares + epsilon) · gain. Both are zero from `size` to the next multiple of 16. */
static TARGET void norm(const float *x, const float *gain, float epsilon, int size, float *out)
{
    V squares = v_set(0.0f);
    for (int i = 0; i < size; i += LANES)
        squares = v_fma(v_load(x + i), v_load(x + i), squares);
    float scale = 1.0f / root(v_sum(squares) / (float)size + epsilon);
    for (int i = 0; i < size; i += LANES)
        v_store(out + i, v_mul(v_mul(v_load(x + i), v_set(scale)), v_load(gain + i)));
}

/* Columns first … first + columns of a row, both multiples of 32: scale = largest / 127, q = x / scale to nearest; where
   they are wide, 256 times as fine. */
INLINE TARGET void quantise_as(const Rows *rows, const int wide, int row, int first, int columns)
{
    const float *x = rows->x + (size_t)row * (size_t)rows->stride, steps = wide ? 32512.0f : 127.0f;
    int8_t *q = rows->q + q_at(row, rows->q_stride), *fine = wide ? rows->low + q_at(row, rows->q_stride) : NULL;
    int8_t whole[GROUP], rest[GROUP];
    for (int i = first; i < first + columns; i += GROUP) {
        size_t group = group_at(row, rows->group_stride) + (size_t)(i / GROUP) * PANEL;
        V low = v_load(x + i), high = v_load(x + i + LANES);
        V zero = v_set(0.0f);
        float largest = v_top(v_max(v_max(low, v_sub(zero, low)), v_max(high, v_sub(zero, high))));
        float inverse = largest > 1e-30f ? steps / largest : 0.0f;
        low = v_mul(low, v_set(inverse));
        high = v_mul(high, v_set(inverse));
        int32_t sum = wide ? v_halves(low, whole, rest) : v_whole(low, whole);
        sum += wide ? v_halves(high, whole + LANES, rest + LANES) : v_whole(high, whole + LANES);
        for (int z = 0; z < GROUP / 4; z++) {
            __builtin_memcpy(q + (i / 4 + z) * 4 * PANEL, whole + 4 * z, 4);
            if (wide)
                __builtin_memcpy(fine + (i / 4 + z) * 4 * PANEL, rest + 4 * z, 4);
        }
        rows->scale[group] = largest / steps;
        rows->offset[group] = rows->scale[group] * (float)sum;
        rows->minus8[group] = -8 * sum;
        rows->minus128[group] = -128 * sum;
    }
}

static TARGET void quantise(const Rows *rows, int row, int first, int columns)
{
    if (rows->wide)
        quantise_as(rows, 1, row, first, columns);
    else
        quantise_as(rows, 0, row, first, columns);
}

/* Rotary positions: the halves of a head's first 2 · half numbers are turned against each other. */
static TARGET void turn(float *head, const float *cosine, const float *sine, int half)
{
    int i = 0;
    for (; i + LANES <= half; i += LANES) {
        V a = v_load(head + i), b = v_load(head + half + i), c = v_load(cosine + i), s = v_load(sine + i);
        v_store(head + i, v_fma(v_sub(v_set(0.0f), b), s, v_mul(a, c)));
        v_store(head + half + i, v_fma(a, s, v_mul(b, c)));
    }
    for (; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = one_fma(-b, sine[i], a * cosine[i]);
        head[half + i] = one_fma(a, sine[i], b * cosine[i]);
    }
}

static TARGET void place(const float *found, const float *bias, int count, int tiles, int valid, int added, float *out, int64_t stride)
{
    for (int i = 0; i < count; i++, found += tiles * LANES, out += stride) {
        int at = 0;
        for (; at + LANES <= valid; at += LANES) {
            V sum = bias ? v_add(v_load(found + at), v_load(bias + at)) : v_load(found + at);
            v_store(out + at, added ? v_add(v_load(out + at), sum) : sum);
        }
        for (; at < valid; at++) {
            float sum = bias ? found[at] + bias[at] : found[at];
            out[at] = added ? out[at] + sum : sum;
        }
    }
}

/* silu(gate) · up; size is a multiple of 16. */
static TARGET void gate_up(const float *gate, const float *up, float *out, int size)
{
    for (int i = 0; i < size; i += LANES) {
        V g = v_load(gate + i);
        V below = v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), g)));
        v_store(out + i, v_mul(v_div(g, below), v_load(up + i)));
    }
}

/* 16 logits from `i` on; what is not there is less than anything. */
INLINE TARGET V v_logits(const float *logits, int i, int size)
{
    if (i + LANES <= size)
        return v_load(logits + i);
    float rest[LANES];
    for (int lane = 0; lane < LANES; lane++)
        rest[lane] = i + lane < size ? logits[i + lane] : -INFINITY;
    return v_load(rest);
}

static TARGET double weigh(const float *logits, int size, float temperature, float *weights, double *sums, float *largest)
{
    V top = v_set(-INFINITY), inverse = v_set(1.0f / temperature);
    for (int i = 0; i < size; i += LANES)
        top = v_max(top, v_logits(logits, i, size));
    float most = v_top(top);
    double total = 0;
    for (int start = 0; start < size; start += DRAWN_TOGETHER) {
        V sum = v_set(0.0f);
        for (int i = start; i < start + DRAWN_TOGETHER; i += LANES) {
            V weight = v_exp(v_mul(v_sub(v_logits(logits, i, size), v_set(most)), inverse));
            sum = v_add(sum, weight);
            if (weights)
                v_store(weights + i, weight);
        }
        double found = (double)v_sum(sum);
        total += found;
        if (sums)
            sums[start / DRAWN_TOGETHER] = found;
    }
    if (largest)
        *largest = most;
    return total;
}

INLINE TARGET V v_cached(const uint8_t *place, int index, const int kind)
{
    return kind == CACHE_INT8  ? v_bytes((const int8_t *)place + index)
           : kind == CACHE_F16 ? v_half((const uint16_t *)(const void *)place + index)
                               : v_load((const float *)(const void *)place + index);
}

/* The scores of `n` queries with a block's 16 keys, stored dimension by dimension. scales: of keys of 8 bits. */
INLINE TARGET void score(const int n, const int kind, const uint8_t *keys, const float *scales, const float *const *queries,
                         int head_dim, float *out, int stride)
{
    V sums[8];
    UNROLL(8) for (int i = 0; i < n; i++) sums[i] = v_set(0.0f);
    for (int d = 0; d < head_dim; d++) {
        V key = v_cached(keys, d * PLACES, kind);
        UNROLL(8) for (int i = 0; i < n; i++) sums[i] = v_fma(key, v_set(queries[i][d]), sums[i]);
    }
    UNROLL(8) for (int i = 0; i < n; i++)
        v_store(out + (size_t)i * (size_t)stride, kind == CACHE_INT8 ? v_mul(sums[i], v_load(scales)) : sums[i]);
}

/* Sums of values weighted for `n` queries, `d` vectors of each value. weights: the first query's at the first place.
   values, scales: where they begin in a block; weights are multiplied with the scales of values of 8 bits. */
INLINE TARGET void mix(const int n, const int d, const int kind, const Attention *a, int first, int last, int dim,
                       int64_t values, int64_t scales, const float *weights, float (*out)[LANES * 4])
{
    V sums[4][4];
    int padded = (a->head_dim + LANES - 1) / LANES * LANES;
    UNROLL(4) for (int i = 0; i < n; i++)
        UNROLL(4) for (int j = 0; j < d; j++) sums[i][j] = v_set(0.0f);
    for (int block = first; block <= last / PLACES; block++) {
        const uint8_t *whole = a->cache + (int64_t)a->blocks[block] * a->block_bytes, *base = whole + values;
        const float *scale = (const float *)(const void *)(whole + scales);
        int end = last - block * PLACES < PLACES - 1 ? last - block * PLACES : PLACES - 1;
        for (int place = 0; place <= end; place++) {
            const float *weight = weights + (block - first) * PLACES + place;
            V value[4];
            UNROLL(4) for (int j = 0; j < d; j++) value[j] = v_cached(base, place * padded + dim + j * LANES, kind);
            UNROLL(4) for (int i = 0; i < n; i++) {
                float given = weight[(size_t)i * (size_t)a->scratch_stride];
                V w = v_set(kind == CACHE_INT8 ? given * scale[place] : given);
                UNROLL(4) for (int j = 0; j < d; j++) sums[i][j] = v_fma(value[j], w, sums[i][j]);
            }
        }
    }
    UNROLL(4) for (int i = 0; i < n; i++)
        UNROLL(4) for (int j = 0; j < d; j++) v_store(out[i] + j * LANES, sums[i][j]);
}

/* Softmax of the scores of one query, up to the division: exp(score − largest) in place. Returns the sum, of which each
   lane first adds its own places in order. */
INLINE TARGET float exponents(float *scores, int count)
{
    V largest = v_load(scores);
    for (int i = LANES; i < count; i += LANES)
        largest = v_max(largest, v_load(scores + i));
    V top = v_set(v_top(largest)), sum = v_set(0.0f);
    for (int i = 0; i < count; i += LANES) {
        V e = v_exp(v_sub(v_load(scores + i), top));
        v_store(scores + i, e);
        sum = v_add(sum, e);
    }
    return v_sum(sum);
}

INLINE TARGET void attend_as(const Attention *a, const int kind)
{
    const float *queries[MOST_QUERIES];
    int position[MOST_QUERIES], n = a->rows * a->heads, size = (int)cached_bytes(kind);
    for (int i = 0; i < n; i++) {
        queries[i] = a->queries + (size_t)(i / a->heads) * (size_t)a->query_stride + (i % a->heads) * a->head_dim;
        position[i] = a->position + i / a->heads;
    }
    int last = position[n - 1], lowest = a->window && a->position >= a->window ? a->position - a->window + 1 : 0;
    int first = lowest / PLACES, padded = (a->head_dim + LANES - 1) / LANES * LANES;
    int64_t key_bytes = (int64_t)a->head_dim * PLACES * size, value_bytes = (int64_t)padded * PLACES * size;
    int64_t keys = a->kv_head * key_bytes, values = a->n_kv_heads * key_bytes + a->kv_head * value_bytes;
    int64_t scales = kind == CACHE_INT8 ? scales_at(kind, a->n_kv_heads, a->head_dim) + a->kv_head * 2 * PLACES * 4 : 0;
    for (int block = first; block <= last / PLACES; block++) {
        const uint8_t *whole = a->cache + (int64_t)a->blocks[block] * a->block_bytes, *base = whole + keys;
        const float *scale = (const float *)(const void *)(whole + scales);
        float *out = a->scratch + (block - first) * PLACES;
        int i = 0;
#define SCORE(N) score(N, kind, base, scale, queries + i, a->head_dim, out + (size_t)i * (size_t)a->scratch_stride, a->scratch_stride)
        for (; i + SCORES <= n; i += SCORES)
            SCORE(SCORES);
        switch (n - i) {
        case 7: SCORE(7); break;
        case 6: SCORE(6); break;
        case 5: SCORE(5); break;
        case 4: SCORE(4); break;
        case 3: SCORE(3); break;
        case 2: SCORE(2); break;
        case 1: SCORE(1); break;
        default: break;
        }
#undef SCORE
        for (i = 0; i < n; i++) {
            int low = a->window ? position[i] - a->window + 1 : 0;
            if (block * PLACES < low || block * PLACES + PLACES - 1 > position[i])
                for (int lane = 0; lane < PLACES; lane++)
                    if (block * PLACES + lane < low || block * PLACES + lane > position[i])
                        out[(size_t)i * (size_t)a->scratch_stride + (size_t)lane] = -INFINITY;
        }
    }
    float inverse[MOST_QUERIES], out[4][LANES * 4];
    for (int i = 0; i < n; i++)
        inverse[i] = 1.0f / exponents(a->scratch + (size_t)i * (size_t)a->scratch_stride, (last / PLACES - first + 1) * PLACES);
    for (int i = 0; i < n;) {
        int together = n - i < MIXED ? n - i : MIXED;
        const float *weights = a->scratch + (size_t)i * (size_t)a->scratch_stride;
        for (int dim = 0; dim < padded;) {
            int d = padded - dim >= 4 * LANES ? 4 : padded - dim >= 2 * LANES ? 2 : 1;
#define MIX(N, D) case N * 8 + D: mix(N, D, kind, a, first, last, dim, values, scales + PLACES * 4, weights, out); break
            switch (together * 8 + d) {
                MIX(1, 1); MIX(1, 2); MIX(1, 4); MIX(2, 1); MIX(2, 2); MIX(2, 4);
                MIX(3, 1); MIX(3, 2); MIX(3, 4); MIX(4, 1); MIX(4, 2); MIX(4, 4);
            default: break;
            }
#undef MIX
            int valid = a->head_dim - dim < d * LANES ? a->head_dim - dim : d * LANES;
            for (int k = 0; k < together; k++) {
                int row = (i + k) / a->heads, head = (i + k) % a->heads;
                float *target = a->out + (size_t)row * (size_t)a->out_stride + head * a->head_dim + dim;
                for (int j = 0; j < valid; j++)
                    target[j] = out[k][j] * inverse[i + k];
            }
            dim += d * LANES;
        }
        i += together;
    }
}

static TARGET void attend(const Attention *a)
{
    if (a->cached == CACHE_F16)
        attend_as(a, CACHE_F16);
    else if (a->cached == CACHE_INT8)
        attend_as(a, CACHE_INT8);
    else
        attend_as(a, CACHE_F32);
}

/* For the table of an instruction set: what is written here, */
#define EVERYTHING_ELSE                                                                                                \
    .place = place, .quantise = quantise, .norm = norm, .turn = turn, .gate = gate_up, .attend = attend, .weigh = weigh,  \
    .attend_row = attend_row, .norm_rows = norm_rows, .add_some = add_some, .gate_some = gate_some,                    \
    .turn_rows = turn_rows,                                                                                            \
    .blend_some = blend_some, .move_rows = move_rows, .square_some = square_some,              \
    .transpose_rows = transpose_rows, .differentiate = differentiate

/* and products of all formats, by the macros PLAIN and WHOLE of those that have their own. */
#define MULTIPLIERS                                                                                                    \
    PLAIN(f32, F32)                                                                                                    \
    PLAIN(bf16, BF16)                                                                                                  \
    WHOLE(int8, 0, INT8)                                                                                               \
    WHOLE(q8_0, 0, Q8_0)                                                                                               \
    WHOLE(q4_0, 0, Q4_0)                                                                                               \
    WHOLE(q4_1, 0, Q4_1)                                                                                               \
    WHOLE(wide_int8, 1, INT8)                                                                                          \
    WHOLE(wide_q8_0, 1, Q8_0)                                                                                          \
    WHOLE(wide_q4_0, 1, Q4_0)                                                                                          \
    WHOLE(wide_q4_1, 1, Q4_1)

/* Attention of packed documents in bf16 on AMX, whose tiles are 16 rows of 64 bytes: products of bf16 summed in fp32. Scores
   are fp32, as are softmax and its gradient; weights and slopes are rounded to bf16 for the products that they go into. */

#define TILES __attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))

INLINE TILES void narrow(uint16_t *out, V x)
{
    _mm256_storeu_si256((__m256i *)(void *)out, (__m256i)_mm512_cvtneps_pbh(x));
}

enum { QUERIES = 32, DEEP = 32 }; /* of a head that are attended together; numbers in a tile's row */

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileShapes;

/* oneDNN takes for granted that the shapes it has set stay, so they are put back. */
INLINE TILES void whole_tiles(TileShapes *before)
{
    TileShapes whole = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        whole.bytes[i] = 64;
        whole.rows[i] = 16;
    }
    _tile_storeconfig(before);
    _tile_loadconfig(&whole);
}

/* Rows of `size` numbers, `stride` apart, one after the other; missing ones up to `padded` are zero. */
INLINE TILES void gather_rows(const uint16_t *x, int64_t stride, int count, int padded, int size, uint16_t *out)
{
    for (int row = 0; row < padded; row++, out += size)
        if (row < count)
            memcpy(out, x + row * stride, (size_t)size * sizeof(uint16_t));
        else
            memset(out, 0, (size_t)size * sizeof(uint16_t));
}

/* Two operands that a tile of 16 columns is made of, two numbers of each column side by side: rows as columns,
   [row / 16][size / 2][16] pairs of neighbours in a row … */
INLINE TILES void rows_as_columns(const uint16_t *rows, int count, int size, uint32_t *out)
{
    for (int block = 0; block < count; block += LANES, rows += LANES * size, out += LANES * size / 2)
        for (int row = 0; row < LANES; row++) {
            uint32_t pairs[128];
            memcpy(pairs, rows + row * size, (size_t)size * sizeof(uint16_t));
            for (int pair = 0; pair < size / 2; pair++)
                out[pair * LANES + row] = pairs[pair];
        }
}

/* … and columns as they are, [row / 2][size] pairs of neighbours in a column. */
INLINE TILES void rows_in_pairs(const uint16_t *rows, int count, int size, uint32_t *out)
{
    for (int row = 0; row < count; row += 2, rows += 2 * size, out += size)
        for (int d = 0; d < size; d += LANES) {
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(rows + d)));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(rows + size + d)));
            _mm512_storeu_si512(out + d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

/* Tiles 0 to 3 are sums of 32 × 32: 4 and 5 of the one side, 6 and 7 of the other are multiplied into them. */
INLINE TILES void zero_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
INLINE TILES void multiply_tiles(void)
{
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}
INLINE TILES void store_sums(float *out, int stride)
{
    _tile_stored(0, out, stride * 4);
    _tile_stored(1, out + LANES, stride * 4);
    _tile_stored(2, out + LANES * stride, stride * 4);
    _tile_stored(3, out + LANES * stride + LANES, stride * 4);
}

/* The products of QUERIES rows with those from … to of what `rows_as_columns` made: out [QUERIES][stride]. */
INLINE TILES void tile_products(const uint16_t *rows, const uint32_t *columns, int size, int from, int to, float *out, int stride)
{
    for (int place = from; place < to; place += DEEP) {
        const uint32_t *block = columns + (int64_t)place * size / 2;
        zero_sums();
        for (int d = 0; d < size; d += DEEP) {
            _tile_loadd(4, rows + d, size * 2);
            _tile_loadd(5, rows + LANES * size + d, size * 2);
            _tile_loadd(6, block + d * LANES / 2, LANES * 4);
            _tile_loadd(7, block + (d + size) * LANES / 2, LANES * 4);
            multiply_tiles();
        }
        store_sums(out + place, stride);
    }
}

/* out [QUERIES][size] = Σ over places from … to of weights[i][place] · pairs[place]. */
INLINE TILES void tile_gather(const uint16_t *weights, int stride, const uint32_t *pairs, int size, int from, int to, float *out)
{
    for (int d = 0; d < size; d += DEEP) {
        zero_sums();
        for (int place = from; place < to; place += DEEP) {
            const uint32_t *rows = pairs + (int64_t)place / 2 * size + d;
            _tile_loadd(4, weights + place, stride * 2);
            _tile_loadd(5, weights + LANES * stride + place, stride * 2);
            _tile_loadd(6, rows, size * 4);
            _tile_loadd(7, rows + LANES, size * 4);
            multiply_tiles();
        }
        store_sums(out + d, size);
    }
}

/* rows[place] += Σ over i of weights[place][i] · pairs[i], for places from … to. */
INLINE TILES void tile_scatter(const uint16_t *weights, const uint32_t *pairs, int size, int from, int to, float *rows)
{
    for (int d = 0; d < size; d += DEEP) {
        _tile_loadd(6, pairs + d, size * 4);
        _tile_loadd(7, pairs + d + LANES, size * 4);
        for (int place = from; place < to; place += DEEP) {
            float *sums = rows + (int64_t)place * size + d;
            _tile_loadd(4, weights + place * QUERIES, QUERIES * 2);
            _tile_loadd(5, weights + (place + LANES) * QUERIES, QUERIES * 2);
            _tile_loadd(0, sums, size * 4);
            _tile_loadd(1, sums + LANES, size * 4);
            _tile_loadd(2, sums + LANES * size, size * 4);
            _tile_loadd(3, sums + LANES * size + LANES, size * 4);
            multiply_tiles();
            store_sums(sums, size);
        }
    }
}

/* [QUERIES][stride], columns from … to → [column][QUERIES] */
INLINE TILES void queries_last(const uint16_t *x, int stride, int from, int to, uint16_t *out)
{
    for (int i = 0; i < QUERIES; i += 8)
        transpose_eight(x + i * stride + from, stride, (to - from) / 8, out + from * QUERIES + i, QUERIES);
}

/* Which of the places at … at + 15 lie from `first` to `last`. */
INLINE TILES __mmask16 attended(int at, int first, int last)
{
    const int low = first - at < 0 ? 0 : first - at > 16 ? 16 : first - at;
    const int high = last + 1 - at < 0 ? 0 : last + 1 - at > 16 ? 16 : last + 1 - at;
    return (__mmask16)((0xffffu << low) & (0xffffu >> (16 - high)));
}

/* As `attend_row`, of bf16 and head_dim a multiple of 32. */
static TILES void attend_row_in_tiles(const PackedAttention *a, int task, float *scratch)
{
    const int size = a->head_dim, time = a->time, padded = (time + DEEP - 1) / DEEP * DEEP, shared = a->heads / a->kv_heads;
    const int64_t batch = task / a->kv_heads, kv_head = task % a->kv_heads;
    const int64_t stride = (int64_t)a->heads * size, kv_stride = (int64_t)a->kv_heads * size;
    const int64_t kv_at = batch * time * kv_stride + kv_head * size, whole = (int64_t)padded * size;
    const uint16_t *all_queries = a->queries, *all_gradients = a->out_gradient;
    const int back = all_gradients != NULL;
    uint32_t *keys = (uint32_t *)(((uintptr_t)scratch + 63) / 64 * 64), *values = keys + whole / 2, *key_pairs = values + whole / 2;
    float *key_gradient = (float *)(key_pairs + whole / 2), *value_gradient = key_gradient + whole;
    float *scores = value_gradient + whole, *slopes = scores + QUERIES * padded, *found = slopes + QUERIES * padded;
    uint16_t *weights = (uint16_t *)(found + QUERIES * size), *narrow_slopes = weights + QUERIES * padded;
    uint16_t *turned = narrow_slopes + QUERIES * padded, *queries = turned + QUERIES * padded, *given = queries + QUERIES * size;
    uint32_t *pairs = (uint32_t *)(given + QUERIES * size);
    uint16_t *rows = (uint16_t *)scores; /* whole / 2 floats at most, before there are scores */
    TileShapes before;
    whole_tiles(&before);
    gather_rows((const uint16_t *)a->keys + kv_at, kv_stride, time, padded, size, rows);
    rows_as_columns(rows, padded, size, keys);
    if (back)
        rows_in_pairs(rows, padded, size, key_pairs);
    gather_rows((const uint16_t *)a->values + kv_at, kv_stride, time, padded, size, rows);
    if (back) {
        rows_as_columns(rows, padded, size, values);
        memset(key_gradient, 0, (size_t)whole * 2 * sizeof(float)); /* and the values' */
    } else
        rows_in_pairs(rows, padded, size, values);
    for (int head = (int)kv_head * shared; head < (int)(kv_head + 1) * shared; head++)
        for (int start = 0; start < time; start += QUERIES) {
            const int count = time - start < QUERIES ? time - start : QUERIES;
            const int64_t at = (batch * time + start) * stride + (int64_t)head * size;
            const int32_t *first = a->first + batch * time + start, *last = a->last + batch * time + start;
            float *logsumexp = a->logsumexp + (batch * a->heads + head) * time + start, inverse[QUERIES];
            int lowest = start, end = start + 1;
            for (int i = 0; i < count; i++) {
                lowest = first[i] < lowest ? first[i] : lowest;
                end = last[i] + 1 > end ? last[i] + 1 : end;
            }
            const int from = lowest / DEEP * DEEP, to = (end + DEEP - 1) / DEEP * DEEP;
            const int next = time - start - QUERIES < QUERIES ? time - start - QUERIES : QUERIES;
            const V scale = v_set(a->scale);
            ask_for(a->queries, at + QUERIES * stride, stride, next, size, 1);
            if (back) {
                ask_for(a->out_gradient, at + QUERIES * stride, stride, next, size, 1);
                ask_for(a->out, at + QUERIES * stride, stride, next, size, 1);
            }
            gather_rows(all_queries + at, stride, count, QUERIES, size, queries);
            tile_products(queries, keys, size, from, to, scores, padded);
            if (back) {
                gather_rows(all_gradients + at, stride, count, QUERIES, size, given);
                tile_products(given, values, size, from, to, slopes, padded);
            }
            for (int i = 0; i < QUERIES; i++) {
                float *row = scores + i * padded;
                uint16_t *weight = weights + i * padded, *slope = narrow_slopes + i * padded;
                const int begin = i < count ? first[i] : padded, stop = i < count ? last[i] : -1;
                V shift, sum = v_set(0.0f), own = v_set(0.0f);
                if (back) {
                    for (int d = 0; i < count && d < size; d += LANES)
                        own = v_fma(v_bf16(given + i * size + d), v_bf16((const uint16_t *)a->out + at + i * stride + d), own);
                    own = v_set(v_sum(own));
                    shift = v_set(i < count ? logsumexp[i] : 0.0f);
                } else {
                    V top = v_set(-INFINITY);
                    for (int place = from; place < to; place += LANES)
                        top = _mm512_mask_max_ps(top, attended(place, begin, stop), top, v_load(row + place));
                    shift = v_set(i < count ? v_top(top) * a->scale : 0.0f);
                }
                for (int place = from; place < to; place += LANES) {
                    const __mmask16 mask = attended(place, begin, stop);
                    V one = v_set(0.0f);
                    if (mask)
                        one = _mm512_maskz_mov_ps(mask, v_exp(v_sub(v_mul(v_load(row + place), scale), shift)));
                    narrow(weight + place, one);
                    sum = v_add(sum, one);
                    if (back)
                        narrow(slope + place, v_mul(v_mul(one, scale), v_sub(v_load(slopes + i * padded + place), own)));
                }
                if (!back && i < count) {
                    const float total = v_sum(sum);
                    inverse[i] = 1.0f / total;
                    logsumexp[i] = _mm512_cvtss_f32(shift) + logf(total);
                }
            }
            tile_gather(back ? narrow_slopes : weights, padded, back ? key_pairs : values, size, from, to, found);
            uint16_t *out = (uint16_t *)(back ? a->query_gradient : a->out) + at;
            for (int i = 0; i < count; i++)
                for (int d = 0; d < size; d += LANES) {
                    V one = v_load(found + i * size + d);
                    narrow(out + i * stride + d, back ? one : v_mul(one, v_set(inverse[i])));
                }
            if (!back)
                continue;
            rows_in_pairs(queries, QUERIES, size, pairs);
            queries_last(narrow_slopes, padded, from, to, turned);
            tile_scatter(turned, pairs, size, from, to, key_gradient);
            rows_in_pairs(given, QUERIES, size, pairs);
            queries_last(weights, padded, from, to, turned);
            tile_scatter(turned, pairs, size, from, to, value_gradient);
        }
    for (int place = 0; back && place < time; place++)
        for (int d = 0; d < size; d += LANES) {
            narrow((uint16_t *)a->key_gradient + kv_at + place * kv_stride + d, v_load(key_gradient + place * size + d));
            narrow((uint16_t *)a->value_gradient + kv_at + place * kv_stride + d, v_load(value_gradient + place * size + d));
        }
    _tile_loadconfig(&before);
}

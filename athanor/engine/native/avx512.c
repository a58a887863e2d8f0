/* AVX-512 with VNNI: a vector holds one value of 16 rows, or four bytes of each; bytes are multiplied and added four at a
   time by vpdpbusd, whose signed operand, the activations, is broadcast from memory. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "kernels.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define SCORES 8
#define MIXED 4
#define AHEAD 2048 /* bytes that are fetched early */

typedef __m512 V;

INLINE TARGET V v_set(float x) { return _mm512_set1_ps(x); }
INLINE TARGET V v_load(const float *x) { return _mm512_loadu_ps(x); }
INLINE TARGET void v_store(float *x, V a) { _mm512_storeu_ps(x, a); }
INLINE TARGET V v_half(const uint16_t *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)x)); }
INLINE TARGET V v_bf16(const uint16_t *x)
{
    __m256i narrow = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}
INLINE TARGET void v_store_bf16(uint16_t *x, V a)
{
    __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i high = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
    high = _mm512_mask_mov_epi32(high, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i *)(void *)x, _mm512_cvtepi32_epi16(high));
}
INLINE TARGET V v_bytes(const int8_t *x)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)x)));
}
INLINE TARGET V v_add(V a, V b) { return _mm512_add_ps(a, b); }
INLINE TARGET V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
INLINE TARGET V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
INLINE TARGET V v_div(V a, V b) { return _mm512_div_ps(a, b); }
INLINE TARGET V v_max(V a, V b) { return _mm512_max_ps(a, b); }
INLINE TARGET V v_min(V a, V b) { return _mm512_min_ps(a, b); }
INLINE TARGET V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE TARGET V v_keep(V x, float least, V a)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_GE_OQ), a);
}
INLINE TARGET V v_power_of_two(V x)
{
    __m512i n = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(127 - 0x4b400000));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}
INLINE TARGET int32_t v_whole(V a, int8_t *q)
{
    __m512i whole = _mm512_cvtps_epi32(a);
    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(whole));
    return _mm512_reduce_add_epi32(whole);
}
INLINE TARGET int32_t v_halves(V a, int8_t *high, int8_t *low)
{
    __m512i whole = _mm512_cvtps_epi32(a), upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(whole)); /* its last eight bits */
    return _mm512_reduce_add_epi32(whole);
}
INLINE TARGET float v_sum(V a)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE TARGET float v_top(V a) { return _mm512_reduce_max_ps(a); }
INLINE TARGET float one_fma(float a, float b, float c)
{
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
INLINE TARGET float root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

#include "floats.h"
#include "training.h"

#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#include "tiles.h"
#else
#define attend_row_in_tiles NULL
#endif

/* Two columns of a tile's 16 rows; bf16 lie side by side. */
INLINE TARGET void two_columns(const int format, const uint8_t *data, V *even, V *odd)
{
    _mm_prefetch((const char *)data + AHEAD, _MM_HINT_T0);
    if (format == F32) {
        _mm_prefetch((const char *)data + AHEAD + 64, _MM_HINT_T0);
        *even = _mm512_loadu_ps(data);
        *odd = _mm512_loadu_ps(data + 64);
    } else {
        __m512i both = _mm512_loadu_si512(data);
        *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000u)));
    }
}

INLINE TARGET void plain(const int n, const int format, const Matrix *m, const Rows *rows, int first, int tile, float *out)
{
    const float *x = rows->x + (size_t)first * (size_t)rows->stride;
    const size_t stride = (size_t)rows->stride, bytes = format == F32 ? 4 : 2;
    const uint8_t *data = (const uint8_t *)m->data + (size_t)tile * (size_t)m->columns * LANES * bytes;
    V even[8], odd[8];
    UNROLL(8) for (int i = 0; i < n; i++) even[i] = odd[i] = _mm512_setzero_ps();
    for (int c = 0; c < m->columns; c += 2, data += 2 * LANES * bytes) {
        V low, high;
        two_columns(format, data, &low, &high);
        UNROLL(8) for (int i = 0; i < n; i++) {
            even[i] = _mm512_fmadd_ps(low, _mm512_set1_ps(x[(size_t)i * stride + (size_t)c]), even[i]);
            odd[i] = _mm512_fmadd_ps(high, _mm512_set1_ps(x[(size_t)i * stride + (size_t)c + 1]), odd[i]);
        }
    }
    UNROLL(8) for (int i = 0; i < n; i++) _mm512_storeu_ps(out + i * LANES, _mm512_add_ps(even[i], odd[i]));
}

/* As `plain`, for two tiles: what is broadcast serves both, so products need not wait for loads. */
INLINE TARGET void pair(const int n, const int format, const Matrix *m, const Rows *rows, int first, int tile, float *out)
{
    const float *x = rows->x + (size_t)first * (size_t)rows->stride;
    const size_t stride = (size_t)rows->stride, bytes = format == F32 ? 4 : 2, apart = (size_t)m->columns * LANES * bytes;
    const uint8_t *data = (const uint8_t *)m->data + (size_t)tile * apart;
    V even[2][6], odd[2][6];
    UNROLL(2) for (int t = 0; t < 2; t++)
        UNROLL(6) for (int i = 0; i < n; i++) even[t][i] = odd[t][i] = _mm512_setzero_ps();
    for (int c = 0; c < m->columns; c += 2, data += 2 * LANES * bytes) {
        V low[2], high[2];
        UNROLL(2) for (int t = 0; t < 2; t++) two_columns(format, data + (size_t)t * apart, &low[t], &high[t]);
        UNROLL(6) for (int i = 0; i < n; i++) {
            V this = _mm512_set1_ps(x[(size_t)i * stride + (size_t)c]), next = _mm512_set1_ps(x[(size_t)i * stride + (size_t)c + 1]);
            UNROLL(2) for (int t = 0; t < 2; t++) {
                even[t][i] = _mm512_fmadd_ps(low[t], this, even[t][i]);
                odd[t][i] = _mm512_fmadd_ps(high[t], next, odd[t][i]);
            }
        }
    }
    UNROLL(6) for (int i = 0; i < n; i++)
        UNROLL(2) for (int t = 0; t < 2; t++)
            _mm512_storeu_ps(out + (2 * i + t) * LANES, _mm512_add_ps(even[t][i], odd[t][i]));
}

/* The same four bytes in every lane. */
INLINE TARGET __m512i same(const void *four)
{
    int32_t value;
    __builtin_memcpy(&value, four, 4);
    return _mm512_set1_epi32(value);
}

/* Where row i of those that are multiplied together has its group, and four columns of it. */
#define GROUP_OF(i) (panel_at(i, (int)group_stride) + (size_t)(i) % PANEL)
#define Q_OF(i, z) (panel_at(i, (int)q_stride) + (size_t)((z) * PANEL + (i) % PANEL) * 4)

INLINE TARGET void whole(const int n, const int wide, const int format, const Matrix *m, const Rows *rows, int first, int tile, float *out, int stride)
{
    const int nibbles = format == Q4_0 || format == Q4_1, bytes = nibbles ? GROUP * LANES / 2 : GROUP * LANES;
    size_t groups = (size_t)m->columns / GROUP, block = (size_t)tile * groups, at = group_at(first, rows->group_stride);
    size_t q_stride = (size_t)rows->q_stride, group_stride = (size_t)rows->group_stride;
    const uint8_t *data = (const uint8_t *)m->data + block * (size_t)bytes;
    const uint16_t *scales = (const uint16_t *)m->scales + block * LANES, *minima = (const uint16_t *)m->minima;
    const int8_t *q = rows->q + q_at(first, rows->q_stride), *low = wide ? rows->low + q_at(first, rows->q_stride) : NULL;
    const float *steps = rows->scale + at, *offsets = rows->offset + at;
    const int32_t *starts = (nibbles ? rows->minus8 : rows->minus128) + at;
    if (format == Q4_1)
        minima += block * LANES;
    V sums[8];
    UNROLL(8) for (int i = 0; i < n; i++) sums[i] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g++, data += bytes, q += GROUP * PANEL) {
        __m512i w[8];
        UNROLL(8) for (int z = 0; z < bytes / 64; z++) {
            _mm_prefetch((const char *)data + AHEAD + 64 * z, _MM_HINT_T0);
            w[z] = _mm512_loadu_si512(data + 64 * z);
        }
        if (nibbles) {
            const __m512i low = _mm512_set1_epi8(15);
            UNROLL(4) for (int z = 0; z < 4; z++) {
                w[z + 4] = _mm512_and_si512(_mm512_srli_epi16(w[z], 4), low);
                w[z] = _mm512_and_si512(w[z], low);
            }
        }
        V step = format == INT8 ? _mm512_setzero_ps() : v_half(scales + g * LANES);
        V minimum = format == Q4_1 ? v_half(minima + g * LANES) : _mm512_setzero_ps();
        /* so many chains of sums run side by side that one need not wait for another's last product */
        __m512i sum[8], upper[4];
        const int8_t *last = wide ? low + g * GROUP * PANEL : q;
        const int32_t *start = starts + g * PANEL;
        const int apart = wide && n <= 4; /* few rows: both halves have chains of their own */
        UNROLL(8) for (int i = 0; i < n; i++)
            sum[i] = (wide && !apart) || format == Q4_1 ? _mm512_setzero_si512() : same(start + GROUP_OF(i));
        if (wide && !apart) {
            UNROLL(8) for (int z = 0; z < 8; z++)
                UNROLL(8) for (int i = 0; i < n; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], w[z], same(q + Q_OF(i, z)));
            UNROLL(8) for (int i = 0; i < n; i++) sum[i] = _mm512_slli_epi32(sum[i], 8);
            if (format != Q4_1)
                UNROLL(8) for (int i = 0; i < n; i++) sum[i] = _mm512_add_epi32(sum[i], same(start + GROUP_OF(i)));
        }
        if (apart)
            UNROLL(4) for (int i = 0; i < n; i++) upper[i] = _mm512_setzero_si512();
        UNROLL(8) for (int z = 0; z < 8; z++)
            UNROLL(8) for (int i = 0; i < n; i++) {
                sum[i] = _mm512_dpbusd_epi32(sum[i], w[z], same(last + Q_OF(i, z)));
                if (apart)
                    upper[i] = _mm512_dpbusd_epi32(upper[i], w[z], same(q + Q_OF(i, z)));
            }
        if (apart)
            UNROLL(4) for (int i = 0; i < n; i++) sum[i] = _mm512_add_epi32(sum[i], _mm512_slli_epi32(upper[i], 8));
        UNROLL(8) for (int i = 0; i < n; i++) {
            size_t s = g * PANEL + GROUP_OF(i);
            V scale = _mm512_set1_ps(steps[s]);
            if (format != INT8)
                scale = _mm512_mul_ps(step, scale);
            sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i]), scale, sums[i]);
            if (format == Q4_1)
                sums[i] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(offsets[s]), sums[i]);
        }
    }
    V scale = format == INT8 ? _mm512_loadu_ps((const float *)m->scales + tile * LANES) : _mm512_set1_ps(1.0f);
    UNROLL(8) for (int i = 0; i < n; i++)
        _mm512_storeu_ps(out + i * stride, format == INT8 ? _mm512_mul_ps(sums[i], scale) : sums[i]);
}

#define PLAIN(NAME, FORMAT)                                                                                            \
    static TARGET void NAME(const Matrix *m, const Rows *rows, int first, int count, int tile, int tiles, float *out)  \
    {                                                                                                                  \
        int i = 0;                                                                                                     \
        if (tiles == 2) {                                                                                              \
            for (; i + 6 <= count; i += 6) pair(6, FORMAT, m, rows, first + i, tile, out + i * 2 * LANES);             \
            if (i + 4 <= count) { pair(4, FORMAT, m, rows, first + i, tile, out + i * 2 * LANES); i += 4; }            \
            if (i + 2 <= count) { pair(2, FORMAT, m, rows, first + i, tile, out + i * 2 * LANES); i += 2; }            \
            if (i < count) pair(1, FORMAT, m, rows, first + i, tile, out + i * 2 * LANES);                             \
            return;                                                                                                    \
        }                                                                                                              \
        for (; i + 8 <= count; i += 8) plain(8, FORMAT, m, rows, first + i, tile, out + i * LANES);                    \
        if (count & 4) { plain(4, FORMAT, m, rows, first + i, tile, out + i * LANES); i += 4; }                        \
        if (count & 2) { plain(2, FORMAT, m, rows, first + i, tile, out + i * LANES); i += 2; }                        \
        if (count & 1) plain(1, FORMAT, m, rows, first + i, tile, out + i * LANES);                                    \
    }

#define WHOLE(NAME, WIDE, FORMAT)                                                                                      \
    static TARGET void NAME(const Matrix *m, const Rows *rows, int first, int count, int tile, int tiles, float *out)  \
    {                                                                                                                  \
        int wide = tiles * LANES;                                                                                      \
        for (int t = 0; t < tiles; t++, tile++, out += LANES) {                                                        \
            int i = 0;                                                                                                 \
            for (; i + 8 <= count; i += 8) whole(8, WIDE, FORMAT, m, rows, first + i, tile, out + i * wide, wide);     \
            if (count & 4) { whole(4, WIDE, FORMAT, m, rows, first + i, tile, out + i * wide, wide); i += 4; }         \
            if (count & 2) { whole(2, WIDE, FORMAT, m, rows, first + i, tile, out + i * wide, wide); i += 2; }         \
            if (count & 1) whole(1, WIDE, FORMAT, m, rows, first + i, tile, out + i * wide, wide);                     \
        }                                                                                                              \
    }

MULTIPLIERS

const Kernels avx512_kernels = {
    .multiply = {{f32, bf16, int8, q8_0, q4_0, q4_1}, {f32, bf16, wide_int8, wide_q8_0, wide_q4_0, wide_q4_1}},
    EVERYTHING_ELSE,
    .attend_row_in_tiles = attend_row_in_tiles,
};
#else
typedef int nothing_here; /* an empty translation unit is not C */
#endif

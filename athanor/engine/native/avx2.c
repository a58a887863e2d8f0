/* AVX2 with FMA: as avx512.c, in two halves of eight rows. Bytes are multiplied in pairs by vpmaddubsw, whose sums of 16
   bits would overflow with weights of eight bits; these are therefore taken as two nibbles, like weights of four. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "kernels.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define SCORES 4
#define MIXED 2
#define AHEAD 2048 /* bytes that are fetched early */

typedef struct { __m256 a, b; } V;

INLINE TARGET V v_set(float x) { V r = {_mm256_set1_ps(x), _mm256_set1_ps(x)}; return r; }
INLINE TARGET V v_load(const float *x) { V r = {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; return r; }
INLINE TARGET void v_store(float *x, V v) { _mm256_storeu_ps(x, v.a); _mm256_storeu_ps(x + 8, v.b); }
INLINE TARGET __m256 eight_halves(const uint16_t *x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)x)); }
INLINE TARGET V v_half(const uint16_t *x) { V r = {eight_halves(x), eight_halves(x + 8)}; return r; }
INLINE TARGET __m256 eight_bf16(const uint16_t *x)
{
    __m128i narrow = _mm_loadu_si128((const __m128i *)(const void *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}
INLINE TARGET V v_bf16(const uint16_t *x) { V r = {eight_bf16(x), eight_bf16(x + 8)}; return r; }
INLINE TARGET __m256i rounded_bf16(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i high = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    __m256i none = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(high, _mm256_set1_epi32(0x7fc0), none);
}
INLINE TARGET void v_store_bf16(uint16_t *x, V v)
{
    __m256i both = _mm256_packus_epi32(rounded_bf16(v.a), rounded_bf16(v.b));
    _mm256_storeu_si256((__m256i *)(void *)x, _mm256_permute4x64_epi64(both, 0xd8));
}
INLINE TARGET __m256 eight_bytes(const int8_t *x)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)x)));
}
INLINE TARGET V v_bytes(const int8_t *x) { V r = {eight_bytes(x), eight_bytes(x + 8)}; return r; }
#define BOTH(NAME, OPERATION)                                                                                          \
    INLINE TARGET V NAME(V x, V y) { V r = {OPERATION(x.a, y.a), OPERATION(x.b, y.b)}; return r; }
BOTH(v_add, _mm256_add_ps)
BOTH(v_sub, _mm256_sub_ps)
BOTH(v_mul, _mm256_mul_ps)
BOTH(v_div, _mm256_div_ps)
BOTH(v_max, _mm256_max_ps)
BOTH(v_min, _mm256_min_ps)
INLINE TARGET V v_fma(V x, V y, V z) { V r = {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; return r; }
INLINE TARGET V v_keep(V x, float least, V v)
{
    __m256 bound = _mm256_set1_ps(least);
    V r = {_mm256_and_ps(_mm256_cmp_ps(x.a, bound, _CMP_GE_OQ), v.a), _mm256_and_ps(_mm256_cmp_ps(x.b, bound, _CMP_GE_OQ), v.b)};
    return r;
}
INLINE TARGET __m256 power_of_two(__m256 x)
{
    __m256i n = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(127 - 0x4b400000));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
INLINE TARGET V v_power_of_two(V x) { V r = {power_of_two(x.a), power_of_two(x.b)}; return r; }
INLINE TARGET __m128i sixteen_bytes(__m256i pairs)
{
    return _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}
INLINE TARGET int32_t v_whole(V v, int8_t *q)
{
    __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
    pairs = _mm256_permute4x64_epi64(pairs, 0xd8);
    _mm_storeu_si128((__m128i *)(void *)q, sixteen_bytes(pairs));
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += q[i];
    return sum;
}
INLINE TARGET int32_t v_halves(V v, int8_t *high, int8_t *low)
{
    __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
    pairs = _mm256_permute4x64_epi64(pairs, 0xd8);
    __m256i upper = _mm256_srai_epi16(_mm256_add_epi16(pairs, _mm256_set1_epi16(128)), 8);
    _mm_storeu_si128((__m128i *)(void *)high, sixteen_bytes(upper));
    _mm_storeu_si128((__m128i *)(void *)low, sixteen_bytes(_mm256_srai_epi16(_mm256_slli_epi16(pairs, 8), 8)));
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += 256 * high[i] + low[i];
    return sum;
}
INLINE TARGET float v_sum(V v)
{
    __m256 eight = _mm256_add_ps(v.a, v.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE TARGET float v_top(V v)
{
    __m256 eight = _mm256_max_ps(v.a, v.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
INLINE TARGET float one_fma(float a, float b, float c)
{
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
INLINE TARGET float root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

#include "floats.h"
#include "training.h"

INLINE TARGET void plain(const int n, const int format, const Matrix *m, const Rows *rows, int first, int tile, float *out, int stride)
{
    const float *x = rows->x + (size_t)first * (size_t)rows->stride;
    size_t row = (size_t)rows->stride, at = (size_t)tile * (size_t)m->columns * LANES;
    const uint8_t *data = (const uint8_t *)m->data + at * (format == F32 ? 4 : 2);
    V even[2], odd[2];
    UNROLL(2) for (int i = 0; i < n; i++) even[i] = odd[i] = v_set(0.0f);
    for (int c = 0; c < m->columns; c += 2, data += format == F32 ? 128 : 64) {
        V low, high;
        _mm_prefetch((const char *)data + AHEAD, _MM_HINT_T0);
        if (format == F32) {
            _mm_prefetch((const char *)data + AHEAD + 64, _MM_HINT_T0);
            low = v_load((const float *)(const void *)data);
            high = v_load((const float *)(const void *)data + LANES);
        } else {
            __m256i first_rows = _mm256_loadu_si256((const __m256i *)(const void *)data);
            __m256i last_rows = _mm256_loadu_si256((const __m256i *)(const void *)(data + 32));
            const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
            low.a = _mm256_castsi256_ps(_mm256_slli_epi32(first_rows, 16));
            low.b = _mm256_castsi256_ps(_mm256_slli_epi32(last_rows, 16));
            high.a = _mm256_castsi256_ps(_mm256_and_si256(first_rows, upper));
            high.b = _mm256_castsi256_ps(_mm256_and_si256(last_rows, upper));
        }
        UNROLL(2) for (int i = 0; i < n; i++) {
            even[i] = v_fma(low, v_set(x[(size_t)i * row + (size_t)c]), even[i]);
            odd[i] = v_fma(high, v_set(x[(size_t)i * row + (size_t)c + 1]), odd[i]);
        }
    }
    UNROLL(2) for (int i = 0; i < n; i++) v_store(out + i * stride, v_add(even[i], odd[i]));
}

/* Of eight rows (`part` 0 or 1 of the tile): each int32 lane is the sum over a group of a row. */
INLINE TARGET __m256i group_sum(const int nibbles, const uint8_t *data, const int8_t *q, int32_t start)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i small = _mm256_setzero_si256(), large = _mm256_setzero_si256();
    const int loads = nibbles ? 4 : 8;
    UNROLL(8) for (int z = 0; z < loads; z++) {
        __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)(data + 64 * z));
        __m256i lower = _mm256_and_si256(raw, low), upper = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low);
        int32_t four, other;
        __builtin_memcpy(&four, q + 4 * PANEL * z, 4);
        __builtin_memcpy(&other, q + 4 * PANEL * z + (nibbles ? GROUP / 2 * PANEL : 0), 4);
        small = _mm256_add_epi16(small, _mm256_maddubs_epi16(lower, _mm256_set1_epi32(four)));
        __m256i product = _mm256_maddubs_epi16(upper, _mm256_set1_epi32(other));
        if (nibbles)
            small = _mm256_add_epi16(small, product);
        else
            large = _mm256_add_epi16(large, product);
    }
    __m256i sum = _mm256_add_epi32(_mm256_set1_epi32(start), _mm256_madd_epi16(small, ones));
    return nibbles ? sum : _mm256_add_epi32(sum, _mm256_slli_epi32(_mm256_madd_epi16(large, ones), 4));
}

INLINE TARGET void whole(const int n, const int wide, const int format, const Matrix *m, const Rows *rows, int first, int tile, float *out, int stride)
{
    const int nibbles = format == Q4_0 || format == Q4_1, bytes = nibbles ? GROUP * LANES / 2 : GROUP * LANES;
    size_t groups = (size_t)m->columns / GROUP, block = (size_t)tile * groups, at = group_at(first, rows->group_stride);
    const uint8_t *data = (const uint8_t *)m->data + block * (size_t)bytes;
    const uint16_t *scales = (const uint16_t *)m->scales + block * LANES, *minima = (const uint16_t *)m->minima;
    const int8_t *q = rows->q + q_at(first, rows->q_stride), *low = wide ? rows->low + q_at(first, rows->q_stride) : NULL;
    const float *steps = rows->scale + at, *offsets = rows->offset + at;
    const int32_t *starts = (nibbles ? rows->minus8 : rows->minus128) + at;
    if (format == Q4_1)
        minima += block * LANES;
    V sums[4];
    UNROLL(4) for (int i = 0; i < n; i++) sums[i] = v_set(0.0f);
    for (size_t g = 0; g < groups; g++, data += bytes, q += GROUP * PANEL) {
        UNROLL(8) for (int z = 0; z < bytes / 64; z++) _mm_prefetch((const char *)data + AHEAD + 64 * z, _MM_HINT_T0);
        V step = format == INT8 ? v_set(0.0f) : v_half(scales + g * LANES);
        V minimum = format == Q4_1 ? v_half(minima + g * LANES) : v_set(0.0f);
        UNROLL(4) for (int i = 0; i < n; i++) {
            const int8_t *a = q + i * 4, *b = wide ? low + g * GROUP * PANEL + i * 4 : NULL;
            size_t s = g * PANEL + (size_t)i;
            int32_t start = format == Q4_1 ? 0 : starts[s];
            __m256i upper = group_sum(nibbles, data, a, wide ? 0 : start), lower = group_sum(nibbles, data + 32, a, wide ? 0 : start);
            if (wide) {
                upper = _mm256_add_epi32(_mm256_slli_epi32(upper, 8), group_sum(nibbles, data, b, start));
                lower = _mm256_add_epi32(_mm256_slli_epi32(lower, 8), group_sum(nibbles, data + 32, b, start));
            }
            V sum = {_mm256_cvtepi32_ps(upper), _mm256_cvtepi32_ps(lower)};
            V scale = v_set(steps[s]);
            if (format != INT8)
                scale = v_mul(step, scale);
            sums[i] = v_fma(sum, scale, sums[i]);
            if (format == Q4_1)
                sums[i] = v_fma(minimum, v_set(offsets[s]), sums[i]);
        }
    }
    V scale = format == INT8 ? v_load((const float *)m->scales + tile * LANES) : v_set(1.0f);
    UNROLL(4) for (int i = 0; i < n; i++) v_store(out + i * stride, format == INT8 ? v_mul(sums[i], scale) : sums[i]);
}

#define PLAIN(NAME, FORMAT)                                                                                            \
    static TARGET void NAME(const Matrix *m, const Rows *rows, int first, int count, int tile, int tiles, float *out)  \
    {                                                                                                                  \
        int wide = tiles * LANES;                                                                                      \
        for (int t = 0; t < tiles; t++, tile++, out += LANES) {                                                        \
            int i = 0;                                                                                                 \
            for (; i + 2 <= count; i += 2) plain(2, FORMAT, m, rows, first + i, tile, out + i * wide, wide);           \
            if (count & 1) plain(1, FORMAT, m, rows, first + i, tile, out + i * wide, wide);                           \
        }                                                                                                              \
    }

#define WHOLE(NAME, WIDE, FORMAT)                                                                                      \
    static TARGET void NAME(const Matrix *m, const Rows *rows, int first, int count, int tile, int tiles, float *out)  \
    {                                                                                                                  \
        int wide = tiles * LANES;                                                                                      \
        for (int t = 0; t < tiles; t++, tile++, out += LANES) {                                                        \
            int i = 0;                                                                                                 \
            for (; i + 4 <= count; i += 4) whole(4, WIDE, FORMAT, m, rows, first + i, tile, out + i * wide, wide);     \
            if (count & 2) { whole(2, WIDE, FORMAT, m, rows, first + i, tile, out + i * wide, wide); i += 2; }         \
            if (count & 1) whole(1, WIDE, FORMAT, m, rows, first + i, tile, out + i * wide, wide);                     \
        }                                                                                                              \
    }

MULTIPLIERS

const Kernels avx2_kernels = {
    .multiply = {{f32, bf16, int8, q8_0, q4_0, q4_1}, {f32, bf16, wide_int8, wide_q8_0, wide_q4_0, wide_q4_1}},
    EVERYTHING_ELSE,
};
#else
typedef int nothing_here; /* an empty translation unit is not C */
#endif

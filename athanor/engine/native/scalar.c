/* Plain C, for processors without AVX2; the others are held to the bits that this file gives. */
#include <math.h>
#include <string.h>

#define SMALL /* no loop is unrolled: nobody hurries here */
#include "kernels.h"

#define TARGET
#define SCORES 4
#define MIXED 4

typedef struct { float f[LANES]; } V;

INLINE float from_bf16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(isnan(x) ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#define EACH for (int i = 0; i < LANES; i++)
INLINE V v_set(float x) { V r; EACH r.f[i] = x; return r; }
INLINE V v_load(const float *x) { V r; memcpy(r.f, x, sizeof r.f); return r; }
INLINE void v_store(float *x, V a) { memcpy(x, a.f, sizeof a.f); }
INLINE V v_half(const uint16_t *x) { V r; EACH r.f[i] = from_half(x[i]); return r; }
INLINE V v_bf16(const uint16_t *x) { V r; EACH r.f[i] = from_bf16(x[i]); return r; }
/* to the nearest, ties to even */
INLINE void v_store_bf16(uint16_t *x, V a) { EACH x[i] = to_bf16(a.f[i]); }
INLINE V v_bytes(const int8_t *x) { V r; EACH r.f[i] = x[i]; return r; }
INLINE V v_add(V a, V b) { V r; EACH r.f[i] = a.f[i] + b.f[i]; return r; }
INLINE V v_sub(V a, V b) { V r; EACH r.f[i] = a.f[i] - b.f[i]; return r; }
INLINE V v_mul(V a, V b) { V r; EACH r.f[i] = a.f[i] * b.f[i]; return r; }
INLINE V v_div(V a, V b) { V r; EACH r.f[i] = a.f[i] / b.f[i]; return r; }
INLINE V v_max(V a, V b) { V r; EACH r.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i]; return r; }
INLINE V v_min(V a, V b) { V r; EACH r.f[i] = a.f[i] < b.f[i] ? a.f[i] : b.f[i]; return r; }
/* a · b + c with one rounding */
INLINE V v_fma(V a, V b, V c) { V r; EACH r.f[i] = fmaf(a.f[i], b.f[i], c.f[i]); return r; }
/* a where x ≥ least, else 0 */
INLINE V v_keep(V x, float least, V a) { V r; EACH r.f[i] = x.f[i] >= least ? a.f[i] : 0.0f; return r; }
/* 2^n where x = n + 1.5 · 2^23 */
INLINE V v_power_of_two(V x)
{
    V r;
    EACH {
        uint32_t bits;
        memcpy(&bits, &x.f[i], 4);
        bits = (bits - 0x4b400000u + 127u) << 23;
        memcpy(&r.f[i], &bits, 4);
    }
    return r;
}
/* to the nearest whole numbers, ties to even; returns their sum */
INLINE int32_t v_whole(V a, int8_t *q)
{
    int32_t sum = 0;
    EACH {
        q[i] = (int8_t)lrintf(a.f[i]);
        sum += q[i];
    }
    return sum;
}
/* the same of 16 bits each, as 256 · high + low */
INLINE int32_t v_halves(V a, int8_t *high, int8_t *low)
{
    int32_t sum = 0;
    EACH {
        int32_t whole = (int32_t)lrintf(a.f[i]), upper = (whole + 32768 + 128) / 256 - 128;
        high[i] = (int8_t)upper;
        low[i] = (int8_t)(whole - 256 * upper);
        sum += whole;
    }
    return sum;
}
/* Lanes are added at a distance of 8, then 4, 2, 1. */
INLINE float v_sum(V a)
{
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            a.f[i] += a.f[i + width];
    return a.f[0];
}
INLINE float v_top(V a)
{
    float top = a.f[0];
    EACH top = a.f[i] > top ? a.f[i] : top;
    return top;
}
INLINE float one_fma(float a, float b, float c) { return fmaf(a, b, c); }
INLINE float root(float x) { return sqrtf(x); }

#include "floats.h"
#include "training.h"

/* Even columns and odd ones have a sum each. */
static void plain_tile(const Matrix *m, const Rows *rows, int first, int count, int tile, float *out, int stride)
{
    for (int i = 0; i < count; i++) {
        const float *x = rows->x + (size_t)(first + i) * (size_t)rows->stride;
        float sums[2][LANES] = {{0}};
        for (int c = 0; c < m->columns; c++) {
            size_t at = ((size_t)tile * (size_t)m->columns + (size_t)c) * LANES;
            if (m->format == F32)
                for (int l = 0; l < LANES; l++)
                    sums[c & 1][l] = fmaf(((const float *)m->data)[at + (size_t)l], x[c], sums[c & 1][l]);
            else
                for (int l = 0; l < LANES; l++) {
                    size_t pair = at - (size_t)(c & 1) * LANES + (size_t)(2 * l + (c & 1));
                    sums[c & 1][l] = fmaf(from_bf16(((const uint16_t *)m->data)[pair]), x[c], sums[c & 1][l]);
                }
        }
        for (int lane = 0; lane < LANES; lane++)
            out[i * stride + lane] = sums[0][lane] + sums[1][lane];
    }
}

/* Whole numbers are summed exactly within a group; groups are added one after the other. */
static void whole_tile(const Matrix *m, const Rows *rows, int first, int count, int tile, float *out, int stride)
{
    int groups = m->columns / GROUP, nibbles = m->format == Q4_0 || m->format == Q4_1;
    for (int i = 0; i < count; i++) {
        const int8_t *q = rows->q + q_at(first + i, rows->q_stride);
        const int8_t *low = rows->wide ? rows->low + q_at(first + i, rows->q_stride) : NULL;
        float *sums = out + i * stride;
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] = 0.0f;
        for (int g = 0; g < groups; g++) {
            size_t block = (size_t)tile * (size_t)groups + (size_t)g;
            size_t at = group_at(first + i, rows->group_stride) + (size_t)g * PANEL;
            const uint8_t *data = (const uint8_t *)m->data + block * (nibbles ? GROUP * LANES / 2 : GROUP * LANES);
            int32_t start = m->format == Q4_1 ? 0 : nibbles ? rows->minus8[at] : rows->minus128[at];
            float scale = rows->scale[at];
            for (int lane = 0; lane < LANES; lane++) {
                int32_t sum = start;
                for (int c = 0; c < GROUP; c++) {
                    int byte = nibbles ? c % 16 : c, value = data[(byte / 4 * LANES + lane) * 4 + byte % 4];
                    int at_q = (g * GROUP + c) / 4 * 4 * PANEL + c % 4, given = low ? 256 * q[at_q] + low[at_q] : q[at_q];
                    sum += (!nibbles ? value : c < 16 ? value & 15 : value >> 4) * given;
                }
                size_t s = block * LANES + (size_t)lane;
                float step = m->format == INT8 ? scale : from_half(((const uint16_t *)m->scales)[s]) * scale;
                sums[lane] = fmaf((float)sum, step, sums[lane]);
                if (m->format == Q4_1)
                    sums[lane] = fmaf(from_half(((const uint16_t *)m->minima)[s]), rows->offset[at], sums[lane]);
            }
        }
        if (m->format == INT8)
            for (int lane = 0; lane < LANES; lane++)
                sums[lane] *= ((const float *)m->scales)[tile * LANES + lane];
    }
}

static void multiply(const Matrix *m, const Rows *rows, int first, int count, int tile, int tiles, float *out)
{
    for (int t = 0; t < tiles; t++)
        (m->format < INT8 ? plain_tile : whole_tile)(m, rows, first, count, tile + t, out + t * LANES, tiles * LANES);
}

const Kernels scalar_kernels = {
    .multiply = {{multiply, multiply, multiply, multiply, multiply, multiply},
                 {multiply, multiply, multiply, multiply, multiply, multiply}},
    EVERYTHING_ELSE,
};

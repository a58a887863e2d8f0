/* From logits to tokens, a row at a time: the definition of athanor/engine/logits.py, in a tenth of numpy's time. */
#include "draw.h"

#include <math.h>
#include <stdlib.h>

#define BELOW (1 - 1e-12) /* rounding must not carry anything past the end */

typedef struct { float weight; int32_t token; } Candidate;

typedef struct {
    float least; /* candidates above it are kept, */
    int32_t equals; /* and so many of those that equal it, in the order of their numbers */
} Bound;

/* Tokens whose weight is at least `cut`, in order. */
static int32_t collect(const float *weights, int32_t size, float cut, Candidate *found)
{
    int32_t n = 0;
    for (int32_t token = 0; token < size; token++) { /* without a branch, which nobody could foretell */
        found[n] = (Candidate){weights[token], token};
        n += weights[token] >= cut;
    }
    return n;
}

static double mass_of(const Candidate *some, int32_t n)
{
    double mass = 0;
    for (int32_t i = 0; i < n; i++)
        mass += (double)some[i].weight;
    return mass;
}

static float middle(float a, float b, float c)
{
    float low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

/* Where the largest of n values reach `wanted`, each counting its own size, or 1. The values are overwritten. */
static Bound crossing(float *values, int32_t n, double wanted, int counted)
{
    double reached = 0;
    Bound last = {0.0f, INT32_MAX}; /* all, where rounding lets nothing reach it */
    while (n > 0) {
        float pivot = middle(values[0], values[n / 2], values[n - 1]);
        int32_t above = 0, equal = 0;
        double mass = 0;
        float lowest = INFINITY;
        for (int32_t i = 0; i < n; i++)
            if (values[i] > pivot) {
                float value = values[i];
                lowest = value < lowest ? value : lowest;
                values[i] = values[above];
                values[above++] = value;
                mass += counted ? 1.0 : (double)value;
            } else if (values[i] == pivot)
                equal++;
        if (above && reached + mass >= wanted) {
            n = above;
            last.least = lowest;
            continue;
        }
        double each = counted ? 1.0 : (double)pivot;
        for (int32_t taken = 1; taken <= equal; taken++)
            if (reached + mass + taken * each >= wanted)
                return (Bound){pivot, taken};
        reached += mass + equal * each;
        int32_t left = 0;
        for (int32_t i = above; i < n; i++)
            if (values[i] < pivot)
                values[left++] = values[i];
        n = left;
    }
    return last;
}

static float *values_of(const Candidate *some, int32_t n, float *values)
{
    for (int32_t i = 0; i < n; i++)
        values[i] = some[i].weight;
    return values;
}

static int32_t keep(Candidate *some, int32_t n, Bound bound)
{
    int32_t kept = 0, equals = 0;
    for (int32_t i = 0; i < n; i++)
        if (some[i].weight > bound.least || (some[i].weight == bound.least && equals++ < bound.equals))
            some[kept++] = some[i];
    return kept;
}

/* The candidates that the filters leave; at first only those are looked at that are likely to be enough. */
static int32_t filtered(const float *weights, int32_t size, double total, const Filters *how, Candidate *some, float *values)
{
    int32_t k = how->top_k > 0 && how->top_k < size ? how->top_k : 0, n;
    for (float cut = 1.0f / 1024;; cut = cut > 1e-9f ? cut / 256 : 0.0f) {
        n = collect(weights, size, cut, some);
        if (cut == 0.0f || (k ? n >= k : how->top_p < 1 ? mass_of(some, n) >= (double)how->top_p * total : cut <= how->min_p))
            break;
    }
    if (k) {
        Bound bound = crossing(values_of(some, n, values), n, k, 1);
        bound.equals = INT32_MAX; /* equals are kept together */
        n = keep(some, n, bound);
        total = mass_of(some, n);
    }
    if (how->top_p < 1)
        n = keep(some, n, crossing(values_of(some, n, values), n, (double)how->top_p * total, 0));
    if (how->min_p > 0)
        n = keep(some, n, (Bound){how->min_p, INT32_MAX});
    return n;
}

static int32_t draw_candidate(const Candidate *some, int32_t n, double uniform)
{
    double wanted = uniform * mass_of(some, n) * BELOW, passed = 0;
    for (int32_t i = 0; i < n; i++) {
        passed += (double)some[i].weight;
        if (passed > wanted)
            return some[i].token;
    }
    return n ? some[n - 1].token : 0;
}

/* First the block, then the place in it. */
static int32_t draw_any(const float *weights, const double *sums, int32_t size, double total, double uniform)
{
    double wanted = uniform * total * BELOW, passed = 0;
    int32_t block = 0, blocks = (size + DRAWN_TOGETHER - 1) / DRAWN_TOGETHER, last = 0;
    while (block + 1 < blocks && passed + sums[block] <= wanted)
        passed += sums[block++];
    for (int32_t token = block * DRAWN_TOGETHER; token < size; token++) {
        passed += (double)weights[token];
        last = weights[token] > 0 ? token : last;
        if (passed > wanted)
            return token;
    }
    return last;
}

int32_t athanor_draw(int32_t level, const float *logits, int32_t rows, int32_t size, const Filters *how, const double *uniforms,
                     int64_t *tokens, float *logprobs)
{
    const Kernels *kernels = athanor_kernels(level);
    size_t padded = (size_t)(size + DRAWN_TOGETHER - 1) / DRAWN_TOGETHER * DRAWN_TOGETHER;
    float *weights = malloc(padded * sizeof(float)), *values = malloc(padded * sizeof(float));
    double *sums = malloc(padded / DRAWN_TOGETHER * sizeof(double));
    Candidate *some = malloc(padded * sizeof(Candidate));
    int filters = (how->top_k > 0 && how->top_k < size) || how->top_p < 1 || how->min_p > 0;
    int found = weights && values && sums && some;
    for (int32_t row = 0; found && row < rows; row++) {
        const float *given = logits + (int64_t)row * size;
        float most;
        double total = kernels->weigh(given, size, how->temperature, weights, sums, &most);
        tokens[row] = filters ? draw_candidate(some, filtered(weights, size, total, how, some, values), uniforms[row])
                              : draw_any(weights, sums, size, total, uniforms[row]);
        double all = how->temperature == 1.0f ? total : kernels->weigh(given, size, 1.0f, NULL, NULL, NULL);
        logprobs[row] = given[tokens[row]] - most - (float)log(all);
    }
    free(weights);
    free(values);
    free(sums);
    free(some);
    return !found;
}

void athanor_logprobs(int32_t level, const float *logits, int32_t rows, int32_t size, const int64_t *tokens, float *out)
{
    const Kernels *kernels = athanor_kernels(level);
    for (int32_t row = 0; row < rows; row++) {
        const float *given = logits + (int64_t)row * size;
        float most;
        double total = kernels->weigh(given, size, 1.0f, NULL, NULL, &most);
        out[row] = given[tokens[row]] - most - (float)log(total);
    }
}

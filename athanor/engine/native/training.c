/* Steps of training, shared out over the threads of whoever calls. */
#include "step.h"

#include <stdatomic.h>
#include <stdlib.h>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>

long syscall(long number, ...); /* which unistd.h has in other dialects of C alone */
#endif

/* GOMP_parallel: calls the function in so many threads, of which the caller is one, and waits for all. So torch's own
   threads work, and no others stand in their way. */
typedef void (*Parallel)(void (*function)(void *), void *state, unsigned threads, unsigned flags);

typedef struct {
    void (*run)(const Kernels *kernels, const void *job, int task, float *scratch);
    const Kernels *kernels;
    const void *job;
    int64_t tasks;
    size_t scratch; /* floats a thread */
    atomic_int next, failed;
} Shared;

static void take_some(void *state)
{
    Shared *all = state;
    int task = atomic_fetch_add(&all->next, 1);
    if (task >= all->tasks)
        return;
    float *scratch = all->scratch ? malloc(all->scratch * sizeof(float)) : NULL;
    if (scratch || !all->scratch)
        for (; task < all->tasks; task = atomic_fetch_add(&all->next, 1))
            all->run(all->kernels, all->job, task, scratch);
    else
        atomic_store(&all->failed, 1);
    free(scratch);
}

/* 1 where a thread had no memory. All threads are called, however few tasks there are: of a smaller team GNU's OpenMP
   ends the others, and starts them anew for torch's next operation. */
static int32_t share_out(Parallel parallel, int32_t threads, Shared all)
{
    if (threads > 1 && all.tasks > 1)
        parallel(take_some, &all, (unsigned)threads, 0);
    else
        take_some(&all);
    return atomic_load(&all.failed);
}

static int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

#define WALK(NAME, OF)                                                                                                 \
    static void NAME(const Kernels *kernels, const void *job, int task, float *scratch)                                \
    {                                                                                                                  \
        (void)scratch;                                                                                                 \
        kernels->OF(job, task);                                                                                        \
    }
WALK(norm, norm_rows)
WALK(gate, gate_some)
WALK(turn, turn_rows)
WALK(blend, blend_some)
WALK(move, move_rows)
WALK(square, square_some)
WALK(transpose, transpose_rows)
WALK(add, add_some)
#undef WALK
static void attend(const Kernels *kernels, const void *job, int task, float *scratch) { kernels->attend_row(job, task, scratch); }
static void attend_in_tiles(const Kernels *kernels, const void *job, int task, float *scratch) { kernels->attend_row_in_tiles(job, task, scratch); }
static void differentiate(const Kernels *kernels, const void *job, int task, float *scratch)
{
    const LabelledRows *rows = job;
    for (int64_t row = task * 8; row < rows->rows && row < task * 8 + 8; row++)
        kernels->differentiate(rows, row, scratch);
}

/* Whether there is AMX for bf16, and the system lets this process have it. */
PUBLIC int32_t athanor_tiles(void)
{
#if defined(__x86_64__) && defined(__linux__)
    unsigned a, b, c, d, low, high;
    const unsigned needed = 1u << 22 | 1u << 24;
    if (athanor_best() < 2 || !athanor_kernels(2)->attend_row_in_tiles || !__get_cpuid_count(7, 0, &a, &b, &c, &d) ||
        (d & needed) != needed)
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3 && syscall(158 /* arch_prctl */, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles */) == 0;
#else
    return 0;
#endif
}

PUBLIC int32_t athanor_train(Parallel parallel, int32_t threads, int32_t level, int32_t what, const void *job)
{
    Shared all = {.kernels = athanor_kernels(level), .job = job};
    const PackedAttention *attention = job;
    const LabelledRows *labelled = job;
    size_t padded;
    switch (what) {
    case 0:
        padded = (size_t)parts(attention->time, LANES) * LANES;
        all.run = attend;
        all.tasks = attention->batch * attention->kv_heads;
        all.scratch = (6 * padded + 3 * 8) * (size_t)attention->head_dim + 16 * padded;
        if (attention->in_tiles) {
            padded = (size_t)parts(attention->time, 32) * 32;
            all.run = attend_in_tiles;
            all.scratch = (7 * padded + 160) * (size_t)attention->head_dim / 2 + 112 * padded + LANES;
        }
        break;
    case 1: all.run = norm; all.tasks = parts(((const NormedRows *)job)->rows, ROWS_TOGETHER); break;
    case 2: all.run = gate; all.tasks = parts(((const Gated *)job)->size, TOGETHER); break;
    case 3: all.run = turn; all.tasks = parts(((const TurnedRows *)job)->rows, ROWS_TOGETHER); break;
    case 4: all.run = blend; all.tasks = parts(((const Blended *)job)->size, TOGETHER); break;
    case 5: all.run = move; all.tasks = parts(((const MovedRows *)job)->rows, ROWS_TOGETHER); break;
    case 6: all.run = square; all.tasks = parts(((const Squared *)job)->size, TOGETHER); break;
    case 7: all.run = transpose; all.tasks = parts(((const Transposed *)job)->rows, ROWS_TOGETHER); break;
    case 8: all.run = add; all.tasks = parts(((const Added *)job)->size, TOGETHER); break;
    default:
        all.run = differentiate;
        all.tasks = parts(labelled->rows, 8);
        all.scratch = (size_t)labelled->size;
    }
    return share_out(parallel, threads, all);
}

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SPINS = 10000, YIELDS = 2000 }; /* about half a millisecond, then sleep; a caller who waits lets others run */

/* The state word: phase number (24 bits, which may wrap), chunks of the phase, next chunk to be taken (20 bits each). A
   taken number below the count is a claim; until it is done the phase cannot end, so what belongs to it holds still. */
#define WORD(phase, count) ((uint64_t)(phase) << 40 | (uint64_t)(count) << 20)
#define PHASE(word) ((uint32_t)((word) >> 40))
#define COUNT(word) ((uint32_t)((word) >> 20) & 0xfffffu)
#define NEXT(word) ((uint32_t)(word) & 0xfffffu)

typedef struct { Pool *pool; int number; pthread_t thread; } Worker;

struct Pool {
    _Alignas(64) _Atomic uint64_t word;
    _Alignas(64) _Atomic uint32_t done; /* chunks of this phase */
    _Atomic int sleepers, closing, finished;
    uint32_t number; /* of the phase, over all work; written by openers only */
    int phase;       /* within the work */
    const Work *work;
    pthread_mutex_t mutex;
    pthread_cond_t woken;
    int workers;
    Worker *worker;
};

static void rest(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Opens the first phase from `phase` on that needs more than one chunk; says so when there is none left. */
static void open_phase(Pool *pool, int phase, int thread)
{
    const Work *work = pool->work;
    int count = 0;
    for (; phase < work->phases; phase++) {
        count = work->chunks(work->state, phase);
        if (count > 1)
            break;
        if (count == 1)
            work->run(work->state, phase, 0, thread);
    }
    pool->number = (pool->number + 1) & 0xffffffu;
    pool->phase = phase;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    if (phase == work->phases) {
        atomic_store(&pool->word, WORD(pool->number, 0));
        atomic_store(&pool->finished, 1);
        return;
    }
    atomic_store(&pool->word, WORD(pool->number, count));
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->woken);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Takes chunks until the phase has none left. Returns the word that said so. */
static uint64_t take_part(Pool *pool, int thread)
{
    for (;;) {
        uint64_t word = atomic_load(&pool->word);
        if (NEXT(word) >= COUNT(word))
            return word;
        word = atomic_fetch_add(&pool->word, 1);
        uint32_t chunk = NEXT(word), count = COUNT(word);
        if (chunk >= count)
            return word;
        int phase = pool->phase;
        pool->work->run(pool->work->state, phase, (int)chunk, thread);
        if (atomic_fetch_add(&pool->done, 1) + 1 == count)
            open_phase(pool, phase + 1, thread);
    }
}

static int is_open(uint64_t word) { return NEXT(word) < COUNT(word); }

static void *work_on(void *argument)
{
    Worker *worker = argument;
    Pool *pool = worker->pool;
    while (!atomic_load(&pool->closing)) {
        take_part(pool, worker->number);
        int spins = 0;
        while (!is_open(atomic_load(&pool->word)) && ++spins < SPINS)
            rest();
        if (spins < SPINS)
            continue;
        pthread_mutex_lock(&pool->mutex);
        atomic_fetch_add(&pool->sleepers, 1);
        while (!is_open(atomic_load(&pool->word)) && !atomic_load(&pool->closing))
            pthread_cond_wait(&pool->woken, &pool->mutex);
        atomic_fetch_sub(&pool->sleepers, 1);
        pthread_mutex_unlock(&pool->mutex);
    }
    return NULL;
}

Pool *pool_open(int threads)
{
    Pool *pool = aligned_alloc(64, (sizeof(Pool) + 63) / 64 * 64);
    if (!pool)
        return NULL;
    *pool = (Pool){0};
    pool->worker = calloc((size_t)threads, sizeof(Worker));
    if (!pool->worker) {
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->woken, NULL);
    for (int i = 1; i < threads; i++) {
        Worker *worker = &pool->worker[pool->workers];
        *worker = (Worker){.pool = pool, .number = pool->workers + 1};
        if (pthread_create(&worker->thread, NULL, work_on, worker))
            break;
        pool->workers++;
    }
    return pool;
}

void pool_close(Pool *pool)
{
    atomic_store(&pool->closing, 1);
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->woken);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->workers; i++)
        pthread_join(pool->worker[i].thread, NULL);
    pthread_cond_destroy(&pool->woken);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->worker);
    free(pool);
}

void pool_run(Pool *pool, const Work *work)
{
    pool->work = work;
    atomic_store(&pool->finished, 0);
    open_phase(pool, 0, 0);
    while (!atomic_load(&pool->finished)) {
        take_part(pool, 0);
        for (int spins = 0; !atomic_load(&pool->finished) && !is_open(atomic_load(&pool->word)); spins++)
            if (spins < YIELDS)
                rest();
            else
                sched_yield();
    }
}

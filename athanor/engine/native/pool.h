/* Threads that work through a list of phases together. A phase has a number of chunks, which whoever is free takes; the one
   that finishes the last chunk opens the next phase, so that nobody waits for a thread that has nothing in hand: a thread
   that the system has put to sleep between two chunks delays nobody. A phase of one chunk is done by its opener at once. */
#ifndef ATHANOR_POOL_H
#define ATHANOR_POOL_H

typedef struct Pool Pool;

typedef struct {
    int (*chunks)(void *state, int phase);
    void (*run)(void *state, int phase, int chunk, int thread);
    int phases;
    void *state;
} Work;

/* The caller is thread 0 of `threads`. Null without memory; with fewer threads than asked where the system refuses some. */
Pool *pool_open(int threads);
void pool_close(Pool *pool);
void pool_run(Pool *pool, const Work *work);

#endif

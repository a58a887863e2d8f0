/* Drawing tokens; athanor/engine/native/drawing.py mirrors the structure. */
#ifndef ATHANOR_DRAW_H
#define ATHANOR_DRAW_H

#include "step.h"

typedef struct { float temperature, top_p, min_p; int32_t top_k; } Filters;

/* A token for each row of logits, by inverting what the filters leave of its distribution at a uniform number. top_k 0, top_p
   1 and min_p 0 switch filters off. logprobs: of the tokens, as `athanor_logprobs` has them. 0, or 1 without memory. */
PUBLIC int32_t athanor_draw(int32_t level, const float *logits, int32_t rows, int32_t size, const Filters *how, const double *uniforms,
                            int64_t *tokens, float *logprobs);
/* Log-probabilities of a token in each row, at temperature 1. */
PUBLIC void athanor_logprobs(int32_t level, const float *logits, int32_t rows, int32_t size, const int64_t *tokens, float *out);

#endif

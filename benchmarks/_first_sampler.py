"""The sampler that Athanor began with, at work: run with that version on its path and asked over pipes. Its first line
of input is what to do, as JSON; for each further one it writes a batch of answers and says how many tokens a second
that was.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def main() -> None:
    from athanor.engine.decoding import complete  # type: ignore[import-not-found]  # of that version alone

    from athanor.base.machine import prepare_process
    from athanor.engine.sampling import Sampling
    from athanor.models.build import build
    from athanor.models.config import standard_config
    from athanor.models.precision import autocast

    prepare_process()
    wanted = json.loads(sys.stdin.readline())
    torch.set_num_threads(wanted["threads"])
    model = build(standard_config(*wanted["vocabulary_and_context"], **wanted["sizes"]), 0)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=wanted["tokens"], seed=1)
    for _ in sys.stdin:
        start = time.perf_counter()
        with autocast(wanted["precision"]):
            answers = complete(model, wanted["prompts"], sampling, frozenset(), samples=wanted["group"])
        seconds = time.perf_counter() - start
        print(sum(len(answer.tokens) for answer in answers) / seconds, flush=True)


if __name__ == "__main__":
    main()

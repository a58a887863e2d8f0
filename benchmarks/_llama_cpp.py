"""llama.cpp at work, asked over pipes and run by the Python of its own environment: it waits for the word of what to do
("read", "write", "streams") and answers with the tokens a second. Its argument is a GGUF file, and the threads.
"""

from __future__ import annotations

import ctypes
import sys
import time

try:
    import llama_cpp
except ImportError:  # whoever only wants to know the sizes
    llama_cpp = None

READ, WRITTEN, STREAMS, STREAMED = 512, 64, 16, 16


class Peer:
    def __init__(self, file: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        self._kept = quiet
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = STREAMS * (READ + 128)
        settings.n_batch, settings.n_ubatch, settings.n_seq_max = READ, READ, STREAMS
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.batch = llama_cpp.llama_batch_init(READ, 0, 1)

    def step(self, rows: list[tuple[int, int]]) -> None:
        """rows: (sequence, place) of a token each; only the last of a prompt, or each of several, gets logits."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (sequence, place) in enumerate(rows):
            batch.token[i], batch.pos[i] = 100 + (7919 * place + sequence) % 20_000, place
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i == len(rows) - 1 or rows[i + 1][0] != sequence
        assert not llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)

    def measure(self, what: str) -> float:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        sequences = STREAMS if what == "streams" else 1
        start = time.perf_counter()
        if what == "read":
            self.step([(0, place) for place in range(READ)])
            return READ / (time.perf_counter() - start)
        steps = STREAMED if what == "streams" else WRITTEN
        for place in range(steps):
            self.step([(sequence, place) for sequence in range(sequences)])
        return sequences * steps / (time.perf_counter() - start)


if __name__ == "__main__":
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        print(peer.measure(line.strip()), flush=True)

"""A vocabulary of byte strings in order of merging, and the list of merges it stands for.

tiktoken merges whichever neighbours join into the lowest-ranked token; a `tokenizer.json` lists which two tokens each
merge joins. The two agree on every text when each token, cut by the merges before its own, falls into exactly the two
tokens its merge lists. (Two neighbours that together spell a token can only have arisen inside its own bytes, step by
step as they do when it stands alone, and there the last step is its own merge.) `merges_of` establishes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from athanor.base.errors import TokenizerError

MAX_TOKEN_BYTES = 64
"""No token is longer: a ruled line or a blob would otherwise be learned by heart, at a cost squared in its length."""


def merges_of(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts of every token after the 256 bytes, in order of rank.

    Raises TokenizerError when a token occurs twice, is too long or cannot be reached by merging the ones before it.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        raise TokenizerError("The vocabulary holds the same token twice.")
    if max(map(len, tokens)) > MAX_TOKEN_BYTES:
        raise TokenizerError(f"The vocabulary holds a token of more than {MAX_TOKEN_BYTES} bytes.")
    return [_halves(token, ranks) for token in tokens[256:]]


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, at = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank == limit:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise TokenizerError(f"Token {limit} ({token!r}) cannot be made by merging the tokens before it.")
    return parts[0], parts[1]

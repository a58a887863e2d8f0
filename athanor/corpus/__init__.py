"""From raw text to token shards: sources, readers, rules, held-out split, build, shards.

Documents stream through this room: `readers` yields them, `filters` repairs or drops them, `heldout` sets some aside,
`build` writes what is left with its licences and counts, and `shards` turns it into memory-mapped token ids.
"""

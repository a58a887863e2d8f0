"""Text to token ids and back: byte-level BPE, control tokens, chat layout with loss mask, and what to say about them.

The first room of the data flow after `base`: the corpus is counted here, everything later works on the ids made here.
"""

from athanor.tokenizer.chat import Rendered, render, training_example
from athanor.tokenizer.streaming import StreamDecoder
from athanor.tokenizer.tokenizer import Tokenizer
from athanor.tokenizer.training import train_tokenizer

__all__ = ["Rendered", "StreamDecoder", "Tokenizer", "render", "train_tokenizer", "training_example"]

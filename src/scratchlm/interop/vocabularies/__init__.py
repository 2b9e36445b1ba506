"""Vocabularies in the files of other libraries: written so that they encode alike, and byte-pair ones read.

    tiktoken    the bytes of each token with its rank; neither the pattern nor special tokens are in the file
    hf          the tokenizer.json of Hugging Face's tokenizers, version 0.20 or newer, of any tokenizer but that of
                pairs; older ones are read too
    minbpe      minbpe's .model
    GPT-2's     vocab.bpe and encoder.json, or merges.txt and vocab.json; read only

What a file cannot say, or what is said in one that this tokenizer does not do, is refused.
"""

from scratchlm.interop.vocabularies.beside import BESIDE, special_tokens, with_special
from scratchlm.interop.vocabularies.published import PUBLISHED
from scratchlm.interop.vocabularies.reading import import_vocabulary, named_vocabulary
from scratchlm.interop.vocabularies.shared import FORMATS
from scratchlm.interop.vocabularies.tokenizer_json import byte_level_names, write_hub_tokenizer
from scratchlm.interop.vocabularies.writing import export_vocabulary

__all__ = [
    "BESIDE",
    "FORMATS",
    "PUBLISHED",
    "byte_level_names",
    "export_vocabulary",
    "import_vocabulary",
    "named_vocabulary",
    "special_tokens",
    "with_special",
    "write_hub_tokenizer",
]

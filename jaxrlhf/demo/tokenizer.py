"""The tokenizer of the toy language: one token a word."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxrlhf.demo import words

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer, the same every time: special tokens are 0 to 3, then come the words in sorted order.

    Encoding puts `<s>` in front (not with `add_special_tokens=False`) and never adds `</s>`, as Llama's does. A word
    that is not of the language becomes `<unk>`. Decoding without special tokens gives back the text, words separated
    by single spaces.
    """
    vocab = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *sorted(_all_words())))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    # Each punctuation mark is a token, with white space before it or not: "staff :the room" has no unknown word.
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )


def _all_words() -> set[str]:
    function_words = "the was because but and describe visited it . ! :".split()
    found = {*function_words, *words.NAMES, *words.PLACES, *words.MOOD_OF_VERB, *words.VAGUE_MOOD, *words.FAMILY_OF}
    for phrase in (*words.CHATTER, *words.CLOSINGS):
        found.update(phrase)
    for family in words.FAMILIES:
        for mood, details in family.details.items():
            found.update(details, *family.reasons[mood])
    return found
